"""KV caches on a device: pages go through memory of this machine that has their shape, beside the engine.

What PagedKv copies is the machine's own memory, in threads that know no device. One more thread brings pages that are
saved there, and takes pages that were loaded from there, on a stream of its own: after what the engine had launched by
then, but in no order with what it launches later. So who is about to overwrite pages asks `fence` first, and a load has
ended when its pages are on the device.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import kavern
from kavern.paged import page_geometry

logger = logging.getLogger("kavern.device")

_CHUNK_BYTES = 64 << 20  # memory taken of the device at a time


class Stream:
    """Where a device copies: beside the engine, whose launches it is told to wait for."""

    def __init__(self, device):
        import torch

        self._torch, self._device, self._stream = torch, device, torch.Stream(device)

    def mark(self) -> Any:
        """What the engine's thread, which calls this, has launched so far."""
        event = self._torch.Event(self._device)
        event.record(self._torch.accelerator.current_stream(self._device))
        return event

    @contextlib.contextmanager
    def after(self, mark: Any):
        """Copies made inside come after the mark, and have ended when this returns."""
        self._stream.wait_event(mark)
        with self._stream:
            try:
                yield
            finally:
                self._stream.synchronize()


class NoStream:
    """Of processors: what the engine has launched has ended."""

    def mark(self) -> Any:
        return None

    @contextlib.contextmanager
    def after(self, mark: Any):
        yield


def stream_of(device) -> Stream | NoStream:
    return NoStream() if device.type == "cpu" else Stream(device)


