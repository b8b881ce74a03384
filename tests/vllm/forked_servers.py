"""vLLM's API server in processes forked from one that has imported it, which is a third of an engine's start.

What runs is vLLM's own server, from its entry point on; the processes of engine and worker it starts itself, as ever.
Run as a program this is the process that forks: it reads a line of JSON for every server, {"arguments", "environment", "log"},
and answers with its process id.
"""

from __future__ import annotations

import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import threading
import traceback

_MODULE = ["-m", "vllm.entrypoints.openai.api_server"]


class ForkedServers:
    """Thread-safe."""

    def __init__(self, directory: pathlib.Path):
        self._lock = threading.Lock()
        self._forks = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(directory / "forked_servers.log", "w"),
            env=os.environ | {"HF_HUB_OFFLINE": "1"},  # read when it is imported
            text=True,
        )

    def launch(self, command: list[str], *, env: dict[str, str], stdout, stderr, start_new_session: bool) -> ForkedServer:
        """As subprocess.Popen does for vLLM's server, which logs into one file and has a session of its own."""
        assert command[1:3] == _MODULE and stdout is stderr and start_new_session
        plan = {"arguments": command[3:], "environment": env, "log": stdout.name}
        with self._lock:
            print(json.dumps(plan), file=self._forks.stdin, flush=True)
            return ForkedServer(int(self._forks.stdout.readline()))

    def close(self) -> None:
        self._forks.stdin.close()
        self._forks.wait(timeout=60)


class ForkedServer:
    """What Engine needs of a process that is not a child of this one."""

    def __init__(self, pid: int):
        self.pid = pid
        self._handle = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """None while it runs. Its exit status is nobody's to know: -1."""
        return -1 if select.select([self._handle], [], [], 0)[0] else None

    def wait(self, timeout: float | None = None) -> int:
        if not select.select([self._handle], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("vLLM's server", timeout)
        return -1

    def terminate(self) -> None:
        signal.pidfd_send_signal(self._handle, signal.SIGTERM)


def main() -> None:
    pids = os.dup(1)
    os.dup2(2, 1)  # what is imported may print; only process ids go to stdout
    from vllm.entrypoints.launchers.api_server import entry

    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _serve(json.loads(line), entry)
        # Nobody waits for it, so that its number is its own for as long as somebody may use it.
        os.write(pids, f"{pid}\n".encode())


def _serve(plan: dict, entry) -> None:
    """In the child: never returns."""
    os.setsid()
    log = os.open(plan["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.clear()
    os.environ.update(plan["environment"])
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = [_MODULE[1], *plan["arguments"]]
    code = 1
    try:
        entry.main()
        code = 0
    except BaseException:  # noqa: BLE001 whoever started it reads its log
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
