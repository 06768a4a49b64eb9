"""Stands in for the parts of SGLang that `cognitora_sglang.py` uses, written after its documentation: SGLang itself
cannot be installed without a GPU's libraries. Importing it makes `sglang` importable."""

import ctypes
import sys
import types
from abc import ABC, abstractmethod
from dataclasses import dataclass, field


@dataclass
class HiCacheStorageConfig:
    tp_rank: int = 0
    tp_size: int = 1
    pp_rank: int = 0
    pp_size: int = 1
    attn_cp_rank: int = 0
    attn_cp_size: int = 1
    is_mla_model: bool = False
    enable_storage_metrics: bool = True
    is_page_first_layout: bool = True
    model_name: str | None = "org/model"
    extra_config: dict | None = None
    dcp_size: int = 1
    dcp_rank: int = 0


@dataclass
class StorageMetrics:
    prefetch_pgs: list = field(default_factory=list)
    backup_pgs: list = field(default_factory=list)
    prefetch_bandwidth: list = field(default_factory=list)
    backup_bandwidth: list = field(default_factory=list)


class HiCacheStorage(ABC):
    def register_mem_pool_host(self, mem_pool_host):
        self.mem_pool_host = mem_pool_host

    @abstractmethod
    def get(self, key, target_location=None, target_sizes=None): ...

    @abstractmethod
    def batch_get(self, keys, target_locations=None, target_sizes=None): ...

    @abstractmethod
    def set(self, key, value=None, target_location=None, target_sizes=None): ...

    @abstractmethod
    def batch_set(self, keys, values=None, target_locations=None, target_sizes=None): ...

    @abstractmethod
    def exists(self, key): ...


class HostPool:
    """K of all pages, then V of all pages (of MLA only K); a page in one piece."""

    def __init__(self, pages, page_size, piece_bytes, *, is_mla=False, layout="page_first", dtype="bfloat16"):
        self.layout, self.dtype, self.page_size = layout, dtype, page_size
        self.pieces, self.pages, self.piece_bytes = 1 if is_mla else 2, pages, piece_bytes
        self.memory = bytearray(self.pieces * pages * piece_bytes)
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))

    def page(self, page):
        """The pieces of a page."""
        starts = [(piece * self.pages + page) * self.piece_bytes for piece in range(self.pieces)]
        return [self.memory[start : start + self.piece_bytes] for start in starts]

    def fill(self, page, number):
        for piece in range(self.pieces):
            start = (piece * self.pages + page) * self.piece_bytes
            pattern = (2 * number + piece).to_bytes(8, "little")
            self.memory[start : start + self.piece_bytes] = pattern * (self.piece_bytes // 8)

    def get_page_buffer_meta(self, indices):
        addresses = []
        for first in indices[:: self.page_size]:
            for piece in range(self.pieces):
                at = piece * self.pages + first // self.page_size
                addresses.append(self._start + at * self.piece_bytes)
        return addresses, [self.piece_bytes] * len(addresses)


def _install(path, **names):
    parts = path.split(".")
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        module = sys.modules.setdefault(name, types.ModuleType(name))
        module.__path__ = []
    for name, value in names.items():
        setattr(module, name, value)


_install("sglang.srt.mem_cache.hicache_storage", HiCacheStorage=HiCacheStorage)
_install("sglang.srt.observability.metrics_collector", StorageMetrics=StorageMetrics)
