"""What the connector counts, in vLLM's own log line and /metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

# Name in the payload: name in /metrics, help. All are counters; times are of all workers together.
COUNTERS = {
    "hit_tokens": ("vllm:kavern_hit_tokens", "Tokens of prompts that Kavern had and the engine had not."),
    "nvme_hit_tokens": ("vllm:kavern_nvme_hit_tokens", "Of these: tokens that were on NVMe when they were looked up."),
    "failed_tokens": ("vllm:kavern_failed_tokens", "Of hit tokens: those of loads that failed, in whole or in part."),
    "lookups_without_daemon": (
        "vllm:kavern_lookups_without_daemon",
        "Lookups of prompts that were left out: the daemon was away, or had not answered a moment before.",
    ),
    "load_bytes": ("vllm:kavern_load_bytes", "Bytes copied from Kavern into the engine's KV cache."),
    "load_seconds": ("vllm:kavern_load_seconds", "Time from the begin to the end of loads."),
    "loads": ("vllm:kavern_loads", "Loads that ended well."),
    "load_failures": ("vllm:kavern_load_failures", "Loads of which a block was lost, damaged or late: recomputed."),
    "save_bytes": ("vllm:kavern_save_bytes", "Bytes copied from the engine's KV cache to Kavern."),
    "save_seconds": ("vllm:kavern_save_seconds", "Time from the begin to the end of saves."),
    "saves": ("vllm:kavern_saves", "Saves that ended well."),
    "save_failures": ("vllm:kavern_save_failures", "Saves that Kavern refused, or did not answer in time."),
    "saves_given_up": ("vllm:kavern_saves_given_up", "Of these: the engine needed their pages, and the device was slow."),
    "conversations": ("vllm:kavern_conversations", "Turns of named conversations that the daemon was told of."),
    "conversation_failures": ("vllm:kavern_conversation_failures", "Turns of which it could not be told."),
    "hook_seconds": ("vllm:kavern_hook_seconds", "Time that the engine spent inside the connector."),
}


@dataclass
class Stats(KVConnectorStats):
    """Counts since the last report."""

    def add(self, name: str, amount: float = 1) -> None:
        assert name in COUNTERS
        self.data[name] = self.data.get(name, 0) + amount

    def reset(self) -> None:
        self.data = {}

    def take(self) -> Stats | None:
        if self.is_empty():
            return None
        taken = Stats(data=self.data)
        self.reset()
        return taken

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        for name, amount in other.data.items():
            self.add(name, amount)
        return self

    def reduce(self) -> dict[str, int | float]:
        return {f"Kavern {name}": round(amount, 3) for name, amount in self.data.items()}

    def is_empty(self) -> bool:
        return not self.data


class PromMetrics(KVConnectorPromMetrics):
    def __init__(self, vllm_config, metric_types, labelnames, per_engine_labelvalues):
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._counters = {}
        for key, (name, documentation) in COUNTERS.items():
            counter = self._counter_cls(name=name, documentation=documentation, labelnames=labelnames)
            self._counters[key] = {
                engine: counter.labels(*labels) for engine, labels in per_engine_labelvalues.items()
            }

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        for key, amount in transfer_stats_data.items():
            self._counters[key][engine_idx].inc(amount)
