"""vLLM's own tiering manager, factory and shared memory over the plug-in and a real daemon. What is left out is the
worker that copies between a GPU and the CPU tier: there is none here, so this writes and reads the CPU tier itself."""

import itertools
import os
import uuid

from vllm.v1.kv_offload.base import LookupResult, ReqContext, ScheduleEndContext, make_offload_key
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec

from daemon import Daemon, until

BLOCK_BYTES, BLOCKS_PER_CHUNK, CHUNKS = 64 << 10, 4, 64


def key(number):
    return make_offload_key(number.to_bytes(32, "little"), 0)


class Engine:
    def __init__(self, socket):
        extra = {
            "cpu_bytes_to_use": CHUNKS * BLOCK_BYTES * BLOCKS_PER_CHUNK,
            "secondary_tiers": [{"type": "CognitoraTier", "module_path": "cognitora_vllm", "socket": socket}],
        }
        parallel = OffloadingParallelConfig(
            rank=0,
            world_size=1,
            tp_size=1,
            pp_size=1,
            pcp_size=1,
            dcp_size=1,
            data_parallel_index=0,
            data_parallel_size=1,
            data_parallel_rank_local=None,
            is_parallelism_agnostic=True,
        )
        config = OffloadingConfig(
            groups=(OffloadingGroupConfig(tokens_per_block=16, layer_names=("layer.0",), group_id=0),),
            worker_kv_bytes_per_block=BLOCK_BYTES,
            enable_kv_cache_events=False,
            extra_config=extra,
            engine_id=f"cognitora-test-{uuid.uuid4().hex}",
            model=OffloadingModelConfig(name="org/model", dtype="float16"),
            cache=OffloadingCacheConfig(tokens_per_hash=16, blocks_per_chunk=BLOCKS_PER_CHUNK),
            parallel=parallel,
        )
        # What vLLM does at its start, for the metrics' names.
        assert any("cognitora" in name for name in TieringOffloadingSpec.build_metric_definitions(extra))
        self.manager = TieringOffloadingSpec(config).get_manager()
        self.view = self.manager.primary_tier.get_kv_memoryview()

    def chunk(self, chunk):
        start = int(chunk) * self.view.strides[0]
        return self.view.cast("B")[start : start + self.view.strides[0]]

    def step(self):
        self.manager.on_schedule_end(ScheduleEndContext(new_req_ids=(), preempted_req_ids=()))

    def store(self, numbers):
        request = ReqContext(req_id=uuid.uuid4().hex)
        self.manager.on_new_request(request)
        output = self.manager.prepare_store([key(number) for number in numbers], request)
        for number, chunk in zip(numbers, output.store_spec.block_ids):
            self.chunk(chunk)[:] = bytes([number % 256]) * self.view.strides[0]
        self.manager.complete_store(output.keys_to_store, request)
        self.manager.on_request_finished(request)
        self.step()
        self.manager.secondary_tiers[0].drain_jobs()
        self.step()

    def found(self, numbers):
        """Those of the leading blocks that could be brought into the CPU tier."""
        request = ReqContext(req_id=uuid.uuid4().hex)
        self.manager.on_new_request(request)

        def settled():
            results = [self.manager.lookup(key(number), request) for number in numbers]
            self.step()
            return None if {LookupResult.RETRY, LookupResult.HIT_PENDING} & set(results) else results

        results = until(settled)
        hits = [number for number, result in zip(numbers, results) if result is LookupResult.HIT]
        spec = self.manager.prepare_load([key(number) for number in hits], request)
        contents = [bytes(self.chunk(chunk)) for chunk in spec.block_ids]
        self.manager.complete_load([key(number) for number in hits], request)
        self.manager.on_request_finished(request)
        assert contents == [bytes([number % 256]) * self.view.strides[0] for number in hits]
        return hits


def main():
    daemon = Daemon().start()
    one, other = Engine(daemon.socket), Engine(daemon.socket)
    one.store(range(20))
    assert other.found([0, 1, 2, 19, 40]) == [0, 1, 2, 19]
    counts = other.manager.get_stats().reduce()
    assert counts["vllm:kv_offload_cognitora_loaded_chunks"] == 4, counts

    daemon.kill()
    assert other.found([5, 6]) == []
    one.store([30])
    assert one.found([30]) == [30]
    daemon.start()
    # What was not stored while the daemon was gone is stored no more; what comes after is.
    numbers = itertools.count(100)

    def is_shared():
        one.store([at := next(numbers)])
        return other.found([at])

    stored = until(is_shared)
    # What the CPU tier forgets, the daemon still has.
    one.manager.reset_cache()
    assert one.found(stored) == stored
    for engine in (one, other):
        path = engine.manager.primary_tier._mmap_region.mmap_path
        engine.view = None
        engine.manager.shutdown()
        if os.path.exists(path):
            os.unlink(path)
    daemon.close()
    print("tiered through the daemon")


main()
