"""The KV daemon as a secondary tier of vLLM's OffloadingConnector:

    {"type": "CognitoraTier", "module_path": "cognitora_vllm", "socket": "/run/cognitora/kv.sock"}

among the `secondary_tiers` of a TieringOffloadingSpec. Chunks go between vLLM's CPU tier and the daemon without a
copy of their own: this hands addresses to the native client.

Owns one thread, which does all that waits, and what is known of blocks that requests asked for. All of the class's
methods are for the scheduler's thread and return at once, but `drain_jobs` and `shutdown`, which must wait. Does not
touch GPUs, and decides nothing about what is offloaded.
"""

import ctypes
import logging
import time
from collections import deque

from cognitora_kv import COPIED, OTHER_LENGTH, PARENT_MISSING
from cognitora_link import SOCKET, TIMEOUT_MS, Link, name_of, namespace_of, present, store
from cognitora_worker import Worker

try:
    from vllm.v1.kv_offload.base import LookupResult, Medium, RequestOffloadingContext
    from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager

    _MISSING = None
except ImportError as error:
    SecondaryTierManager, _MISSING = object, error

logger = logging.getLogger("cognitora.vllm")

# Jobs that may wait, loads and stores each. vLLM pins the chunks of every one, so its CPU tier is the first bound.
JOBS_MAX = 1024
# What one turn of the thread moves, so that a lookup does not wait for a long store: a few milliseconds.
TURN_BYTES = 32 << 20
# Keys of blocks that were used where the daemon cannot see it, until it is told. More are dropped.
TOUCHED_MAX = 4096
# The end of vLLM's keys: the number of the group of layers.
GROUP_BYTES = 4

_COUNTERS = {
    "vllm:kv_offload_cognitora_failures": "Jobs that failed because the KV daemon was gone or refused them.",
    "vllm:kv_offload_cognitora_missing_chunks": "Chunks that were gone when they were to be loaded.",
    "vllm:kv_offload_cognitora_stored_chunks": "Chunks stored in the KV daemon.",
    "vllm:kv_offload_cognitora_loaded_chunks": "Chunks loaded from the KV daemon.",
    "vllm:kv_offload_cognitora_known_chunks": "Chunks not stored because the KV daemon had them.",
}
FAILURES, MISSING_CHUNKS, STORED, LOADED, KNOWN = _COUNTERS


class _Turns:
    """A job, done in turns of some chunks."""

    def __init__(self, tier, job):
        self.tier, self.job_id = tier, job.job_id
        self.keys = list(job.keys)
        self.chunk_ids = [int(chunk) for chunk in job.chunk_ids]
        self.at, self.good, self.moved_bytes = 0, [], 0
        self.start_s = None

    def step(self):
        """One turn; whether the job is done."""
        self.start_s = self.start_s or time.monotonic()
        if len(self.keys) != len(self.chunk_ids):
            raise ValueError(f"{len(self.keys)} keys and {len(self.chunk_ids)} chunks")
        keys = self.keys[self.at : self.at + self.tier.turn_chunks]
        places = [self.tier.place(chunk) for chunk in self.chunk_ids[self.at : self.at + len(keys)]]
        names = [name_of(key) for key in keys]
        self.move(keys, names, places)
        self.at += len(keys)
        if self.at < len(self.keys):
            return False
        self.end()
        return True

    def end(self):
        """Says how it went."""
        took_s = time.monotonic() - self.start_s if self.start_s else 0.0
        is_good = len(self.good) == len(self.keys)
        self.tier.finished.append(
            JobResult(
                job_id=self.job_id,
                success=is_good,
                successful_keys=None if is_good else tuple(self.good) or None,
                transfer_time=took_s,
                transfer_bytes=self.moved_bytes,
            )
        )

    def fail(self, reason):
        """No more turns: what was not done by now is not done."""
        self.tier.count(FAILURES, 1)
        logger.debug("job %s: %s", self.job_id, reason)
        self.end()


class _Store(_Turns):
    def __init__(self, tier, job):
        super().__init__(tier, job)
        self.context, self.parents = job.req_context, None

    def move(self, keys, names, places):
        if self.parents is None:
            self.parents = _parents(self.context)
        known = self.tier.link.ask(lambda client: present(client, names))
        new = [
            (name, address, length, key, self.parents.get(key))
            for key, name, (address, length), is_known in zip(keys, names, places, known)
            if not is_known
        ]
        results = self.tier.link.ask(lambda client: store(client, new)) if new else []
        for code in {code for code in results if code < 0 and code != PARENT_MISSING}:
            self.tier.say_once(f"the daemon refuses chunks: failure {code} of cognitora_kv.h")
        stored = iter(results)
        self.good += [key for key, is_known in zip(keys, known) if is_known or next(stored) == 1]
        self.tier.count(KNOWN, sum(known))
        self.tier.count(STORED, results.count(1))
        self.moved_bytes += results.count(1) * self.tier.chunk_bytes


