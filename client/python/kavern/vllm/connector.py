"""vLLM's connector interface, handed on to the scheduler's or the worker's half."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable
from typing import Any

from vllm import __version__ as vllm_version
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorRole,
    KVConnectorTransferResults,
    SupportsHMA,
)
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from kavern.vllm import settings
from kavern.vllm.identity import check_supported, check_version
from kavern.vllm.messages import Handshake, StepPlan, StepReport
from kavern.vllm.metrics import PromMetrics, Stats
from kavern.vllm.scheduler import SchedulerSide
from kavern.vllm.worker import WorkerSide


def _timed(hook):
    """Counts the time that the engine spends in a hook."""

    @functools.wraps(hook)
    def hooked(self, *args, **kwargs):
        began = time.perf_counter()
        try:
            return hook(self, *args, **kwargs)
        finally:
            self._side.stats.add("hook_seconds", time.perf_counter() - began)

    return hooked


class KavernConnector(KVConnectorBase_V1, SupportsHMA):
    """Hooks in the order in which a step calls them.

    Scheduler: get_num_new_matched_tokens, update_state_after_alloc, build_connector_meta; worker: handle_preemptions,
    bind_connector_metadata, forward pass with a save_kv_layer after each layer, start_load_kv, wait_for_save,
    get_transfer_results; scheduler: update_connector_output, request_finished_all_groups.
    """

    def __init__(self, vllm_config, role, kv_cache_config):
        super().__init__(vllm_config, role, kv_cache_config)
        options = settings.parse(self._kv_transfer_config.kv_connector_extra_config)
        check_version(vllm_version, options.untried_version)
        check_supported(vllm_config)
        self._scheduler: SchedulerSide | None = None
        self._worker: WorkerSide | None = None
        if role == KVConnectorRole.SCHEDULER:
            self._side = self._scheduler = SchedulerSide(options, vllm_config, kv_cache_config)
        else:
            self._side = self._worker = WorkerSide(options, vllm_config, kv_cache_config)

    @property
    def requires_kv_delivery(self) -> bool:
        return False  # a save that is dropped is a later miss

    def shutdown(self) -> None:
        self._side.close()

    def get_kv_connector_stats(self) -> Stats | None:
        return self._side.stats.take()

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> Stats:
        return Stats(data=data or {})

    @classmethod
    def build_prom_metrics(cls, vllm_config, metric_types, labelnames, per_engine_labelvalues) -> PromMetrics:
        return PromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    # ---- Worker ----

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        self._worker.register(kv_caches)

    def get_handshake_metadata(self) -> Handshake | None:
        return self._worker.handshake()

    @_timed
    def handle_preemptions(self, kv_connector_metadata: StepPlan) -> None:
        """In every step, also without a forward pass, before any page is written."""
        self._worker.fence(kv_connector_metadata.fresh_pages)

    @_timed
    def bind_connector_metadata(self, connector_metadata: StepPlan) -> None:
        super().bind_connector_metadata(connector_metadata)
        self._worker.begin(connector_metadata)

    def start_load_kv(self, forward_context, **kwargs: Any) -> None:
        pass  # begun in bind_connector_metadata, before the forward pass rather than after it

    def wait_for_layer_load(self, layer_name: str) -> None:
        pass

    def save_kv_layer(self, layer_name: str, kv_layer, attn_metadata, **kwargs: Any) -> None:
        if self._worker.is_saving:  # most steps save nothing, and have many layers
            self._layer_written(layer_name)

    @_timed
    def _layer_written(self, layer_name: str) -> None:
        self._worker.layer_written(layer_name)

    @_timed
    def wait_for_save(self) -> None:
        self._worker.finish_saves()

    @_timed
    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        ended = self._worker.ended()
        self._failed_pages = ended.failed_pages
        return KVConnectorTransferResults(finished_recving=ended.request_ids, failed_recving=ended.failed)

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Called after get_transfer_results, in the same step."""
        return self._failed_pages

    @_timed
    def build_connector_worker_meta(self) -> StepReport | None:
        return self._worker.take_report()

    # ---- Scheduler ----

    def set_xfer_handshake_metadata_pp_aware(self, metadata: dict[tuple[int, int], Handshake]) -> None:
        self._scheduler.handshake(metadata)

    def bind_gpu_block_pool(self, gpu_block_pool) -> None:
        self._scheduler.bind_block_pool(gpu_block_pool)

    @_timed
    def get_num_new_matched_tokens(self, request, num_computed_tokens: int) -> tuple[int, bool]:
        tokens = self._scheduler.matched_tokens(request, num_computed_tokens)
        return tokens, tokens > 0

    @_timed
    def update_state_after_alloc(self, request, blocks, num_external_tokens: int) -> None:
        self._scheduler.allocated(request, blocks, num_external_tokens)

    @_timed
    def get_external_cache_hit_sources(self, request, num_external_tokens: int) -> dict[CacheHitSource, int]:
        sources = {"hbm": CacheHitSource.DEVICE, "ram": CacheHitSource.HOST, "nvme": CacheHitSource.DISK}
        tokens = self._scheduler.hit_sources(request, num_external_tokens)
        return {sources[tier]: count for tier, count in tokens.items()}

    @_timed
    def build_connector_meta(self, scheduler_output) -> StepPlan:
        return self._scheduler.plan(scheduler_output)

    @_timed
    def update_connector_output(self, connector_output) -> None:
        self._scheduler.report(connector_output)

    @_timed
    def request_finished(self, request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        return False, self._scheduler.finished(request)

    @_timed
    def request_finished_all_groups(
        self, request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        # Never held: who copies pages after their step fences them, and a load in flight is vLLM's own reason to keep
        # the pages.
        return False, self._scheduler.finished(request)

    @_timed
    def take_events(self) -> Iterable:
        return self._scheduler.take_events()

    def reset_cache(self) -> bool:
        self._scheduler.reset()
        return True
