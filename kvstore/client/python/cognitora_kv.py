"""The native client of the KV daemon cgn-kvcached, for Python: one file on the C ABI.

    from cognitora_kv import Client

    with Client("/run/cognitora/kv.sock", "llama/fp8/0") as kv:
        kv.put(name, data)                      # name: 32 bytes; data: anything with a buffer
        with kv.get(name) as lease:             # None if there is no such block
            use(lease.view)                     # the daemon's own memory, read-only, without a copy
        depth = len(kv.lookup(names))

A lease lasts as long as anything looks at its bytes: its view, slices of it, arrays made over it. `release`
and the end of `with` let go of the lease's own view only; the daemon hears of it when the last one is gone.
The library is found by the environment variable COGNITORA_KV_LIB, beside this file, or by the system's loader.
"""

import ctypes
import os
import weakref

NAME_BYTES = 32
PARENT_MISSING = -4
# What `copy_out` says of a block, if it is no failure.
MISSING, COPIED, OTHER_LENGTH = 0, 1, 2
# Blocks that `copy_out` leases at once: enough that a request costs nothing beside the copies, and few
# enough that little of the daemon's memory is held while they run.
_LEASED_MAX = 64
_TIERS = {1: "ram", 2: "disk"}


class Error(Exception):
    """A call failed; `code` is a number of cognitora_kv.h."""

    def __init__(self, code, text):
        super().__init__(f"{text} ({code})")
        self.code = code


class _Options(ctypes.Structure):
    _fields_ = [
        ("client", ctypes.c_char_p),
        ("staging_bytes", ctypes.c_uint64),
        ("timeout_ms", ctypes.c_uint32),
        ("poll", ctypes.c_uint32),
    ]


class _Block(ctypes.Structure):
    _fields_ = [
        ("bytes", ctypes.c_void_p),
        ("len", ctypes.c_uint64),
        ("lease", ctypes.c_uint64),
        ("status", ctypes.c_int32),
    ]


class _New(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_void_p),
        ("parent", ctypes.c_void_p),
        ("bytes", ctypes.c_void_p),
        ("len", ctypes.c_uint64),
        ("label", ctypes.c_void_p),
        ("label_len", ctypes.c_uint64),
    ]


def _load():
    name = "libkvclient.so"
    beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), name)
    path = os.environ.get("COGNITORA_KV_LIB") or (beside if os.path.exists(beside) else name)
    library = ctypes.CDLL(path)
    size, pointer, i32, u32, i64 = (
        ctypes.c_size_t,
        ctypes.c_void_p,
        ctypes.c_int32,
        ctypes.c_uint32,
        ctypes.c_int64,
    )
    text = ctypes.c_char_p
    for function, result, arguments in [
        ("connect", i32, [text, text, ctypes.POINTER(_Options), ctypes.POINTER(pointer)]),
        ("close", None, [pointer]),
        ("lookup", i64, [pointer, text, size, pointer]),
        ("get", i64, [pointer, text, size, u32, ctypes.POINTER(_Block)]),
        ("poll_get", i64, [pointer, text, ctypes.POINTER(_Block)]),
        ("release", i64, [pointer, ctypes.POINTER(ctypes.c_uint64), size]),
        ("reserve", i64, [pointer, ctypes.c_uint64, ctypes.POINTER(pointer)]),
        ("unreserve", i64, [pointer, pointer]),
        ("put", i64, [pointer, ctypes.POINTER(_New), size, i32, ctypes.POINTER(i32)]),
        ("pin", i64, [pointer, text, size, i32, ctypes.POINTER(i32)]),
        ("remove", i64, [pointer, text, size, ctypes.POINTER(i32)]),
        ("prefetch", i64, [pointer, text, size, u32]),
        ("clear", i64, [pointer]),
        ("stats", i64, [pointer, pointer, size]),
        ("error", text, []),
    ]:
        entry = getattr(library, f"cgn_kv_{function}")
        entry.restype, entry.argtypes = result, arguments
    return library


