"""Stands in for the parts of vLLM (0.32) that `cognitora_vllm.py` uses, for machines without it: the same names,
fields and constructor, written after its documentation. Importing it makes `vllm` importable."""

import enum
import sys
import time
import types
from abc import ABC, abstractmethod
from dataclasses import dataclass, field


class Medium(enum.Enum):
    CPU = "CPU"
    STORAGE = "STORAGE"


class LookupResult(enum.Enum):
    MISS = enum.auto()
    HIT = enum.auto()
    HIT_PENDING = enum.auto()
    RETRY = enum.auto()


@dataclass
class RequestOffloadingContext:
    policy: str = "chunk_level"


@dataclass
class ReqContext:
    req_id: str
    _offload_key_positions: dict = field(default_factory=dict, init=False)

    def set_offload_key_position(self, key, end_token):
        self._offload_key_positions[key] = end_token


@dataclass(frozen=True)
class OffloadingCounterMetadata:
    documentation: str
    labelnames: tuple = ()


@dataclass
class TransferJob:
    job_id: int
    keys: list
    chunk_ids: list
    is_promotion: bool
    req_context: ReqContext
    submit_time: float = field(default_factory=time.monotonic)


@dataclass
class JobResult:
    job_id: int
    success: bool
    successful_keys: tuple | None = None
    transfer_time: float | None = None
    transfer_bytes: int | None = None


class SecondaryTierManager(ABC):
    medium = None

    def __init__(self, offloading_spec, primary_kv_view, tier_type, backpressure_detector=None):
        self._offloading_spec = offloading_spec
        self._primary_kv_view = primary_kv_view
        self._block_size_bytes = primary_kv_view.strides[0]
        self.tier_type = tier_type
        self.locality = None
        self._bp_detector = backpressure_detector

    @abstractmethod
    def lookup(self, key, req_context): ...

    @abstractmethod
    def submit_store(self, job_metadata): ...

    @abstractmethod
    def submit_load(self, job_metadata): ...

    @abstractmethod
    def get_finished_jobs(self): ...

    @abstractmethod
    def on_new_request(self, req_context): ...

    @abstractmethod
    def drain_jobs(self): ...


class OffloadingConnectorStats:
    def __init__(self):
        self.data = {}

    def is_empty(self):
        return not self.data

    def increase_counter(self, name, by=1, labelvalues=()):
        self.data[name] = self.data.get(name, 0) + by

    def reduce(self):
        return dict(self.data)


class FileMapper:
    def __init__(self, fields, rank):
        self._fields, self.rank = fields, rank

    @classmethod
    def from_offloading_spec(cls, root_dir, offloading_spec, blocks_per_file=1, parallel_agnostic=False):
        return cls({"model_name": offloading_spec.config.model.name, "blocks_per_file": blocks_per_file}, 0)

    def get_run_config(self):
        return dict(self._fields)


def _install(path, **names):
    parts = path.split(".")
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        module = sys.modules.setdefault(name, types.ModuleType(name))
        module.__path__ = []
    for name, value in names.items():
        setattr(module, name, value)


_install(
    "vllm.v1.kv_offload.base",
    LookupResult=LookupResult,
    Medium=Medium,
    OffloadingCounterMetadata=OffloadingCounterMetadata,
    ReqContext=ReqContext,
    RequestOffloadingContext=RequestOffloadingContext,
)
_install(
    "vllm.v1.kv_offload.tiering.base",
    JobResult=JobResult,
    SecondaryTierManager=SecondaryTierManager,
    TransferJob=TransferJob,
)
_install("vllm.v1.kv_offload.file_mapper", FileMapper=FileMapper)
_install(
    "vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics",
    OffloadingConnectorStats=OffloadingConnectorStats,
)
