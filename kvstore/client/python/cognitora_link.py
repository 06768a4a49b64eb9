"""A connection to the KV daemon for an engine's plug-in: made when it is first needed, and made again when it
was lost, with growing pauses. While there is none, every call fails at once with `Down` and the engine goes on.

Owns the connection, and what the plug-ins have in common: names of blocks, and which of many are there. Does not
know engines.
"""

import hashlib
import logging
import threading
import time

import cognitora_kv
from cognitora_kv import NAME_BYTES, PARENT_MISSING, Client, Error

logger = logging.getLogger("cognitora")

SOCKET = "/run/cognitora/kv.sock"
# Between tries to connect: soon enough that a restarted daemon is used again before anybody looks, and not so
# often that a missing one costs anything.
PAUSE_S_MIN = 0.1
PAUSE_S_MAX = 10.0
# A daemon that does not answer for so long is treated as gone. Blocks take microseconds, from disk milliseconds.
TIMEOUT_MS = 5_000
# Holes in a list of names that `present` looks behind, each a round trip.
HOLES_MAX = 64
# The daemon's longest namespace, in bytes.
NAMESPACE_BYTES_MAX = 256
# draining, no daemon, connection broken, nonsense, no answer
_LOST = {-6, -101, -102, -103, -104}
_BROKEN = -102


class Down(Exception):
    """There is no connection now."""


def name_of(key):
    """The daemon's name for an engine's key of any length."""
    return hashlib.blake2b(key, digest_size=NAME_BYTES).digest()


def namespace_of(engine, model, facts):
    """A namespace that no block of other contents can get into: it ends in a digest of `facts`, all that the
    bytes of a block depend on beside its key."""
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()
    model = "".join(char if char.isprintable() else "_" for char in str(model))
    room = NAMESPACE_BYTES_MAX - len(engine) - len(digest) - 2
    model = model.encode()[:room].decode(errors="ignore")
    return f"{engine}/{model}/{digest}"


def present(client, names):
    """Which of `names` are on the node. The daemon says how many in front are, so a hole is one more question;
    what lies behind very many holes counts as missing."""
    found = []
    for _ in range(HOLES_MAX):
        found += [True] * len(client.lookup(names[len(found) :]))
        if len(found) == len(names):
            return found
        found.append(False)
        if len(found) == len(names):
            return found
    return found + [False] * (len(names) - len(found))


def store(client, blocks):
    """Puts blocks as `copy_in` takes them, in the order of their prefixes. One whose parent is not there any more
    begins a chain of its own: it may still be of use. PARENT_MISSING is left for the end of a prefix that does not
    fit: there the block before is what the daemon takes to make room."""
    codes = client.copy_in(blocks)
    refused = [at for at, code in enumerate(codes) if code == PARENT_MISSING]
    if not refused:
        return codes
    again, names = [], set()
    for name, address, length, label, parent in (blocks[at] for at in refused):
        again.append((name, address, length, label, parent if parent in names else None))
        names.add(name)
    for at, code in zip(refused, client.copy_in(again)):
        codes[at] = code
    return codes


class Link:
    """Threads may share it; their calls go one after the other."""

    def __init__(
        self, socket, namespace, *, staging_bytes, timeout_ms=TIMEOUT_MS, client="python", clock=time.monotonic
    ):
        try:
            cognitora_kv._library()
        except OSError as error:
            raise ImportError(
                f"the native client's library cannot be loaded ({error}): put libkvclient.so beside "
                "cognitora_kv.py, or name it in the environment variable COGNITORA_KV_LIB"
            ) from error
        self._connect = lambda: Client(
            socket, namespace, staging_bytes=staging_bytes, timeout_ms=timeout_ms, client=client
        )
        self._socket, self._clock = socket, clock
        self._lock = threading.Lock()
        self._client = None
        self._pause_s, self._not_before_s = 0.0, 0.0
        # How often the daemon was found gone.
        self.losses = 0

    def ask(self, call):
        """The result of `call(client)`. `Down` when there is no daemon; `Error` when it says no."""
        client = self._connected()
        try:
            return self._answered(client, call)
        except Error as error:
            if error.code != _BROKEN:
                raise Down(str(error)) if error.code in _LOST else error
        # A connection that broke is often a daemon that was started again.
        client = self._connected()
        try:
            return self._answered(client, call)
        except Error as error:
            raise Down(str(error)) if error.code in _LOST else error

    def _answered(self, client, call):
        try:
            answer = call(client)
        except Error as error:
            if error.code in _LOST:
                self._lost(client, error)
            raise
        self._pause_s = 0.0
        return answer

    def _connected(self):
        with self._lock:
            if self._client is not None:
                return self._client
            if self._clock() < self._not_before_s:
                raise Down("waiting to connect again")
            try:
                self._client = self._connect()
            except Error as error:
                self._wait(error)
                raise Down(str(error)) from error
            logger.info("KV daemon at %s: connected", self._socket)
            return self._client

    def _lost(self, client, error):
        with self._lock:
            if self._client is not client:
                return
            # Not closed: another thread may be in a call. It goes with the last of them.
            self._client = None
            self.losses += 1
            if error.code == _BROKEN:
                logger.warning("KV daemon at %s: %s", self._socket, error)
            else:
                self._wait(error)

    def _wait(self, error):
        if not self._pause_s:
            logger.warning("KV daemon at %s: %s; going on without it", self._socket, error)
        self._pause_s = min(max(2 * self._pause_s, PAUSE_S_MIN), PAUSE_S_MAX)
        self._not_before_s = self._clock() + self._pause_s

    def close(self):
        """Lets go of the connection; the next call makes a new one."""
        with self._lock:
            self._client = None