class _Load(_Turns):
    def move(self, keys, names, places):
        results = self.tier.link.ask(lambda client: client.copy_out(names, places))
        if OTHER_LENGTH in results:
            self.tier.say_once("a block of another length: engines of one namespace must have the same layout")
        good = [key for key, result in zip(keys, results) if result == COPIED]
        self.good += good
        self.tier.count(LOADED, len(good))
        self.tier.count(MISSING_CHUNKS, len(keys) - len(good))
        self.moved_bytes += len(good) * self.tier.chunk_bytes


class _Probe:
    """Which of some keys the daemon has."""

    def __init__(self, tier, keys):
        self.tier, self.keys = tier, keys

    def step(self):
        names = [name_of(key) for key in self.keys]
        found = self.tier.link.ask(lambda client: present(client, names))
        self.tier.answers.append(list(zip(self.keys, found)))
        return True

    def fail(self, reason):
        """A block that cannot be asked for is not there."""
        logger.debug("lookup of %d blocks: %s", len(self.keys), reason)
        self.tier.answers.append([(key, False) for key in self.keys])


class _Touch:
    """Uses blocks that the daemon has in memory, for its eviction to see: nothing is copied."""

    def __init__(self, tier, keys):
        self.tier, self.names = tier, [name_of(key) for key in keys]

    def step(self):
        self.tier.link.ask(self._touch)
        return True

    def _touch(self, client):
        tiers = client.lookup(self.names)
        in_memory = [name for name, tier in zip(self.names, tiers) if tier == "ram"]
        client.copy_out(in_memory, [(0, 0)] * len(in_memory))

    def fail(self, reason):
        """It was only advice."""