_LIBRARY = None


def _library():
    global _LIBRARY
    if _LIBRARY is None:
        _LIBRARY = _load()
    return _LIBRARY


def _checked(number):
    if number < 0:
        raise Error(number, _library().cgn_kv_error().decode())
    return number


def _joined(names):
    names = [bytes(name) for name in names]
    if any(len(name) != NAME_BYTES for name in names):
        raise ValueError(f"a name has {NAME_BYTES} bytes")
    return b"".join(names), len(names)


class _Handle:
    """The connection; closed when neither the client nor any lease needs it."""

    def __init__(self, pointer):
        self.pointer = pointer
        self._close = weakref.finalize(self, _library().cgn_kv_close, pointer)

    def release(self, lease):
        # Nothing can be done about a connection that is lost; its leases went with it.
        _library().cgn_kv_release(self.pointer, ctypes.byref(ctypes.c_uint64(lease)), 1)


class Lease:
    """A block in the daemon's memory. `view` is its bytes, read-only."""

    def __init__(self, handle, block):
        memory = (ctypes.c_ubyte * block.len).from_address(block.bytes)
        # Every view of the bytes keeps `memory`, so it goes with the last of them.
        weakref.finalize(memory, handle.release, block.lease)
        self.view = memoryview(memory).cast("B").toreadonly()

    def __len__(self):
        return len(self.view)

    def __bytes__(self):
        return bytes(self.view)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.release()

    def release(self):
        """Lets go of the view."""
        self.view.release()


