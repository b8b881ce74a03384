"""The connector with its witness, on a device that copies at the last moment: while the engine waits for a copy, and not
before. In the connector's configuration: "record", the witness's directory; "late": the fence comes after the step's writes.
"""

from __future__ import annotations

import contextlib
import pathlib
import threading

import recording
from kavern.vllm import worker
from recording import RecordingConnector, note


class LaggingConnector(RecordingConnector):
    def register_kv_caches(self, kv_caches) -> None:
        options = self._kv_transfer_config.kv_connector_extra_config
        recording.DIRECTORY, self._late = pathlib.Path(options["record"]), options["late"]
        gate = threading.Event()
        worker.stream_of = lambda device: _Lagging(gate)
        super().register_kv_caches(kv_caches)
        _open_while_engine_waits(self._worker._device._changed, gate)

    def handle_preemptions(self, kv_connector_metadata) -> None:
        self._fence = kv_connector_metadata
        saves = self._worker._device._saves
        if any(save.reads and not save.pages.isdisjoint(kv_connector_metadata.fresh_pages) for save in saves):
            note("fenced")
        if not self._late:
            super().handle_preemptions(kv_connector_metadata)

    def wait_for_save(self) -> None:
        if self._late:
            super().handle_preemptions(self._fence)
        super().wait_for_save()


class _Lagging:
    def __init__(self, gate: threading.Event):
        self._gate = gate

    def mark(self) -> None:
        pass

    @contextlib.contextmanager
    def after(self, mark: None):
        self._gate.wait()
        yield


def _open_while_engine_waits(changed: threading.Condition, gate: threading.Event) -> None:
    wait_for, engine = changed.wait_for, threading.current_thread()

    def waits(predicate, timeout=None):
        if threading.current_thread() is not engine or predicate():
            return wait_for(predicate, timeout)
        gate.set()
        try:
            return wait_for(predicate, timeout)
        finally:
            gate.clear()

    changed.wait_for = waits
