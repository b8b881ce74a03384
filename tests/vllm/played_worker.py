"""A worker's half of the connector without an engine: its tensor, a device that copies when the test says, and steps as
vLLM's runners make them."""

import contextlib
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import kavern
import torch
from kavern.vllm import settings
from kavern.vllm import worker as worker_module
from kavern.vllm.identity import Identity
from kavern.vllm.messages import Load, Save, StepPlan
from kavern.vllm.worker import Ended, WorkerSide

BLOCK = 4
PAGES = 16
PAGE_BYTES = 4096


class HeldDevice:
    """In place of device.Stream: what is copied is let go one by one, or all from now on."""

    def __init__(self):
        self._let_go = threading.Semaphore(0)
        self._marks = 0
        self.entered = threading.Semaphore(0)  # copies that wait
        self.copied: list[int] = []  # marks of those that ended, in their order
        self.error: Exception | None = None

    def mark(self) -> int:
        self._marks += 1
        return self._marks

    @contextlib.contextmanager
    def after(self, mark: int):
        self.entered.release()
        self._let_go.acquire()
        if self.error is not None:
            raise self.error
        yield
        self.copied.append(mark)

    def copy(self, count: int = 1) -> None:
        self._let_go.release(count)

    def flow(self) -> None:
        self.copy(1_000_000)


class Worker:
    """One KV cache group of one layer, all of whose pages are zero at first."""

    def __init__(self, daemon, name: str, monkeypatch, *, zeroed: bool = False, sleeps: bool = False, stages: int = 1, **options):
        self.device = HeldDevice()
        identity = Identity(name, "w", "", "", "", "int8", BLOCK, 1, ((1, "FULL_ATTENTION", 2, 256, 0, 0),))
        monkeypatch.setattr(worker_module, "stream_of", lambda device: self.device)
        monkeypatch.setattr(worker_module.identities, "identity_of", lambda *what: identity)
        monkeypatch.setattr(
            worker_module.identities, "group_tensors", lambda config, caches: [SimpleNamespace(tensors=list(caches.values()))]
        )
        monkeypatch.setattr(worker_module.identities, "layers_by_name", lambda *what: {"layer": (0, 0)})
        monkeypatch.setattr(worker_module.identities, "tp_replicas", lambda *what: 1)
        monkeypatch.setattr(WorkerSide, "_place", lambda side, replicas: None)
        options = {"address": daemon.address, "bounce": True} | options
        options |= {"attach_timeout_s": 30, "load_timeout_s": 30, "save_patience_s": 30}
        self.side = WorkerSide(
            settings.parse({f"kavern.{name}": value for name, value in options.items()}),
            SimpleNamespace(
                model_config=SimpleNamespace(enable_sleep_mode=sleeps),
                parallel_config=SimpleNamespace(pipeline_parallel_size=stages),
            ),
            SimpleNamespace(num_blocks=PAGES, needs_kv_cache_zeroing=zeroed),
        )
        with torch.inference_mode():
            self.tensor = torch.zeros(PAGES, PAGE_BYTES, dtype=torch.uint8)
        self.side.register({"layer": self.tensor})
        self._client = kavern.Client(daemon.address)
        self._client.wait_until_attached()
        self._identity = identity
        self.ended: list[str] = []  # requests, each as often as it was reported
        self.failed_saves: list[str] = []

    def close(self) -> None:
        self.device.flow()
        self.side.close()
        self._client.close()

    # ---- What others see ----

    def namespace(self, epoch: int = 0) -> kavern.Namespace:
        return self._client.open_namespace(self._identity.spec(epoch))

    def keys(self, first_token: int, blocks: int, epoch: int = 0) -> list[bytes]:
        chain = self.namespace(epoch).chain()
        chain.append(list(range(first_token, first_token + blocks * BLOCK)))
        return chain.keys_between(0, blocks)

    def store(self, keys: list[bytes], value: int) -> None:
        """As another engine."""
        assert not self.namespace().store(keys, [bytes([value]) * PAGE_BYTES] * len(keys)).decline_reason

    def stored(self, key: bytes, epoch: int = 0) -> int | None:
        """The byte that fills the key's block; None: it is not stored."""
        if not self.namespace(epoch).match([key]):
            return None
        block = torch.zeros(PAGE_BYTES, dtype=torch.uint8).numpy()
        self.namespace(epoch).fetch_into([key], [block])
        assert (block == block[0]).all()
        return int(block[0])

    # ---- The engine ----

    def step(self, *plans: Load | Save, fresh=(), write: dict[int, int] | None = None, epoch: int = 0) -> Ended:
        """fresh: the pages that are fenced. write: what the forward pass writes, by page."""
        loads = [plan for plan in plans if isinstance(plan, Load)]
        saves = [plan for plan in plans if isinstance(plan, Save)]
        plan = StepPlan(epoch, not write, loads, saves, set(fresh))
        self.side.fence(plan.fresh_pages)
        self.side.begin(plan)
        with torch.inference_mode():
            for page, value in (write or {}).items():
                self.tensor[page] = value
        self.side.finish_saves()
        ended = self.side.ended()
        self.ended += ended.request_ids
        report = self.side.take_report()
        self.failed_saves += report.failed_saves if report else ()
        return ended

    def steps_until(self, condition) -> None:
        give_up = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < give_up
            self.step(epoch=self.side._epoch)

    def steps_until_entered(self) -> None:
        """Until a copy waits for the device."""
        self.steps_until(lambda: self.device.entered.acquire(blocking=False))

    def steps_until_idle(self) -> None:
        """Until nothing is under way, on the device either."""
        self.steps_until(lambda: not self.side._under_way and not (self.side._device and self.side._device._saves))

    @contextlib.contextmanager
    def impatient(self):
        """Inside, nobody waits long for the device; the daemon has its time."""
        patient = self.side._settings, self.side._device._hold_s
        self.side._settings, self.side._device._hold_s = replace(patient[0], load_timeout_s=0.01), 0.01
        yield
        self.side._settings, self.side._device._hold_s = patient

    @contextlib.contextmanager
    def when_engine_waits(self, action):
        """Inside, calls it whenever the engine's thread, which is the caller's, is about to wait for the copying one; how
        often is the length of what is told."""
        changed, engine, waits = self.side._device._changed, threading.current_thread(), []
        wait_for = changed.wait_for

        def noticed(predicate, timeout=None):
            if threading.current_thread() is engine and not predicate():
                waits.append(timeout)
                action()
            return wait_for(predicate, timeout)

        changed.wait_for = noticed
        yield waits
        changed.wait_for = wait_for


def save(request_id: str, keys: list[bytes], pages: list[int]) -> Save:
    return Save(request_id, 0, None, keys, [pages])


def load(request_id: str, keys: list[bytes], pages: list[int]) -> Load:
    return Load(request_id, [(keys, pages)])
