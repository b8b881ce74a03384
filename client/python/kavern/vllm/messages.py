"""What scheduler and workers of one engine tell each other; pickled by vLLM."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)

from kavern.vllm.identity import Identity


def _machine() -> str:
    """Differs between any two machines, and not between containers of one: each machine has a daemon of its own."""
    return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass
class Handshake(KVConnectorHandshakeMetadata):
    """A worker's, once: what its KV looks like."""

    identity: Identity
    copies_later: bool = False  # pages are read after the step that saves them
    machine: str = field(default_factory=_machine)


@dataclass
class Load:
    request_id: str
    groups: list[tuple[list[bytes], list[int]]]  # per KV cache group: keys, and the page of each


@dataclass
class Save:
    request_id: str
    first: int  # number of keys[0]'s block in the request's chain
    parent: bytes | None
    keys: list[bytes]
    pages: list[list[int]]  # per KV cache group


@dataclass
class StepPlan(KVConnectorMetadata):
    """Scheduler to workers, every step."""

    epoch: int = 0
    idle: bool = False  # nothing is computed in this step
    loads: list[Load] = field(default_factory=list)
    saves: list[Save] = field(default_factory=list)
    # Pages that this step gives to new tokens, of all KV cache groups: for workers that copy later.
    fresh_pages: set[int] = field(default_factory=set)
    alone: tuple[int, int] | None = None  # the step computes tokens [begin, end) of one request, and nothing else


@dataclass
class StepReport(KVConnectorWorkerMetadata):
    """Workers to scheduler, every step in which something ended. Merged over all workers."""

    failed_loads: set[str] = field(default_factory=set)
    failed_saves: set[str] = field(default_factory=set)
    # The daemon did not answer, or not in time.
    trouble: bool = False
    # A load or save ended well.
    answered: bool = False

    def aggregate(self, other: KVConnectorWorkerMetadata) -> StepReport:
        assert isinstance(other, StepReport)
        return StepReport(
            self.failed_loads | other.failed_loads,
            self.failed_saves | other.failed_saves,
            self.trouble or other.trouble,
            self.answered or other.answered,
        )

    def __bool__(self) -> bool:
        return bool(self.failed_loads or self.failed_saves or self.trouble or self.answered)
