"""Real vLLM against a real daemon. Run by `tests/run.sh vllm`, in the environment of deploy/vllm/install.sh.

KAVERN_BIN: directory of kavernd and kavern. KAVERN_CHAT_MODEL: folder of deploy/vllm/prepare_chat_model.py.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "client/python/tests"), str(ROOT / "deploy/vllm")]

from daemon import Daemon  # noqa: E402


@contextlib.contextmanager
def _running_daemon(directory: pathlib.Path):
    daemon = Daemon(directory, ram="1GiB", region="64MiB")
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.stop()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    with _running_daemon(tmp_path_factory.mktemp("daemon")) as daemon:
        yield daemon


@pytest.fixture
def empty_daemon(tmp_path_factory):
    """A daemon that holds nothing yet: the first block stored lies in its first slot."""
    with _running_daemon(tmp_path_factory.mktemp("daemon")) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def chat_model() -> pathlib.Path:
    return pathlib.Path(os.environ["KAVERN_CHAT_MODEL"])


class TinyEngines:
    """Engines with tiny models, one at a time."""

    def __init__(self, directory: pathlib.Path):
        self._directory = directory
        self._runs = 0
        self._server = subprocess.Popen(
            [sys.executable, pathlib.Path(__file__).with_name("tiny_engine.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(directory / "server.log", "w"),
            text=True,
        )

    def run(
        self,
        model: pathlib.Path,
        steps: list,
        transfer: dict | None = None,
        ranks: int = 1,
        kv_events: str | None = None,
        as_on_gpu: bool = False,
    ) -> list:
        """The answers of one engine; AssertionError with the errors of its log."""
        self._runs += 1
        if transfer is not None:
            # A busy machine shall not change what is stored: of a sliding window what is late is never stored.
            patient = {"kavern.save_patience_s": 30, "kavern.load_timeout_s": 30}
            transfer = transfer | {"kv_connector_extra_config": patient | transfer["kv_connector_extra_config"]}
        log = self._directory / f"{self._runs}.log"
        plan = {"model": str(model), "steps": steps, "kv_transfer_config": transfer}
        plan |= {"tensor_parallel_size": ranks, "kv_events": kv_events, "as_on_gpu": as_on_gpu, "log": str(log)}
        print(json.dumps(plan), file=self._server.stdin, flush=True)
        line = self._server.stdout.readline()
        answers = json.loads(line) if line else None
        assert answers is not None, _errors(log.read_text() if log.exists() else "no log")
        return answers

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait(timeout=60)


@pytest.fixture(scope="session")
def tiny_engines(tmp_path_factory):
    engines = TinyEngines(tmp_path_factory.mktemp("tiny"))
    yield engines
    engines.close()


def _errors(log: str) -> str:
    """What went wrong, out of a long log: its ERROR lines, and its end."""
    errors = [line for line in log.splitlines() if "ERROR" in line or "Error:" in line]
    return "\n".join(errors[:40]) + "\n...\n" + log[-1500:]
