"""Uses every call of cognitora_kv.py against the daemon whose socket is named."""

import array
import ctypes
import sys

from cognitora_kv import COPIED, MISSING, OTHER_LENGTH, PARENT_MISSING, Client, Error


def name(number):
    return bytes([number]) * 32


def fails_with(code, call):
    try:
        call()
    except Error as error:
        assert error.code == code, error
    else:
        raise AssertionError("it did not fail")


def main(path):
    fails_with(-101, lambda: Client("/nowhere/kv.sock", "python"))
    data = bytes(range(256)) * 1000
    with Client(path, "python", staging_bytes=4 << 20, timeout_ms=60_000, poll=True) as kv:
        kv.put(name(1), data, label=b"label")
        kv.put(name(2), array.array("I", [1, 2, 3]), parent=name(1))
        fails_with(-4, lambda: kv.put(name(3), b"x", parent=name(9)))
        fails_with(-105, lambda: kv.put(name(3), bytes(5 << 20)))
        fails_with(-19, lambda: kv.put(name(4), b"x", durable=True))
        assert kv.lookup([name(1), name(2), name(3)]) == ["ram", "ram"]

        with kv.get(name(1)) as lease:
            assert lease.view == data and lease.view.readonly and len(lease) == len(data)
            try:
                lease.view[0] = 1
            except TypeError:
                pass
            else:
                raise AssertionError("the daemon's memory could be written")
        assert kv.get(name(3)) is None
        one, two, none = kv.get_many([name(1), name(2), name(3)])
        assert none is None and bytes(two) == array.array("I", [1, 2, 3]).tobytes()
        assert bytes(kv.poll_get(name(1))) == data
        assert kv.poll_get(name(3)) is None

        # A slice outlives its lease's view, and keeps the block.
        part = one.view[256:512]
        one.release()
        assert part == bytes(range(256))

        assert kv.pin([name(1), name(3)]) == 1
        assert kv.pin([name(1)], pinned=False) == 1
        assert kv.prefetch([name(1), name(2), name(3)], 60_000) == 2
        assert kv.stats()['cgn_kvcached_connections{door="native"}'] == 1
        assert kv.remove([name(2), name(3)]) == 1

        memory = bytearray(data) + bytearray(len(data))
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        stored = [(name(5), start, len(data), b"label", None), (name(6), start, 100, b"", name(5))]
        assert kv.copy_in([*stored, (name(7), start, 1, b"", name(9))]) == [1, 1, PARENT_MISSING]
        places = [(start + len(data), len(data)), (start, 1), (start, 99), (start, 1)]
        found = kv.copy_out([name(5), name(7), name(6), name(8)], places)
        assert found == [COPIED, MISSING, OTHER_LENGTH, MISSING]
        assert memory == data + data
        # More than is leased at once.
        assert kv.copy_out([name(5)] * 200, [(start, len(data))] * 200) == [COPIED] * 200
        try:
            kv.get(b"short")
        except ValueError:
            pass
        else:
            raise AssertionError("a short name was taken")
        kv.remove([name(4)])
        assert kv.clear() == 3 and kv.lookup([name(1)]) == []
    # The client is closed; what is still looked at is still there.
    assert part == bytes(range(256))
    assert two.view[0] == 1
    try:
        kv.lookup([name(1)])
    except ValueError:
        pass
    else:
        raise AssertionError("a closed client answered")


main(sys.argv[1])
