"""`cognitora_sglang.py` as SGLang's HiCache calls it, with stand-ins for SGLang's classes."""

import hashlib
import unittest
from types import SimpleNamespace

from standin_sglang import HiCacheStorageConfig, HostPool

from cognitora_kv import Client
from cognitora_link import name_of
from cognitora_sglang import CognitoraHiCache, _namespace

from daemon import Daemon, until

PAGES, PAGE_SIZE, PIECE = 32, 16, 64 << 10


def key(number):
    return hashlib.sha256(number.to_bytes(8, "little")).hexdigest()


def keys(numbers):
    return [key(number) for number in numbers]


def indices(pages):
    """Of all tokens of some pages."""
    return [page * PAGE_SIZE + token for page in pages for token in range(PAGE_SIZE)]


class HiCacheTest(unittest.TestCase):
    def setUp(self):
        self.daemon = Daemon().start()
        self.addCleanup(self.daemon.close)

    def backend(self, *, v1=True, pool=None, extra=(), **config):
        given = {"socket": self.daemon.socket, "interface_v1": int(v1), **dict(extra)}
        backend = CognitoraHiCache(HiCacheStorageConfig(extra_config=given, **config), {})
        pool = pool or HostPool(PAGES, PAGE_SIZE, PIECE, is_mla=config.get("is_mla_model", False))
        backend.register_mem_pool_host(pool)
        return backend, pool

    def stored(self, numbers, **config):
        """A backend that has stored pages of the numbers' contents, and its pool."""
        backend, pool = self.backend(**config)
        for number in numbers:
            pool.fill(number, number)
        self.assertEqual(backend.batch_set_v1(keys(numbers), indices(numbers)), [True] * len(numbers))
        return backend, pool

    def test_pages_go_from_one_engine_to_another(self):
        _, written = self.stored(range(20))
        backend, read = self.backend()
        self.assertEqual(backend.batch_exists(keys([0, 1, 2, 30, 4])), 3)
        self.assertTrue(backend.exists(key(19)))
        self.assertFalse(backend.exists(key(20)))
        found = backend.batch_get_v1(keys([3, 30, 5]), indices([7, 8, 9]))
        self.assertEqual(found, [True, False, True])
        self.assertEqual(read.page(7), written.page(3))
        self.assertEqual(read.page(9), written.page(5))
        self.assertEqual(read.page(8), [bytes(PIECE)] * 2)

    def test_a_page_of_which_a_part_is_gone_is_no_hit(self):
        backend, _ = self.stored(range(3))
        namespace = self.namespace(backend)
        with Client(self.daemon.socket, namespace) as client:
            self.assertEqual(client.remove([name_of(f"{key(1)}_0_v".encode())]), 1)
        self.assertEqual(backend.batch_exists(keys(range(3))), 1)
        self.assertEqual(backend.batch_get_v1(keys(range(3)), indices(range(3))), [True, False, True])
        # Only what is missing is stored again.
        self.assertEqual(backend.batch_set_v1(keys(range(3)), indices(range(3))), [True] * 3)
        self.assertEqual(backend.batch_exists(keys(range(3))), 3)

    def test_of_a_prefix_that_does_not_fit_the_front_stays(self):
        backend, pool = self.backend(pool=HostPool(PAGES, PAGE_SIZE, 1 << 20))
        # Twice the daemon's memory.
        for start in range(0, 64, 16):
            info = SimpleNamespace(prefix_keys=keys(range(start)))
            backend.batch_set_v1(keys(range(start, start + 16)), indices(range(16)), info)
        self.assertGreaterEqual(backend.batch_exists(keys(range(64))), 8)
        self.assertLess(backend.batch_exists(keys(range(64))), 64)
        # Without being told what came before, the pages are stored all the same.
        self.assertEqual(backend.batch_set_v1(keys([100, 101]), indices([0, 1])), [True] * 2)
        info = SimpleNamespace(prefix_keys=[key(200)])
        self.assertEqual(backend.batch_set_v1(keys([201, 202]), indices([0, 1]), info), [True] * 2)
        self.assertEqual(backend.batch_exists(keys([201, 202])), 2)

    @staticmethod
    def namespace(backend):
        return _namespace(backend._config, backend._is_mla, backend._is_v1, backend.mem_pool_host)

    def test_ranks_have_objects_of_their_own(self):
        one, _ = self.stored([1], tp_rank=0, tp_size=2)
        other, _ = self.backend(tp_rank=1, tp_size=2)
        self.assertTrue(one.exists(key(1)))
        self.assertFalse(other.exists(key(1)))
        staged, _ = self.stored([2], tp_rank=0, tp_size=2, pp_rank=1, pp_size=2)
        self.assertEqual(staged._suffixes, ["_0_1_k", "_0_1_v"])

    def test_of_mla_rank_0_writes_for_all(self):
        first, written = self.backend(is_mla_model=True, tp_rank=0, tp_size=8)
        last, read = self.backend(is_mla_model=True, tp_rank=7, tp_size=8)
        self.assertEqual(first._suffixes, ["__k"])
        written.fill(1, 1)
        self.assertEqual(last.batch_set_v1([key(1)], indices([1])), [True])
        self.assertFalse(first.exists(key(1)))
        self.assertEqual(first.batch_set_v1([key(1)], indices([1])), [True])
        self.assertEqual(last.batch_get_v1([key(1)], indices([5])), [True])
        self.assertEqual(read.page(5), written.page(1))

    def test_without_v1_a_page_is_one_object(self):
        pool = HostPool(PAGES, PAGE_SIZE, PIECE, layout="layer_first")
        backend, _ = self.backend(v1=False, pool=pool)
        pages = [bytes([number]) * 5000 for number in range(3)]
        self.assertTrue(backend.batch_set(keys(range(3)), pages))
        self.assertTrue(backend.set(key(3), bytearray(b"three")))
        self.assertEqual(backend.batch_exists(keys(range(5))), 4)
        targets = [bytearray(5000) for _ in range(4)]
        found = backend.batch_get(keys([0, 2, 9, 1]), targets)
        self.assertEqual([target is not None for target in found], [True, True, False, True])
        self.assertIs(found[1], targets[1])
        self.assertEqual(targets, [pages[0], pages[2], bytes(5000), pages[1]])
        with self.assertLogs("cognitora.sglang", "ERROR"):
            self.assertIsNone(backend.get(key(3), bytearray(99)))
        target = bytearray(5)
        self.assertIs(backend.get(key(3), target), target)
        self.assertEqual(target, b"three")

    def test_what_is_no_page_is_refused_and_logged(self):
        backend, _ = self.backend(v1=False)
        with self.assertLogs("cognitora.sglang", "ERROR"):
            self.assertFalse(backend.set(key(1), 7))
        with self.assertLogs("cognitora.sglang", "ERROR"):
            self.assertEqual(backend.batch_get([key(1)], [object()]), [None])
        zero_copy, pool = self.backend()
        pool.pieces = 1
        with self.assertLogs("cognitora.sglang", "ERROR"):
            self.assertEqual(zero_copy.batch_set_v1([key(1)], indices([1])), [False])
        with self.assertRaisesRegex(ValueError, "page_first"):
            self.backend(pool=HostPool(PAGES, PAGE_SIZE, PIECE, layout="layer_first"))

    def test_pools_of_another_form_do_not_meet(self):
        self.stored([1])
        other, _ = self.backend(pool=HostPool(PAGES, PAGE_SIZE, PIECE // 2, dtype="float8_e4m3fn"))
        self.assertFalse(other.exists(key(1)))
        # Unless somebody says that they do: then the length tells.
        self.stored([1], extra={"namespace": "shared"})
        small = HostPool(PAGES, PAGE_SIZE, PIECE // 2)
        other, _ = self.backend(pool=small, extra={"namespace": "shared"})
        with self.assertLogs("cognitora.sglang", "ERROR"):
            self.assertEqual(other.batch_get_v1([key(1)], indices([1])), [False])
        self.assertEqual(small.page(1), [bytes(PIECE // 2)] * 2)

    def test_without_a_daemon_everything_is_a_miss_until_it_is_back(self):
        backend, pool = self.stored([1])
        self.daemon.kill()
        self.assertEqual(backend.batch_exists([key(1)]), 0)
        self.assertEqual(backend.batch_get_v1([key(1)], indices([1])), [False])
        self.assertEqual(backend.batch_set_v1([key(1)], indices([1])), [False])
        backend.clear()
        self.daemon.start()
        until(lambda: backend.batch_set_v1([key(1)], indices([1])) == [True])
        until(lambda: backend.batch_get_v1([key(1)], indices([2])) == [True])
        self.assertEqual(pool.page(2), pool.page(1))

    def test_a_clear_forgets_the_namespace_only(self):
        backend, _ = self.stored(range(5))
        other, _ = self.stored(range(5), model_name="org/other")
        backend.clear()
        self.assertEqual(backend.batch_exists(keys(range(5))), 0)
        self.assertEqual(other.batch_exists(keys(range(5))), 5)

    def test_stats_are_what_moved_since_the_last(self):
        backend, _ = self.stored(range(4))
        backend.batch_set_v1(keys(range(4)), indices(range(4)))
        backend.batch_get_v1(keys(range(3)), indices(range(3)))
        stats = backend.get_stats()
        self.assertEqual((stats.backup_pgs, stats.prefetch_pgs), ([4], [3]))
        self.assertTrue(all(pace > 0 for pace in stats.backup_bandwidth + stats.prefetch_bandwidth))
        self.assertEqual(backend.get_stats().prefetch_pgs, [])


unittest.main()
