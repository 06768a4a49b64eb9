"""`cognitora_vllm.py` as vLLM calls it, with vLLM's own classes where they can be imported."""

import importlib.util
import itertools
import types
import unittest

if importlib.util.find_spec("vllm") is None:
    import standin_vllm  # noqa: F401

from cognitora_vllm import FAILURES, JOBS_MAX, KNOWN, LOADED, MISSING_CHUNKS, STORED, CognitoraTier
from vllm.v1.kv_offload.base import LookupResult, ReqContext
from vllm.v1.kv_offload.tiering.base import TransferJob

from daemon import Daemon, until

CHUNK = 256 << 10
CHUNKS = 64
HIT, MISS, RETRY = LookupResult.HIT, LookupResult.MISS, LookupResult.RETRY


def key(number):
    """As vLLM makes it: a block's hash and the number of its group."""
    return number.to_bytes(32, "little") + bytes(4)


def contents(number, length=CHUNK):
    return number.to_bytes(8, "little") * (length // 8)


class Engine:
    """A tier and the memory of the tier above it, used as vLLM's manager does."""

    def __init__(self, socket, chunk_bytes=CHUNK, **options):
        self.memory = bytearray(CHUNKS * chunk_bytes)
        self.view = memoryview(self.memory).cast("B", (CHUNKS, chunk_bytes))
        self.chunk_bytes, self.jobs = chunk_bytes, itertools.count(1)
        # A name of its own for `**options`, as vLLM's factory passes what it does not know.
        options.setdefault("namespace", "test")
        self.tier = CognitoraTier(
            offloading_spec=None,
            primary_kv_view=self.view,
            tier_type="CognitoraTier",
            backpressure_detector=None,
            socket=socket,
            **options,
        )
        self.results = {}

    def chunk(self, number):
        return self.memory[number * self.chunk_bytes : (number + 1) * self.chunk_bytes]

    def fill(self, chunk, number):
        self.memory[chunk * self.chunk_bytes : (chunk + 1) * self.chunk_bytes] = contents(number, self.chunk_bytes)

    def submit(self, is_load, keys, chunks):
        job = TransferJob(next(self.jobs), keys, chunks, is_load, ReqContext("request"))
        (self.tier.submit_load if is_load else self.tier.submit_store)(job)
        return job.job_id

    def result(self, job_id):
        def finished():
            self.results.update((result.job_id, result) for result in self.tier.get_finished_jobs())
            return self.results.get(job_id)

        return until(finished)

    def store(self, numbers):
        """Stores blocks from the chunks of their numbers."""
        for number in numbers:
            self.fill(number, number)
        return self.result(self.submit(False, [key(number) for number in numbers], list(numbers)))

    def load(self, numbers, chunks):
        return self.result(self.submit(True, [key(number) for number in numbers], list(chunks)))

    def lookup(self, numbers, request="request"):
        """What each is once it is known; the first answer is to ask again."""
        context = ReqContext(request)
        first = {self.tier.lookup(key(number), context) for number in numbers}
        assert first == {RETRY}, first

        def answered():
            self.tier.on_schedule_end(None)
            results = [self.tier.lookup(key(number), context) for number in numbers]
            return None if RETRY in results else results

        results = until(answered)
        self.tier.on_request_finished(context)
        return results


class TierTest(unittest.TestCase):
    def setUp(self):
        self.daemon = Daemon()
        self.addCleanup(self.daemon.close)

    def engine(self, **options):
        engine = Engine(self.daemon.socket, **options)
        self.addCleanup(engine.tier.shutdown)
        return engine

    def test_what_is_stored_is_found_and_loaded_by_another_engine(self):
        self.daemon.start()
        one, other = self.engine(), self.engine()
        result = one.store(range(20))
        self.assertTrue(result.success)
        self.assertEqual(result.transfer_bytes, 20 * CHUNK)
        self.assertEqual(other.lookup([0, 19, 20, 5]), [HIT, HIT, MISS, HIT])
        self.assertTrue(other.load(range(20), range(40, 60)).success)
        for number in range(20):
            self.assertEqual(other.chunk(40 + number), contents(number))
        self.assertEqual(other.tier.get_stats().reduce(), {LOADED: 20})

    def test_what_is_there_is_not_stored_again(self):
        self.daemon.start()
        engine = self.engine()
        engine.store(range(3))
        result = engine.store(range(5))
        self.assertTrue(result.success)
        self.assertEqual(result.transfer_bytes, 2 * CHUNK)
        self.assertEqual(engine.tier.get_stats().reduce(), {STORED: 5, KNOWN: 3})
        self.assertTrue(engine.tier.get_stats().is_empty())

    def test_a_load_says_which_blocks_were_gone_and_they_are_a_miss_from_then_on(self):
        self.daemon.start()
        engine = self.engine()
        engine.store([1, 3])
        context = ReqContext("other request")
        for number in (1, 2, 3):
            engine.tier.lookup(key(number), context)
        # As if they had gone after the lookup.
        for number in (1, 2, 3):
            engine.tier._known[key(number)][0] = True
        result = engine.load([1, 2, 3], [11, 12, 13])
        self.assertFalse(result.success)
        self.assertEqual(set(result.successful_keys), {key(1), key(3)})
        self.assertEqual([engine.chunk(at) for at in (11, 13)], [contents(1), contents(3)])
        self.assertEqual(engine.chunk(12), bytes(CHUNK))
        found = [engine.tier.lookup(key(number), context) for number in (1, 2, 3)]
        self.assertEqual(found, [HIT, MISS, HIT])
        self.assertEqual(engine.tier.get_stats().reduce()[MISSING_CHUNKS], 1)

    def test_a_block_stored_after_a_request_asked_is_found_by_the_next(self):
        self.daemon.start()
        engine = self.engine()
        context = ReqContext("long request")
        engine.tier.lookup(key(1), context)

        def is_missing():
            engine.tier.on_schedule_end(None)
            return engine.tier.lookup(key(1), context) is MISS

        until(is_missing)
        engine.store([1])
        self.assertEqual(engine.tier.lookup(key(1), ReqContext("next")), HIT)

    def test_without_a_daemon_everything_is_a_miss_until_it_is_back(self):
        engine = self.engine()
        self.assertEqual(engine.lookup([1, 2]), [MISS, MISS])
        self.assertFalse(engine.store([1, 2]).success)
        result = engine.load([1, 2], [3, 4])
        self.assertFalse(result.success)
        self.assertIsNone(result.successful_keys)
        self.assertGreaterEqual(engine.tier.get_stats().reduce()[FAILURES], 2)
        self.daemon.start()
        until(lambda: engine.store([1, 2]).success)
        self.assertEqual(engine.lookup([1, 2]), [HIT, HIT])
        self.daemon.kill()
        self.assertEqual(engine.lookup([1, 2]), [MISS, MISS])
        self.assertFalse(engine.load([1, 2], [3, 4]).success)
        self.daemon.start()
        until(lambda: engine.store([1, 2]).success)
        self.assertTrue(engine.load([1, 2], [3, 4]).success)
        self.assertEqual(engine.chunk(4), contents(2))

    def test_blocks_of_another_size_are_a_miss(self):
        self.daemon.start()
        self.engine().store([1, 2])
        small = self.engine(chunk_bytes=CHUNK // 2)
        with self.assertLogs("cognitora.vllm", "ERROR"):
            result = small.load([1, 2], [3, 4])
        self.assertFalse(result.success)
        self.assertIsNone(result.successful_keys)
        self.assertEqual(small.chunk(3), bytes(CHUNK // 2))

    def test_chunks_larger_than_a_block_may_be_are_refused(self):
        self.daemon.start()
        large = self.engine(chunk_bytes=16 << 20)
        with self.assertLogs("cognitora.vllm", "ERROR") as logs:
            self.assertFalse(large.store([1]).success)
        self.assertIn("-2", logs.output[0])

    def test_a_chunk_outside_the_memory_fails_its_job(self):
        self.daemon.start()
        engine = self.engine()
        for chunks in ([CHUNKS], [-1], [1, 2]):
            with self.assertLogs("cognitora", "ERROR"):
                self.assertFalse(engine.result(engine.submit(False, [key(1)], chunks)).success)
            with self.assertLogs("cognitora", "ERROR"):
                self.assertFalse(engine.result(engine.submit(True, [key(1)], chunks)).success)

    def test_a_drain_ends_with_all_results(self):
        self.daemon.start()
        engine = self.engine()
        jobs = {engine.submit(False, [key(number)], [number]) for number in range(CHUNKS)}
        jobs |= {engine.submit(True, [key(number)], [number]) for number in range(CHUNKS)}
        engine.tier.drain_jobs()
        self.assertEqual({result.job_id for result in engine.tier.get_finished_jobs()}, jobs)

    def test_jobs_without_number_fail_instead_of_waiting(self):
        engine = self.engine()
        jobs = [engine.submit(False, [key(1)], [1]) for _ in range(3 * JOBS_MAX)]
        engine.tier.drain_jobs()
        results = list(engine.tier.get_finished_jobs())
        self.assertEqual(sorted(result.job_id for result in results), jobs)
        self.assertEqual({result.success for result in results}, {False})

    def test_after_the_end_no_job_is_open_and_the_memory_is_free(self):
        self.daemon.start()
        engine = self.engine()
        jobs = [engine.submit(False, [key(number)], [number]) for number in range(CHUNKS)]
        engine.tier.shutdown()
        jobs.append(engine.submit(True, [key(1)], [1]))
        for job in jobs:
            engine.result(job)
        engine.tier._primary_kv_view = None
        engine.view.release()
        engine.memory.clear()

    def test_used_blocks_stay_and_a_finished_request_leaves_nothing_behind(self):
        self.daemon.start()
        engine = self.engine()
        engine.store([1, 2, 3])
        engine.tier.touch([key(1), key(2), key(9), key(3)], ReqContext("request"))
        engine.tier.on_schedule_end(None)
        engine.tier.drain_jobs()
        self.assertEqual(engine.lookup([1, 2, 3, 9]), [HIT] * 3 + [MISS])
        self.assertEqual((engine.tier._known, engine.tier._asked_by, engine.tier._to_ask), ({}, {}, []))

    def test_what_was_loaded_and_touched_may_be_evicted(self):
        self.daemon.start()
        engine = self.engine(chunk_bytes=1 << 20)
        # As much as the daemon's memory; if its blocks stayed leased, there would be no room for others.
        engine.store(range(CHUNKS))
        engine.load(range(CHUNKS), range(CHUNKS))
        engine.tier.touch([key(number) for number in range(CHUNKS)], ReqContext("request"))
        engine.tier.on_schedule_end(None)
        engine.tier.drain_jobs()
        keys = [key(1000 + number) for number in range(8)]
        self.assertTrue(engine.result(engine.submit(False, keys, list(range(8)))).success)

    def test_of_a_prefix_that_does_not_fit_the_front_stays(self):
        self.daemon.start()
        engine = self.engine(chunk_bytes=1 << 20)
        context = ReqContext("long request")
        # Twice the daemon's memory, in a few jobs.
        for number in range(128):
            context.set_offload_key_position(key(number), 16 * (number + 1))
        for start in range(0, 128, 32):
            numbers = list(range(start, start + 32))
            job = TransferJob(next(engine.jobs), [key(n) for n in numbers], list(range(32)), False, context)
            engine.tier.submit_store(job)
            engine.result(job.job_id)
        found = engine.lookup(range(128))
        self.assertEqual(found[:16], [HIT] * 16)
        self.assertIn(MISS, found)

    def test_a_block_whose_parent_is_gone_is_stored_all_the_same(self):
        self.daemon.start()
        engine = self.engine()
        context = ReqContext("request")
        for number in range(8):
            context.set_offload_key_position(key(number), 16 * (number + 1))
        job = TransferJob(next(engine.jobs), [key(n) for n in (3, 4, 6, 7)], [3, 4, 6, 7], False, context)
        engine.tier.submit_store(job)
        self.assertTrue(engine.result(job.job_id).success)
        self.assertEqual(engine.lookup([3, 4, 5, 6, 7]), [HIT, HIT, MISS, HIT, HIT])

    def test_a_namespace_is_made_of_the_model_and_the_layout(self):
        self.daemon.start()
        names = set()
        for model, chunk_bytes in [("org/model", CHUNK), ("org/other", CHUNK), ("org/model", CHUNK // 2)]:
            spec = types.SimpleNamespace(
                blocks_per_chunk=1,
                config=types.SimpleNamespace(
                    groups=(),
                    model=types.SimpleNamespace(name=model, dtype="float16"),
                    cache=types.SimpleNamespace(tokens_per_hash=16),
                    parallel=types.SimpleNamespace(
                        tp_size=1, pp_size=1, pcp_size=1, dcp_size=1, rank=0, is_parallelism_agnostic=False
                    ),
                    canonical_layout=False,
                    replicated_layout=False,
                ),
            )
            from cognitora_vllm import _namespace

            names.add(_namespace(spec, chunk_bytes))
        self.assertEqual(len(names), 3)
        self.assertTrue(all(name.startswith("vllm/org/") for name in names))

    def test_metrics_are_declared(self):
        declared = CognitoraTier.build_metric_definitions({})
        self.assertEqual(set(declared), {FAILURES, MISSING_CHUNKS, STORED, LOADED, KNOWN})


unittest.main()
