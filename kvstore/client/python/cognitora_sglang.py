"""The KV daemon as a storage backend of SGLang's HiCache:

    --enable-hierarchical-cache --hicache-mem-layout page_first --hicache-storage-backend dynamic
    --hicache-storage-backend-extra-config '{"backend_name": "cognitora", "module_path": "cognitora_sglang",
      "class_name": "CognitoraHiCache", "interface_v1": 1, "socket": "/run/cognitora/kv.sock"}'

Pages go between SGLang's host pool and the daemon without a copy of their own. A page is one object for K and one
for V of each rank; of MLA it is one, the same for all ranks, which rank 0 writes. Without `interface_v1` a page is one
object, copied by SGLang.

Owns two connections, one for each of HiCache's threads. Nothing here raises after the start: SGLang does not start
those threads again, so what fails is a miss. Pools beside the KV pool (the `_v2` calls) are not supported.
"""

import ctypes
import logging
import time

from cognitora_kv import COPIED, OTHER_LENGTH, PARENT_MISSING, Error
from cognitora_link import SOCKET, TIMEOUT_MS, Down, Link, name_of, namespace_of, present, store

try:
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorage

    _MISSING = None
except ImportError as error:
    HiCacheStorage, _MISSING = object, error

logger = logging.getLogger("cognitora.sglang")

# Transfers whose sizes and paces are kept until SGLang asks; it asks every few seconds.
KEPT_MAX = 1024
# Of this one a page is as many pieces of memory as there are layers.
SCATTERED_LAYOUT = "layer_first"