class Client:
    """A connection to one namespace. Threads may share it; their calls go one after the other."""

    def __init__(self, path, namespace, *, staging_bytes=256 << 20, timeout_ms=0, poll=False, client="python"):
        options = _Options(client.encode(), staging_bytes, timeout_ms, int(poll))
        pointer = ctypes.c_void_p()
        _checked(
            _library().cgn_kv_connect(
                os.fsencode(path), namespace.encode(), ctypes.byref(options), ctypes.byref(pointer)
            )
        )
        self._handle = _Handle(pointer.value)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """No more calls. Leases that are still looked at stay, and keep the connection open."""
        self._handle = None

    @property
    def _kv(self):
        if self._handle is None:
            raise ValueError("the client is closed")
        return self._handle.pointer

    def lookup(self, names):
        """The tier, "ram" or "disk", of each leading block that is on the node."""
        joined, count = _joined(names)
        tiers = (ctypes.c_uint8 * count)()
        depth = _checked(_library().cgn_kv_lookup(self._kv, joined, count, tiers))
        return [_TIERS[tier] for tier in tiers[:depth]]

    def get(self, name, *, deadline_ms=0):
        """A lease on one block, or None."""
        return self.get_many([name], deadline_ms=deadline_ms)[0]

    def get_many(self, names, *, deadline_ms=0):
        """A lease or None for each name. A block that cannot be had now raises, and nothing is leased."""
        joined, count = _joined(names)
        blocks = (_Block * count)()
        _checked(_library().cgn_kv_get(self._kv, joined, count, deadline_ms, blocks))
        return self._leases(blocks)

    def poll_get(self, name):
        """As `get`, by shared memory and without sleeping; for a client made with poll=True."""
        joined, _ = _joined([name])
        block = _Block()
        _checked(_library().cgn_kv_poll_get(self._kv, joined, ctypes.byref(block)))
        return self._leases([block])[0]

    def _leases(self, blocks):
        failed = next((block.status for block in blocks if block.status < 0), 0)
        leases = [Lease(self._handle, block) if block.status == 1 else None for block in blocks]
        if failed:
            raise Error(failed, "a block cannot be had now")
        return leases

    def put(self, name, data, *, parent=None, label=b"", durable=False):
        """Stores one block: anything with a contiguous buffer."""
        source = memoryview(data).cast("B")
        new, kept = self._new(name, parent, label)
        memory = ctypes.c_void_p()
        _checked(_library().cgn_kv_reserve(self._kv, len(source), ctypes.byref(memory)))
        # Nothing between here and the put can fail: the lengths are the same.
        memoryview((ctypes.c_ubyte * len(source)).from_address(memory.value)).cast("B")[:] = source
        new.bytes, new.len = memory.value, len(source)
        result = ctypes.c_int32()
        _checked(_library().cgn_kv_put(self._kv, ctypes.byref(new), 1, int(durable), ctypes.byref(result)))
        del kept
        if result.value < 0:
            raise Error(result.value, "the block was not stored")

    def copy_in(self, blocks, *, durable=False):
        """Stores blocks from memory: (name, address, length in bytes, label, parent) of each; the parent is a
        name or None. 1 or a failure's code for each. The memory must be there, and must not change, until this
        returns."""
        handle, results = self._handle, (ctypes.c_int32 * len(blocks))()
        new, kept = (_New * len(blocks))(), []
        for at, (name, address, length, label, parent) in enumerate(blocks):
            new[at], held = self._new(name, parent, label)
            new[at].bytes, new[at].len = address, length
            kept.append(held)
        # A copy outside Python's lock, into staging memory, in as many turns as that needs.
        _checked(_library().cgn_kv_put(self._kv, new, len(blocks), int(durable), results))
        del kept, handle
        return list(results)

    def copy_out(self, names, places, *, deadline_ms=0):
        """Copies blocks to memory: (address, length in bytes) for each name. For each: COPIED, MISSING,
        OTHER_LENGTH when the block is not as long as its place, which is then left alone, or a failure's
        code."""
        handle, results = self._handle, []
        for start in range(0, len(names), _LEASED_MAX):
            joined, count = _joined(names[start : start + _LEASED_MAX])
            blocks = (_Block * count)()
            _checked(_library().cgn_kv_get(self._kv, joined, count, deadline_ms, blocks))
            leases = [block.lease for block in blocks if block.status == 1]
            for block, (address, length) in zip(blocks, places[start : start + _LEASED_MAX]):
                if block.status != 1:
                    results.append(block.status)
                elif block.len != length:
                    results.append(OTHER_LENGTH)
                else:
                    ctypes.memmove(address, block.bytes, length)
                    results.append(COPIED)
            released = (ctypes.c_uint64 * len(leases))(*leases)
            _checked(_library().cgn_kv_release(self._kv, released, len(leases)))
        del handle
        return results

    @staticmethod
    def _new(name, parent, label):
        kept = [_joined([name])[0], _joined([parent])[0] if parent is not None else None, bytes(label)]
        pointers = [
            ctypes.cast(ctypes.c_char_p(part), ctypes.c_void_p).value if part else None for part in kept
        ]
        return _New(pointers[0], pointers[1], None, 0, pointers[2], len(kept[2])), kept

    def pin(self, names, pinned=True):
        """Keeps blocks from eviction, or lets them go again; how many were there."""
        joined, count = _joined(names)
        return _checked(_library().cgn_kv_pin(self._kv, joined, count, int(pinned), None))

    def remove(self, names):
        """Forgets blocks; how many were there."""
        joined, count = _joined(names)
        return _checked(_library().cgn_kv_remove(self._kv, joined, count, None))

    def prefetch(self, names, deadline_ms):
        """Brings blocks into memory; how many are there or on their way."""
        joined, count = _joined(names)
        return _checked(_library().cgn_kv_prefetch(self._kv, joined, count, deadline_ms))

    def clear(self):
        """Forgets all blocks of the namespace; how many there were. For the daemon's own user or root."""
        return _checked(_library().cgn_kv_clear(self._kv))

    def stats(self):
        """The daemon's counters."""
        room = 64 << 10
        while True:
            out = ctypes.create_string_buffer(room)
            length = _checked(_library().cgn_kv_stats(self._kv, out, room))
            if length < room:
                break
            room = length + 1
        lines = (line.rsplit(" ", 1) for line in out.value.decode().splitlines())
        return {name: int(value) for name, value in lines}