class DeviceMemory:
    """One rank's tensors by KV cache group, of any device, and memory of this machine for their pages."""

    def __init__(self, tensors: Sequence[Sequence], pages: int):
        """Raises InvalidArgumentError for tensors whose pages are no stretches of memory."""
        self._there = [[_pages_as_bytes(f"tensors[{i}]", t, pages) for i, t in enumerate(group)] for group in tensors]
        self._here = [[_Memory(*flat.shape) for flat in group] for group in self._there]
        self.tensors = [[memory.tensor for memory in group] for group in self._here]
        self.page_bytes = [sum(flat.shape[1] for flat in group) for group in self._there]

    def bring(self, groups: Sequence[Sequence[int]], wanted: Callable[[], bool] = lambda: True) -> None:
        """Pages of each group, from the device. Stops when they are not wanted any more."""
        self._copy(groups, self._there, self.tensors, wanted)

    def take(self, groups: Sequence[Sequence[int]]) -> None:
        """To the device."""
        self._copy(groups, self.tensors, self._there, lambda: True)

    def drop(self, groups: Sequence[Sequence[int]]) -> None:
        """Gives back the memory that pages have here."""
        for pages, memories in zip(groups, self._here):
            for memory in memories:
                memory.drop(pages)

    @staticmethod
    def _copy(groups, sources, targets, wanted: Callable[[], bool]) -> None:
        for group, pages in enumerate(groups):
            for source, target in zip(sources[group], targets[group]):
                step = max(1, _CHUNK_BYTES // source.shape[1])
                for first in range(0, len(pages), step):
                    if not wanted():
                        return
                    _copy_rows(source, target, pages[first : first + step])


def _copy_rows(source, target, pages: Sequence[int]) -> None:
    import torch

    with torch.inference_mode():  # as the engine's own writes: its tensors may allow no others
        index = torch.tensor(pages, dtype=torch.long)
        rows = source.index_select(0, index.to(source.device))
        target.index_copy_(0, index.to(target.device), rows.to(target.device))


class _Memory:
    """One layer's pages here: as large as on the device, but only what is in use takes memory."""

    def __init__(self, pages: int, length: int):
        import torch

        self._stride = -(-length // mmap.PAGESIZE) * mmap.PAGESIZE  # no two have memory in common
        self._map = mmap.mmap(-1, pages * self._stride, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.tensor = torch.frombuffer(self._map, dtype=torch.uint8).view(pages, self._stride)[:, :length]

    def drop(self, pages: Sequence[int]) -> None:
        for page in pages:
            self._map.madvise(mmap.MADV_DONTNEED, page * self._stride, self._stride)


def _pages_as_bytes(where: str, tensor, pages: int):
    """Shape (pages, bytes of a page), of the tensor's own memory."""
    import torch

    stride, length = page_geometry(where, tensor, pages)
    size = tensor.element_size()
    flat = torch.as_strided(tensor, (pages, length // size), (stride // size, 1), tensor.storage_offset())
    return flat.view(torch.uint8)


@dataclass(eq=False)
class _Save:
    """Between begin_store() and the end of its copy. Flags are guarded by the lock."""

    number: int
    groups: list[list[int]]
    pages: set[int]
    size_bytes: int
    paged: kavern.PagedKv
    mark: Any = None
    patience_s: float = 0.0
    hold_until: float = 0.0
    reads: bool = True  # the device's pages, now or later
    given_up: bool = False  # by the engine's thread: the copying one leaves PagedKv alone
    storing: bool = False  # the copying thread calls PagedKv


@dataclass(eq=False)
class LoadResult:
    """As kavern.PagedResult, of a load whose pages are on the device, or could not be brought there."""

    id: int
    error: Exception | None
    errors: list[list[Exception | None]]
    bytes: int
    seconds: float
    groups: list[list[int]]
    mark: Any
    is_load: bool = True
    since: float = field(default_factory=time.monotonic)


class DevicePagedKv:
    """PagedKv for tensors on a device, by way of `memory`: the same calls, all by the engine's thread.

    gather() returns at once; pages are read after it, until fence() says that they are not any more. That is why a save
    is given up that has not been copied `hold_s` after its gather(), when its pages are needed.
    """

    def __init__(self, memory: DeviceMemory, stream, *, hold_s: float, saves_bytes_max: int, loads_bytes_max: int):
        self._memory = memory
        self._stream = stream
        self._hold_s = hold_s
        self._saves_bytes_max = saves_bytes_max
        self._loads_bytes_max = loads_bytes_max
        self._paged: kavern.PagedKv | None = None
        self._begun: list[_Save] = []
        self._begun_loads: dict[int, tuple[Any, list[list[int]]]] = {}  # mark, and pages of each group
        self._changed = threading.Condition()  # guards what follows
        self._saves: list[_Save] = []  # those of before, too, which were given up while they were copied
        self._loads: list[LoadResult] = []  # to be taken to the device
        self._ended: list[LoadResult] = []
        self._moving: LoadResult | None = None
        self._ends = False
        self._warned = False
        self._thread = threading.Thread(target=self._run, name="kavern-device", daemon=True)
        self._thread.start()

    def over(self, paged: kavern.PagedKv) -> DevicePagedKv:
        """paged: of the memory's own tensors; in use until close()."""
        self._paged = paged
        return self

    def end(self) -> None:
        """After close(). A thread that waits for a device that hangs is left behind."""
        with self._changed:
            self._ends = True
            self._changed.notify_all()
        self._thread.join(self._hold_s)

    # ---- As PagedKv ----

    def begin_load(self, groups: Sequence[tuple[Sequence[bytes], Sequence[int]]]) -> int:
        """Raises DeadlineExceededError where a save has its pages and does not end, ResourceExhaustedError where too much
        is on its way, beside what PagedKv raises."""
        pages = [list(pages) for _, pages in groups]
        with self._changed:
            others = [load.groups for load in self._loads] + [groups for _, groups in self._begun_loads.values()]
        on_the_way = sum(map(self._size_of, others))
        if on_the_way and on_the_way + self._size_of(pages) > self._loads_bytes_max:
            raise kavern.ResourceExhaustedError(f"{on_the_way} bytes are on their way to the device")
        self._wait_until_free(_flat(pages))
        number = self._paged.begin_load(groups)
        # What others launched for these pages, and zeroing, was launched before: they are this load's from this step on.
        self._begun_loads[number] = self._stream.mark(), pages
        return number

    def begin_store(self, keys: Sequence[bytes], groups: Sequence[Sequence[int]], *, parent: bytes | None = None) -> int:
        """Raises ResourceExhaustedError where too much is on its way, beside what PagedKv raises."""
        size = self._size_of(groups)
        with self._changed:
            others = sum(save.size_bytes for save in (*self._begun, *self._saves))
        if others and others + size > self._saves_bytes_max:
            raise kavern.ResourceExhaustedError(f"{others} bytes are on their way from the device")
        number = self._paged.begin_store(keys, groups, parent=parent)
        self._begun.append(_Save(number, [list(pages) for pages in groups], _flat(groups), size, self._paged))
        return number

    def _size_of(self, groups: Sequence[Sequence[int]]) -> int:
        return sum(len(pages) * bytes_ for pages, bytes_ in zip(groups, self._memory.page_bytes))

    def gather(self, patience: float) -> None:
        if not self._begun:
            return
        mark, hold_until = self._stream.mark(), time.monotonic() + self._hold_s
        for save in self._begun:
            save.mark, save.patience_s, save.hold_until = mark, patience, hold_until
        with self._changed:
            self._saves += self._begun
            self._changed.notify_all()
        self._begun = []

    def give_up(self) -> None:
        """Of stores that were begun and not gathered."""
        if self._begun:
            self._paged.give_up([save.number for save in self._begun])
            self._begun = []

    def take_results(self, patience: float = 0.0) -> list[kavern.PagedResult | LoadResult]:
        with self._changed:
            moving = bool(self._loads or self._ended)
        ended = []
        for result in self._paged.take_results(0.0 if moving else patience):
            if result.is_load:
                self._take_to_device(result)
            else:
                ended.append(result)
        with self._changed:
            if not ended:
                self._changed.wait_for(lambda: self._ended or not self._loads, patience)
            ended += self._ended
            self._ended = []
        return ended

    def drain(self, deadline: float) -> bool:
        until = time.monotonic() + deadline
        self.give_up()
        with self._changed:
            self._changed.wait_for(lambda: all(save.given_up for save in self._saves), deadline)
        self._give_up(lambda save: True)
        with self._changed:  # PagedKv is left by then: what it does there is bounded
            self._changed.wait_for(lambda: not any(save.storing for save in self._saves))
        drained = self._paged.drain(max(0.001, until - time.monotonic()))
        kept = self.take_results()
        with self._changed:
            drained &= self._changed.wait_for(lambda: not self._loads, max(0.0, until - time.monotonic()))
            self._ended += kept
        return drained

    def close(self, deadline: float | None = None) -> None:
        """After drain(). What is being written on the device ends first; what waits for it never begins.

        deadline: where nobody uses the pages after it. None: whoever gets them next must find nobody writing.
        """
        with self._changed:
            left = [load.groups for load in self._loads if load is not self._moving]
            self._loads = [load for load in self._loads if load is self._moving]
            self._changed.wait_for(lambda: not self._loads, deadline)
            self._ended = []
        self._paged.close()
        self._paged = None
        left += [groups for _, groups in self._begun_loads.values()]
        self._begun_loads = {}
        for groups in left:
            self._memory.drop(groups)

    # ---- The engine's own writes ----

    def fence(self, pages: Iterable[int]) -> int:
        """Returns when no save reads these pages any more, so that they may be overwritten: the number of saves that
        were given up for it. Pages of all groups are of one pool, and no number is of two."""
        with self._changed:
            reading = [save for save in self._having(pages) if save.reads and not save.given_up]
            for save in reading:
                self._changed.wait_for(lambda save=save: not save.reads, save.hold_until - time.monotonic())
        return self._give_up(lambda save: save in reading and save.reads) if reading else 0

    def _wait_until_free(self, pages: Iterable[int]) -> None:
        """Until no save has them, here or there."""
        with self._changed:
            for save in self._having(pages):
                if not self._changed.wait_for(lambda save=save: save not in self._saves, save.hold_until - time.monotonic()):
                    raise kavern.DeadlineExceededError("its pages are still being saved")

    def _having(self, pages: Iterable[int]) -> list[_Save]:
        """They are next."""
        wanted = set(pages)
        having = [save for save in self._saves if not wanted.isdisjoint(save.pages)]
        self._saves.sort(key=lambda save: save not in having)
        return having

    def _give_up(self, which: Callable[[_Save], bool]) -> int:
        """Of saves that were gathered, and whose copy has not ended: nothing of them will be stored."""
        with self._changed:
            saves = [s for s in self._saves if not s.storing and not s.given_up and which(s)]
            for save in saves:
                save.given_up = True
        if saves:
            self._paged.give_up([save.number for save in saves])
        return len(saves)

    # ---- The copying thread ----

    def _take_to_device(self, result: kavern.PagedResult) -> None:
        mark, pages = self._begun_loads.pop(result.id)
        load = LoadResult(result.id, result.error, result.errors, result.bytes, result.seconds, pages, mark)
        with self._changed:
            self._loads.append(load)
            self._changed.notify_all()

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # the thread that made this one may be bound to one processor
            os.sched_setaffinity(0, range(os.cpu_count()))
        while (job := self._next()) is not None:
            if isinstance(job, LoadResult):
                self._take(job)
            else:
                self._bring(job)

    def _next(self) -> _Save | LoadResult | None:
        """Loads first: somebody waits for them, and no save in flight has their pages."""
        with self._changed:
            self._changed.wait_for(lambda: self._ends or self._loads or self._saves)
            if self._ends:
                return None
            self._moving = self._loads[0] if self._loads else None
            return self._moving or self._saves[0]

    def _take(self, load: LoadResult) -> None:
        right = [[p for p, error in zip(pages, errors) if error is None] for pages, errors in zip(load.groups, load.errors)]
        try:
            if any(right):
                with self._stream.after(load.mark):
                    self._memory.take(right)
        except Exception as error:  # noqa: BLE001 whatever a device may say
            self._warn(error)
            load.error = kavern.InternalError(f"copying to the device: {error}")
            load.errors = [[load.error] * len(pages) for pages in load.groups]
        self._memory.drop(load.groups)
        load.seconds += time.monotonic() - load.since
        with self._changed:
            self._moving = None
            self._loads.remove(load)
            self._ended.append(load)
            self._changed.notify_all()

    def _bring(self, save: _Save) -> None:
        brought = False
        try:
            if not save.given_up:
                with self._stream.after(save.mark):
                    self._memory.bring(save.groups, lambda: not save.given_up)
                brought = True
        except Exception as error:  # noqa: BLE001 whatever a device may say
            self._warn(error)
        with self._changed:
            save.reads = False
            save.storing = not save.given_up
            self._changed.notify_all()
        try:
            if save.storing and brought:
                save.paged.gather(save.patience_s, [save.number])
            elif save.storing:
                save.paged.give_up([save.number])
        except Exception as error:  # noqa: BLE001 this thread goes on
            self._warn(error)
        finally:
            self._memory.drop(save.groups)
            with self._changed:
                save.storing = False
                self._saves.remove(save)
                self._changed.notify_all()

    def _warn(self, error: Exception) -> None:
        """Once: a device that fails does so at every step."""
        if not self._warned:
            logger.warning("Kavern: a copy between device and host memory failed: %r", error)
        self._warned = True


def _flat(groups: Iterable[Iterable[int]]) -> set[int]:
    return {page for pages in groups for page in pages}