class CognitoraHiCache(HiCacheStorage):
    """The backend. Of the extra config: `socket`: the daemon's, `kv.uds` in its configuration. `namespace`: instead of
    the one made from the model and the pool; all engines of a namespace must have the same layout. `staging_mib`:
    memory that pages are stored through. `timeout_ms`: a daemon that takes longer is treated as gone."""

    def __init__(self, storage_config, kwargs=None):
        if _MISSING:
            raise ImportError(f"SGLang with HiCache is needed: {_MISSING}") from _MISSING
        self._config = storage_config
        self._extra = {**(storage_config.extra_config or {}), **(kwargs or {})}
        self._is_v1 = bool(self._extra.get("interface_v1"))
        self._is_mla = bool(storage_config.is_mla_model)
        self._is_writer = not self._is_mla or storage_config.tp_rank == 0
        self._suffixes = _suffixes(storage_config, self._is_mla, self._is_v1)
        self._prefetched, self._backed_up = [], []
        self._said = set()
        self._link(None)

    def _link(self, pool):
        """Connections to the namespace of this model and pool, made when they are first used."""
        namespace = self._extra.get("namespace") or _namespace(self._config, self._is_mla, self._is_v1, pool)
        socket = self._extra.get("socket", SOCKET)
        timeout_ms = int(self._extra.get("timeout_ms", TIMEOUT_MS))
        staging_bytes = int(self._extra.get("staging_mib", 128)) << 20
        self._reads = Link(socket, namespace, staging_bytes=0, timeout_ms=timeout_ms, client="sglang")
        self._writes = Link(socket, namespace, staging_bytes=staging_bytes, timeout_ms=timeout_ms, client="sglang")
        logger.info("pages go to namespace %s of %s", namespace, socket)

    def register_mem_pool_host(self, mem_pool_host):
        layout = getattr(mem_pool_host, "layout", None)
        if self._is_v1 and layout == SCATTERED_LAYOUT:
            raise ValueError(
                f"host pool of layout {layout}: start SGLang with --hicache-mem-layout page_first, or leave "
                "interface_v1 out of the extra config"
            )
        self.mem_pool_host = mem_pool_host
        self._link(mem_pool_host)

    # One object a page, for a host pool whose pages are not one piece.

    def get(self, key, target_location=None, target_sizes=None):
        return self.batch_get([key], None if target_location is None else [target_location])[0]

    def batch_get(self, keys, target_locations=None, target_sizes=None):
        if target_locations is None:
            return [self._get_new(key) for key in keys]
        places, kept = self._places(target_locations)
        if places is None:
            return [None] * len(keys)
        results = self._copy_out(self._labels(keys), places)
        del kept
        return [target if result == COPIED else None for target, result in zip(target_locations, results)]

    def _get_new(self, key):
        """A page of unknown length, as a tensor of bytes."""
        import torch

        lease = self._asked(self._reads, lambda client: client.get(name_of(self._labels([key])[0])), None)
        return None if lease is None else torch.frombuffer(bytearray(lease.view), dtype=torch.uint8)

    def set(self, key, value=None, target_location=None, target_sizes=None):
        return self.batch_set([key], [target_location if value is None else value])

    def batch_set(self, keys, values=None, target_locations=None, target_sizes=None):
        places, kept = self._places(target_locations if values is None else values)
        if places is None or len(places) != len(keys):
            return False
        is_good = all(self._copy_in(self._labels(keys), places, None))
        del kept
        return is_good

    def exists(self, key):
        return self.batch_exists([key]) == 1

    def batch_exists(self, keys, extra_info=None):
        names = [name_of(label) for label in self._labels(keys)]
        depth = self._asked(self._reads, lambda client: len(client.lookup(names)), 0)
        return depth // len(self._suffixes)

    # K and V of a page, where they lie in the host pool.

    def batch_get_v1(self, keys, host_indices, extra_info=None):
        places = self._pool_places(keys, host_indices)
        if places is None:
            return [False] * len(keys)
        results = self._copy_out(self._labels(keys), places)
        return self._by_page([result == COPIED for result in results])

    def batch_set_v1(self, keys, host_indices, extra_info=None):
        places = self._pool_places(keys, host_indices)
        if places is None:
            return [False] * len(keys)
        before = (getattr(extra_info, "prefix_keys", None) or [None])[-1]
        return self._by_page(self._copy_in(self._labels(keys), places, before))

    def _pool_places(self, keys, host_indices):
        addresses, lengths = self.mem_pool_host.get_page_buffer_meta(host_indices)
        expected = len(keys) * len(self._suffixes)
        if len(addresses) != expected or len(lengths) != expected:
            self._say_once(f"{len(addresses)} pieces of memory for {expected} objects: nothing is stored or loaded")
            return None
        return [(int(address), int(length)) for address, length in zip(addresses, lengths)]

    def _by_page(self, results):
        per_page = len(self._suffixes)
        return [all(results[at : at + per_page]) for at in range(0, len(results), per_page)]

    # What both are made of.

    def _labels(self, keys):
        return [f"{key}{suffix}".encode() for key in keys for suffix in self._suffixes]

    def _places(self, values):
        """Addresses and lengths, and what must be kept while they are used."""
        try:
            kept = [_memory(value) for value in values]
        except (TypeError, ValueError, BufferError) as error:
            self._say_once(f"a page that cannot be stored or loaded: {error}")
            return None, None
        return [(address, length) for address, length, _ in kept], kept

    def _copy_out(self, labels, places):
        names, start_s = [name_of(label) for label in labels], time.monotonic()
        missing = [0] * len(names)
        results = self._asked(self._reads, lambda client: client.copy_out(names, places), missing)
        if OTHER_LENGTH in results:
            self._say_once("a block of another length: engines of one namespace must have the same layout")
        lengths = [length for (_, length), result in zip(places, results) if result == COPIED]
        self._note(self._prefetched, lengths, start_s)
        return results

    def _copy_in(self, labels, places, before):
        """Stores the objects of consecutive pages of a prefix, the first after page `before`, if that is known."""
        if not self._is_writer:
            return [True] * len(labels)
        start_s = time.monotonic()
        first = self._labels([before]) if before else [None] * len(self._suffixes)
        parents = [label and name_of(label) for label in [*first, *labels]]
        stored, lengths = self._asked(self._writes, lambda client: _store(client, labels, places, parents), (None, []))
        self._note(self._backed_up, lengths, start_s)
        if stored is None:
            return [False] * len(labels)
        for code in {code for code in stored if code < 0 and code != PARENT_MISSING}:
            self._say_once(f"the daemon refuses a page: failure {code} of cognitora_kv.h")
        return [code == 1 for code in stored]

    def _asked(self, link, call, otherwise):
        try:
            return link.ask(call)
        except Down:
            return otherwise
        except Error as error:
            self._say_once(str(error))
            return otherwise

    def _say_once(self, text):
        if text not in self._said and len(self._said) < KEPT_MAX:
            self._said.add(text)
            logger.error("%s", text)

    def _note(self, transfers, lengths, start_s):
        if lengths and self._config.enable_storage_metrics and len(transfers) < KEPT_MAX:
            took_s = max(time.monotonic() - start_s, 1e-9)
            transfers.append((len(lengths) // len(self._suffixes), sum(lengths) / (1 << 30) / took_s))

    def get_stats(self):
        """Pages and GiB/s of each transfer since the last call, where SGLang collects them."""
        try:
            from sglang.srt.observability.metrics_collector import StorageMetrics
        except ImportError:
            return None
        read, self._prefetched = self._prefetched, []
        written, self._backed_up = self._backed_up, []
        stats = StorageMetrics()
        stats.prefetch_pgs = [pages for pages, _ in read]
        stats.prefetch_bandwidth = [pace for _, pace in read]
        stats.backup_pgs = [pages for pages, _ in written]
        stats.backup_bandwidth = [pace for _, pace in written]
        return stats

    def clear(self):
        """Forgets the namespace; the daemon lets its own user and root do so."""
        self._asked(self._writes, lambda client: client.clear(), None)


def _store(client, labels, places, parents):
    """1 or a failure for each object, and the lengths of those that were not there before."""
    names = [name_of(label) for label in labels]
    known = present(client, names)
    new = [
        (name, address, length, label, parent)
        for name, (address, length), label, parent, is_known in zip(names, places, labels, parents, known)
        if not is_known
    ]
    codes = store(client, new) if new else []
    lengths = [block[2] for block, code in zip(new, codes) if code == 1]
    left = iter(codes)
    return [1 if is_known else next(left) for is_known in known], lengths


def _memory(value):
    """Address and length of a tensor on the CPU or of anything with a buffer, and what keeps it there."""
    if hasattr(value, "data_ptr"):
        if value.device.type != "cpu" or not value.is_contiguous():
            raise ValueError("a tensor that is not in one piece of the CPU's memory")
        return value.data_ptr(), value.numel() * value.element_size(), value
    view = memoryview(value).cast("B")
    array = ctypes.c_char * len(view)
    held = array.from_buffer_copy(view) if view.readonly else array.from_buffer(view)
    return ctypes.addressof(held), len(view), held


def _suffixes(config, is_mla, is_v1):
    """Of the objects of a page, in the order of the host pool's pieces: `<hash>_<rank>[_<pp rank>]_k` and `_v`, of MLA
    `<hash>_[<pp rank>]_k`."""
    stage = f"{config.pp_rank}" if config.pp_size > 1 else ""
    rank = stage if is_mla else f"{config.tp_rank}" + (f"_{stage}" if stage else "")
    for slices, own in (("attn_cp_size", "attn_cp_rank"), ("dcp_size", "dcp_rank")):
        # Ranks of a context-parallel group hold different parts of a page.
        if (getattr(config, slices, 1) or 1) > 1:
            rank += f"_{own[:-5]}{getattr(config, own)}"
    if not is_v1:
        return [f"_{rank}"]
    return [f"_{rank}_k"] if is_mla else [f"_{rank}_k", f"_{rank}_v"]


def _namespace(config, is_mla, is_v1, pool):
    """By all that a page's bytes depend on: the model, how it is cut up, and the pool's own form."""
    facts = (
        ("tp", None if is_mla else config.tp_size),
        ("pp", config.pp_size),
        ("cp", getattr(config, "attn_cp_size", 1), getattr(config, "dcp_size", 1)),
        ("mla", is_mla),
        ("v1", is_v1),
        *((part, str(getattr(pool, part, ""))) for part in ("layout", "dtype", "page_size")),
    )
    return namespace_of("sglang", config.model_name or "", facts)
