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
from forked_servers import ForkedServers  # noqa: E402


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


@pytest.fixture(scope="module")
def many_small(tmp_path_factory):
    """A daemon with a region for every test's namespace."""
    daemon = Daemon(tmp_path_factory.mktemp("daemon"), ram="256MiB")
    daemon.start()
    yield daemon
    daemon.stop()


@pytest.fixture
def scheduler(daemon, request):
    """A scheduler's half, played by hand, of a model of its own."""
    from played_scheduler import Scheduler

    scheduler = Scheduler(daemon, request.node.name)
    yield scheduler
    scheduler.side.close()


@pytest.fixture
def empty_daemon(tmp_path_factory):
    """A daemon that holds nothing yet: the first block stored lies in its first slot."""
    with _running_daemon(tmp_path_factory.mktemp("daemon")) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def chat_model() -> pathlib.Path:
    return pathlib.Path(os.environ["KAVERN_CHAT_MODEL"])


class TinyEngines:
    """Engines with tiny models, each of a life of its own."""

    def __init__(self, directory: pathlib.Path):
        self._directory = directory
        self._begun = 0
        self._ended: set[int] = set()
        self._server = subprocess.Popen(
            [sys.executable, pathlib.Path(__file__).with_name("tiny_engine.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(directory / "server.log", "w"),
            text=True,
        )

    def run(self, *plan, **more) -> list:
        """The answers of one engine; AssertionError with the errors of its log. Arguments as for begin()."""
        return self.answers(self.begin(*plan, **more))

    def begin(
        self,
        model: pathlib.Path,
        steps: list,
        transfer: dict | None = None,
        ranks: int = 1,
        kv_events: str | None = None,
        as_on_gpu: bool = False,
        pages: int | None = None,
    ) -> int:
        """Starts an engine, beside those that run already; its number. steps: as in tiny_engine.py."""
        self._begun += 1
        if transfer is not None:
            # A busy machine shall not change what is stored: of a sliding window what is late is never stored.
            patient = {f"kavern.{name}": 30 for name in ("save_patience_s", "load_timeout_s", "attach_timeout_s")}
            transfer = transfer | {"kv_connector_extra_config": patient | transfer["kv_connector_extra_config"]}
        plan = {"number": self._begun, "log": str(self._log(self._begun)), "answers": str(self._answers(self._begun))}
        plan |= {"model": str(model), "steps": steps, "kv_transfer_config": transfer, "kv_events": kv_events}
        plan |= {"tensor_parallel_size": ranks, "as_on_gpu": as_on_gpu, "pages": pages}
        print(json.dumps(plan), file=self._server.stdin, flush=True)
        return self._begun

    def answers(self, number: int) -> list:
        """Of the engine that began under that number, when it has ended."""
        while number not in self._ended:
            line = self._server.stdout.readline()
            assert line, "the server of tiny engines has ended: see server.log"
            self._ended.add(int(line))
        log = self._log(number)
        assert self._answers(number).exists(), _errors(log.read_text() if log.exists() else "no log")
        return json.loads(self._answers(number).read_text())

    def _log(self, number: int) -> pathlib.Path:
        return self._directory / f"{number}.log"

    def _answers(self, number: int) -> pathlib.Path:
        return self._directory / f"{number}.json"

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait(timeout=60)


@pytest.fixture(scope="session")
def tiny_engines(tmp_path_factory):
    engines = TinyEngines(tmp_path_factory.mktemp("tiny"))
    yield engines
    engines.close()


@pytest.fixture(scope="session")
def launch(tmp_path_factory):
    """Starts API servers of vLLM sooner: for Engine."""
    servers = ForkedServers(tmp_path_factory.mktemp("servers"))
    yield servers.launch
    servers.close()


def _errors(log: str) -> str:
    """What went wrong, out of a long log: its ERROR lines, and its end."""
    errors = [line for line in log.splitlines() if "ERROR" in line or "Error:" in line]
    return "\n".join(errors[:40]) + "\n...\n" + log[-1500:]
