"""A worker's half: its KV tensors, and the copies."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass, field

import kavern
from kavern.paged import tensor_layout
from kavern.vllm import identity as identities
from kavern.device import DeviceMemory, DevicePagedKv, stream_of
from kavern.vllm.link import Link
from kavern.vllm.messages import Handshake, Load, Save, StepPlan, StepReport
from kavern.vllm.metrics import Stats

logger = logging.getLogger("vllm.kavern")

# Steps without a forward pass follow each other as fast as they can, and would take the processors from the very loads
# that they wait for. A load of some ten MB ends within this, and is told at once.
_IDLE_PATIENCE_S = 0.02

# The daemon is in trouble, as against a block that is gone or a tier that is full.
_TROUBLE = (kavern.UnavailableError, kavern.DeadlineExceededError)


def is_trouble(result: kavern.PagedResult) -> bool:
    """Also where only a part of a load came too late: the next one would keep its request waiting as long."""
    errors = [result.error, *(error for group in result.errors for error in group)]
    return any(isinstance(error, _TROUBLE) for error in errors)


@dataclass
class Ended:
    """Loads to report this step."""

    request_ids: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    failed_pages: set[int] = field(default_factory=set)


class WorkerSide:
    def __init__(self, settings, vllm_config, kv_cache_config):
        self._settings = settings
        self._vllm_config = vllm_config
        self._kv_cache_config = kv_cache_config
        self._link = Link(settings, "vllm worker")
        self._identity: identities.Identity | None = None
        self._layouts: list[kavern.TensorLayout] = []
        self._tensors: list = []
        self._device: DevicePagedKv | None = None  # where the tensors are not memory of this machine
        self._shard = 0
        self._saves_here = True
        self._epoch = 0
        self._paged: kavern.PagedKv | DevicePagedKv | None = None
        self._layers: dict[str, tuple[int, int]] = {}  # group, and place in it
        self._patience_s = 0.0
        self._under_way: dict[int, Load | Save] = {}
        self._fresh_saves: list[Save] = []  # begun in this step
        self._alone: tuple[int, int] | None = None  # tokens of the one request that this step computes
        self._began = 0.0
        self._handled: BaseException | None = None  # by whoever called the step, perhaps in an `except`
        self._ended = Ended()
        self._report = StepReport()
        self._warned = False  # of saves that were given up
        self.stats = Stats()

    # ---- The engine's life ----

    def register(self, kv_caches: dict) -> None:
        """Raises KavernError for KV caches that this connector does not understand."""
        groups = identities.group_tensors(self._kv_cache_config, kv_caches)
        pages = self._kv_cache_config.num_blocks
        self._tensors = [group.tensors for group in groups]
        devices = {tensor.device for tensors in self._tensors for tensor in tensors}
        if self._settings.bounce or {device.type for device in devices} != {"cpu"}:
            self._copy_later(devices, pages)
        else:
            self._layers = identities.layers_by_name(self._kv_cache_config, groups)
        self._layouts = [tensor_layout(tensors, pages) for tensors in self._tensors]
        replicas = identities.tp_replicas(self._vllm_config, self._kv_cache_config)
        self._identity = identities.identity_of(self._vllm_config, groups, self._layouts, replicas)
        self._place(replicas)
        self._link.use(self._identity.spec(self._epoch), wait_s=self._settings.attach_timeout_s)
        self._open()

    def _copy_later(self, devices: set, pages: int) -> None:
        """From a device: by way of host memory, beside the engine's steps."""
        # No hook comes before these: pages could be overwritten, or gone, while they are copied.
        if self._kv_cache_config.needs_kv_cache_zeroing:
            raise kavern.UnimplementedError("a device's KV cache of several precisions, zeroed before use, is not supported")
        if self._vllm_config.model_config.enable_sleep_mode:
            raise kavern.UnimplementedError("enable_sleep_mode: a KV cache on a device that goes away is not supported")
        if len(devices) != 1:
            raise kavern.UnimplementedError(f"KV caches on several devices: {sorted(map(str, devices))}")
        (device,) = devices
        logger.info("Kavern: KV caches on %s are copied by way of host memory", device)
        memory = DeviceMemory(self._tensors, pages)
        self._tensors = memory.tensors
        self._device = DevicePagedKv(
            memory,
            stream_of(device),
            hold_s=self._settings.load_timeout_s,
            saves_bytes_max=self._settings.inflight_save_bytes_max,
            loads_bytes_max=self._settings.inflight_load_bytes_max,
        )

    def _place(self, replicas: int) -> None:
        """Which shard is this rank's, and whether it is the one that saves it."""
        from vllm.distributed.parallel_state import get_pp_group, get_tp_group

        rank = get_tp_group().rank_in_group
        shards_per_stage = self._vllm_config.parallel_config.tensor_parallel_size // replicas
        self._shard = get_pp_group().rank_in_group * shards_per_stage + rank // replicas
        self._saves_here = rank % replicas == 0

    def handshake(self) -> Handshake | None:
        return Handshake(self._identity, self._device is not None) if self._identity is not None else None

    def _open(self) -> None:
        namespace = self._link.namespace()
        if self._paged is None and namespace is not None:
            paged = kavern.PagedKv(
                namespace,
                self._layouts,
                tensors=self._tensors,
                shard=self._shard,
                load_deadline=self._settings.load_timeout_s,
                store_deadline=self._settings.load_timeout_s,
                copy_threads=self._settings.copy_threads,
            )
            self._paged = paged if self._device is None else self._device.over(paged)

    def _follow(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        self._epoch = epoch
        if self._paged is not None:
            self._end_copies()
        self._link.use(self._identity.spec(epoch))

    def _end_copies(self, at_the_end: bool = False) -> None:
        self._paged.drain(deadline=2 * self._settings.load_timeout_s)
        self._take_results()
        if self._device is not None and at_the_end:
            self._device.close(self._settings.load_timeout_s)
        else:
            self._paged.close()
        self._paged = None
        for what in self._under_way.values():  # what did not end in time, and now never will
            if isinstance(what, Load):
                self._load_failed(what)
        self._under_way.clear()

    def close(self) -> None:
        if self._paged is not None:
            self._end_copies(at_the_end=True)
        if self._device is not None:
            self._device.end()
        self._link.close()

    # ---- Every step ----

    def fence(self, pages: set[int]) -> None:
        """Before any page is written: those that get other tokens are not being saved any more when this returns."""
        given_up = self._device.fence(pages) if self._device is not None and pages else 0
        if given_up:
            self.stats.add("saves_given_up", given_up)
            level = logging.DEBUG if self._warned else logging.WARNING
            logger.log(level, "Kavern: %d saves given up: the engine needs pages that the device has not copied", given_up)
            self._warned = True

    def begin(self, plan: StepPlan) -> None:
        """Before the forward pass: loads run beside it, and the daemon grants the memory for saves meanwhile."""
        self._patience_s = _IDLE_PATIENCE_S if plan.idle else 0.0
        self._fresh_saves.clear()
        if self._paged is not None:
            self._paged.give_up()  # of a step that ended in the middle
        self._follow(plan.epoch)
        if self._link.poll() and self._paged is not None:
            self._end_copies()
        self._open()
        if self._device is not None and self._under_way:
            self._take_results()  # what was loaded goes on to the device beside the forward pass
        for load in plan.loads:
            self._begin_load(load)
        if self._saves_here:
            for save in plan.saves:
                self._begin_save(save)
        self._alone, self._handled, self._began = plan.alone, sys.exc_info()[1], time.perf_counter()

    def _begin_load(self, load: Load) -> None:
        try:
            if self._paged is None:
                raise kavern.UnavailableError("the daemon is away")
            self._under_way[self._paged.begin_load(load.groups)] = load
        except kavern.KavernError as error:
            logger.warning("Kavern: a load could not begin: %s", error)
            self._load_failed(load)

    def _begin_save(self, save: Save) -> None:
        if self._paged is None or not self._link.breaker.closed:
            self._report.failed_saves.add(save.request_id)
            return
        try:
            self._under_way[self._paged.begin_store(save.keys, save.pages, parent=save.parent)] = save
            self._fresh_saves.append(save)
        except kavern.KavernError as error:
            level = logging.DEBUG if isinstance(error, kavern.ResourceExhaustedError) else logging.WARNING
            logger.log(level, "Kavern: a save could not begin: %s", error)
            self._report.failed_saves.add(save.request_id)

    @property
    def is_saving(self) -> bool:
        return bool(self._fresh_saves)

    def layer_written(self, layer_name: str) -> None:
        """Within the forward pass: what this layer wrote is still in the processor's caches."""
        place = self._layers.get(layer_name)
        if place is not None:
            self._paged.layer_written(*place)

    def finish_saves(self) -> None:
        """After the forward pass: when this returns, the engine may reuse every page; of a device, once it is fenced."""
        took = time.perf_counter() - self._began
        if sys.exc_info()[1] is not self._handled:
            # V1 comes here in a `finally`: the forward pass raised, and what it did not write is not this step's KV.
            self._fresh_saves.clear()
            if self._paged is not None:
                self._paged.give_up()
            return
        if self._alone is not None:
            self._report_prefill(took)
        if self._fresh_saves:
            self._paged.gather(self._settings.save_patience_s)

    def _report_prefill(self, took: float) -> None:
        """What the plan of a turn is made of. Of a device only its launches are over by now, and a stage of a pipeline
        computes only its layers: neither knows."""
        namespace = self._link.namespace()
        parallel = self._vllm_config.parallel_config
        if namespace is None or self._device is not None or parallel.pipeline_parallel_size > 1:
            return
        if self._shard or not self._saves_here:
            return  # one rank tells
        try:
            namespace.report_prefill(*self._alone, took)
        except kavern.KavernError as error:
            logger.debug("Kavern: the time of a prefill is not reported: %s", error)

    def ended(self) -> Ended:
        """Loads that ended since the last call, each once, and only when nobody writes to their pages any more."""
        if self._paged is not None and self._under_way:
            self._take_results(self._patience_s)
        ended, self._ended = self._ended, Ended()
        return ended

    def take_report(self) -> StepReport | None:
        report, self._report = self._report, StepReport()
        return report if report else None

    def _take_results(self, patience_s: float = 0.0) -> None:
        for result in self._paged.take_results(patience_s):
            what = self._under_way.pop(result.id)
            if is_trouble(result):
                self._report.trouble = True
                self._link.breaker.trouble()
            elif result.error is None:
                self._report.answered = True
                self._link.breaker.success()
            if isinstance(what, Load):
                self._load_ended(what, result)
            else:
                self._save_ended(what, result)

    def _load_ended(self, load: Load, result: kavern.PagedResult) -> None:
        self.stats.add("load_bytes", result.bytes)
        self.stats.add("load_seconds", result.seconds)
        failed = [[i for i, error in enumerate(errors) if error is not None] for errors in result.errors]
        if any(failed):
            first = min(failed[0], default=0)
            error = result.error or next(errors[i[0]] for errors, i in zip(result.errors, failed) if i)
            logger.warning("Kavern: a load of request %s failed: %r", load.request_id, error)
            self._load_failed(load, first)
            return
        self.stats.add("loads")
        self._ended.request_ids.add(load.request_id)

    def _load_failed(self, load: Load, first: int = 0) -> None:
        """first: the first block of the load that is not right. vLLM recomputes from there on, where it can."""
        self.stats.add("load_failures")
        self._report.failed_loads.add(load.request_id)
        self._ended.request_ids.add(load.request_id)
        if self._identity.can_resume_anywhere:
            self._ended.failed_pages.update(load.groups[0][1][first:])
        else:
            self._ended.failed.add(load.request_id)  # all anew

    def _save_ended(self, save: Save, result: kavern.PagedResult) -> None:
        self.stats.add("save_bytes", result.bytes)
        self.stats.add("save_seconds", result.seconds)
        if result.error is None:
            self.stats.add("saves")
        else:
            self.stats.add("save_failures")
            self._report.failed_saves.add(save.request_id)
            logger.debug("Kavern: a save of request %s failed: %s", save.request_id, result.error)