class CognitoraTier(SecondaryTierManager):
    """The tier. `socket`: the daemon's, `kv.uds` in its configuration. `namespace`: instead of the one made from the
    model and the layout of its KV cache; all engines of a namespace must have the same. `staging_mib`: memory that
    chunks are stored through, beside vLLM's. `timeout_ms`: a daemon that takes longer is treated as gone."""

    # On the node, by shared memory; that some of it comes from NVMe or a neighbour is the daemon's business.
    medium = None if _MISSING else Medium.CPU

    def __init__(
        self,
        offloading_spec,
        primary_kv_view,
        tier_type,
        backpressure_detector=None,
        *,
        socket=SOCKET,
        namespace=None,
        staging_mib=128,
        timeout_ms=TIMEOUT_MS,
    ):
        if _MISSING:
            raise ImportError(f"vLLM with kv_offload tiering (0.32 or later) is needed: {_MISSING}") from _MISSING
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        if not primary_kv_view.c_contiguous or primary_kv_view.readonly:
            raise ValueError("vLLM's CPU tier is not one writable piece of memory: this version is not supported")
        self.chunk_bytes = primary_kv_view.strides[0]
        self._chunks = primary_kv_view.shape[0]
        # The address only: a view that is held would keep vLLM from giving the memory back.
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(primary_kv_view))
        self.turn_chunks = max(1, TURN_BYTES // self.chunk_bytes)
        namespace = namespace or _namespace(offloading_spec, self.chunk_bytes)
        staging_bytes = max(int(staging_mib) << 20, 2 * self.chunk_bytes)
        self.link = Link(socket, namespace, staging_bytes=staging_bytes, timeout_ms=timeout_ms, client="vllm")
        # Written by the thread, read by the scheduler's; an append and a pop are atomic.
        self.finished, self.answers = deque(), deque()
        self._job_keys, self._said = {}, set()
        self._known, self._asked_by, self._to_ask, self._touched = {}, {}, [], {}
        self._counts = dict.fromkeys(_COUNTERS, 0)
        self._worker = Worker("cognitora-vllm", JOBS_MAX)
        logger.info("chunks of %d bytes go to namespace %s of %s", self.chunk_bytes, namespace, socket)

    def place(self, chunk):
        """Where a chunk lies: address and length in bytes."""
        if not 0 <= chunk < self._chunks:
            raise ValueError(f"chunk {chunk} of {self._chunks}")
        return self._start + chunk * self.chunk_bytes, self.chunk_bytes

    def count(self, name, by):
        """From the thread only, but for `_take_counts`, which takes the whole dict."""
        self._counts[name] += by

    def say_once(self, text):
        """For the log; what goes wrong with one chunk goes wrong with thousands."""
        if text not in self._said:
            self._said.add(text)
            logger.error("%s", text)

    def lookup(self, key, req_context):
        self._take_answers()
        if key not in self._known:
            self._known[key] = [None, set()]
            self._to_ask.append(key)
        verdict, requests = self._known[key]
        requests.add(req_context.req_id)
        self._asked_by.setdefault(req_context.req_id, set()).add(key)
        if verdict is None:
            return LookupResult.RETRY
        return LookupResult.HIT if verdict else LookupResult.MISS

    def on_schedule_end(self, context):
        keys = [key for key in self._to_ask if key in self._known]
        self._to_ask = []
        if keys:
            self._worker.submit(_Probe(self, keys), is_urgent=True)
        if self._touched and self._worker.is_idle():
            self._worker.submit(_Touch(self, list(self._touched)), is_urgent=False)
            self._touched = {}

    def _take_answers(self):
        while self.answers:
            for key, found in self.answers.popleft():
                known = self._known.get(key)
                # A failed load knows better than a lookup before it.
                if known is not None and known[0] is None:
                    known[0] = found

    def on_new_request(self, req_context):
        return RequestOffloadingContext()

    def on_request_finished(self, req_context):
        for key in self._asked_by.pop(req_context.req_id, ()):
            requests = self._known[key][1]
            requests.discard(req_context.req_id)
            if not requests:
                del self._known[key]

    def touch(self, keys, req_context):
        for key in keys:
            if len(self._touched) >= TOUCHED_MAX:
                return
            self._touched[key] = None

    def submit_store(self, job_metadata):
        self._job_keys[job_metadata.job_id] = list(job_metadata.keys)
        self._worker.submit(_Store(self, job_metadata), is_urgent=False)

    def submit_load(self, job_metadata):
        self._job_keys[job_metadata.job_id] = list(job_metadata.keys)
        self._worker.submit(_Load(self, job_metadata), is_urgent=True)

    def get_finished_jobs(self):
        results = []
        while self.finished:
            result = self.finished.popleft()
            good = set(result.successful_keys or ())
            for key in self._job_keys.pop(result.job_id, ()):
                # Without this a request would find a block again that it failed to load, for ever, and would not
                # find one that was stored after it asked.
                if (known := self._known.get(key)) is not None:
                    known[0] = result.success or key in good
            results.append(result)
        return results

    def drain_jobs(self):
        self._worker.drain()

    def shutdown(self):
        self._worker.stop()
        self.link.close()

    @classmethod
    def build_metric_definitions(cls, extra_config):
        from vllm.v1.kv_offload.base import OffloadingCounterMetadata

        return {name: OffloadingCounterMetadata(documentation=text) for name, text in _COUNTERS.items()}

    def get_stats(self):
        from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats

        counts, self._counts = self._counts, dict.fromkeys(_COUNTERS, 0)
        stats = OffloadingConnectorStats()
        for name, count in counts.items():
            if count:
                stats.increase_counter(name, count)
        return stats


def _parents(context):
    """The name of the block before each in its prefix, for the daemon to evict a prefix from its end. By the
    positions that vLLM writes down for its own CPU tier; a version that does not has blocks without parents."""
    positions = dict(getattr(context, "_offload_key_positions", None) or {})
    parents, last = {}, {}
    for key in sorted(positions, key=positions.get):
        group = key[-GROUP_BYTES:]
        if (before := last.get(group)) is not None:
            parents[key] = name_of(before)
        last[group] = key
    return parents


def _namespace(spec, chunk_bytes):
    """By all that vLLM says a chunk's bytes depend on, as it names the folders of its own file system tier."""
    from vllm.v1.kv_offload.file_mapper import FileMapper

    mapper = FileMapper.from_offloading_spec(
        root_dir="", offloading_spec=spec, blocks_per_file=spec.blocks_per_chunk, parallel_agnostic=True
    )
    facts = (sorted(mapper.get_run_config().items(), key=str), mapper.rank, chunk_bytes)
    return namespace_of("vllm", spec.config.model.name, facts)
