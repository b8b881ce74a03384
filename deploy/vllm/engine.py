"""A vLLM engine on processors, served over HTTP on a Unix socket. Needs only Python's standard library."""

from __future__ import annotations

import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field

KAVERN = {
    "kv_connector": "KavernConnector",
    "kv_connector_module_path": "kavern.vllm",
    "kv_role": "kv_both",
    "kv_load_failure_policy": "recompute",
}


def transfer_config(address: str, **changes) -> dict:
    """vLLM's --kv-transfer-config for the daemon at `address`; settings of the connector begin with `kavern_`.

    KAVERN_UNTRIED_VLLM in the environment: also with a release of vLLM that the connector refuses.
    """
    extra = {"kavern.address": address}
    if os.environ.get("KAVERN_UNTRIED_VLLM"):
        extra["kavern.untried_version"] = True
    for name in [name for name in changes if name.startswith("kavern_")]:
        extra["kavern." + name.removeprefix("kavern_")] = changes.pop(name)
    return KAVERN | {"kv_connector_extra_config": extra} | changes


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: pathlib.Path, timeout: float):
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@dataclass
class Answer:
    text: str = ""
    first_token_s: float = 0.0
    # Per token: its text, and the log-probabilities of the most likely ones.
    logprobs: list = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    finish_reason: str | None = None
    kv_transfer_params: dict | None = None


class Engine:
    """directory: for the socket and the log, engine.log. launch: starts its first process, as subprocess.Popen does. A context
    manager, which ends it."""

    def __init__(
        self,
        python,
        model,
        directory,
        *,
        kv_transfer_config=None,
        arguments=(),
        environment=None,
        launch=subprocess.Popen,
    ):
        self._directory = pathlib.Path(directory)
        self._socket = self._directory / "engine.sock"
        self._command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        self._command += ["--served-model-name", "model", "--uds", str(self._socket), "--enforce-eager", *arguments]
        if kv_transfer_config is not None:
            self._command += ["--kv-transfer-config", json.dumps(kv_transfer_config)]
        # Without the binding vLLM runs with another number of threads once a connector is configured.
        self._environment = os.environ | {
            "VLLM_CPU_OMP_THREADS_BIND": "0-1",
            "VLLM_CPU_KVCACHE_SPACE": "2",
            # Its processes start from what is imported already: a third of the time.
            "VLLM_WORKER_MULTIPROC_METHOD": "fork",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        self._environment |= environment or {}
        self._launch = launch
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_) -> None:
        self.kill()

    @property
    def log(self) -> str:
        return (self._directory / "engine.log").read_text(errors="replace")

    def start(self, timeout_s: float = 600) -> None:
        self._socket.unlink(missing_ok=True)
        with open(self._directory / "engine.log", "a") as log:
            self._process = self._launch(
                self._command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        give_up = time.monotonic() + timeout_s
        while not self._healthy():
            if self._process.poll() is not None or time.monotonic() > give_up:
                self.kill()
                raise RuntimeError(f"vLLM did not start:\n{self.log[-4000:]}")
            time.sleep(0.2)

    def _healthy(self) -> bool:
        try:
            return self._get("/health", 5)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def kill(self) -> None:
        """As a crash would: SIGKILL, its workers too."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def stop(self, timeout_s: float = 60) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=timeout_s)
            finally:
                self.kill()

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def processes(self) -> list[int]:
        """The server, and all that it started."""
        found = []
        for entry in pathlib.Path("/proc").glob("[0-9]*/stat"):
            try:
                after_name = entry.read_text().rpartition(")")[2].split()
            except OSError:
                continue  # ended meanwhile
            if int(after_name[3]) == self._process.pid:  # its session
                found.append(int(entry.parent.name))
        return found

    def _get(self, path: str, timeout_s: float) -> tuple[int, str]:
        connection = _UnixConnection(self._socket, timeout_s)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def forget(self) -> None:
        """Drops the engine's own prefix cache, as a restart would. Needs VLLM_SERVER_DEV_MODE=1 in its environment."""
        connection, response = self.post("/reset_prefix_cache", {})
        response.read()
        connection.close()

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics, by name and labels but for those that name model and engine."""
        samples: dict[str, float] = {}
        for line in self._get("/metrics", 30)[1].splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                name = re.sub(r'(engine|model_name)="[^"]*",?', "", name).replace(",}", "}").replace("{}", "")
                samples[name] = samples.get(name, 0.0) + float(value)
        return samples

    def post(self, path: str, body: dict, timeout_s: float = 600):
        """The open connection and its response."""
        connection = _UnixConnection(self._socket, timeout_s)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{path}: {response.status} {response.read().decode()}")
        return connection, response

    def chat(self, messages: list[dict], max_tokens: int, *, stream: bool = True, **extra) -> Answer:
        """One greedy answer with the log-probabilities of the five most likely tokens of each step.

        Raises RuntimeError for an answer that the engine did not finish: once it streams, it says 200 whatever comes."""
        body = {"model": "model", "messages": messages, "max_tokens": max_tokens, "temperature": 0, "stream": stream}
        body |= {"logprobs": True, "top_logprobs": 5} | extra
        if stream:
            body["stream_options"] = {"include_usage": True}
        began = time.monotonic()
        connection, response = self.post("/v1/chat/completions", body)
        answer = Answer()
        try:
            if not stream:
                self._add(answer, json.loads(response.read()), "message")
            else:
                for line in response:
                    if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                        continue
                    self._add(answer, json.loads(line[len(b"data: ") :]), "delta")
                    if answer.first_token_s == 0.0 and answer.text:
                        answer.first_token_s = time.monotonic() - began
        finally:
            connection.close()
        if answer.finish_reason in (None, "abort", "error"):
            raise RuntimeError(f"the answer ended with finish_reason {answer.finish_reason}: {answer.text!r}")
        return answer

    @staticmethod
    def _add(answer: Answer, chunk: dict, content: str) -> None:
        if "error" in chunk:
            raise RuntimeError(f"the engine streams an error: {chunk['error']}")
        for choice in chunk.get("choices", ()):
            answer.text += choice[content].get("content") or ""
            answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
            for token in (choice.get("logprobs") or {}).get("content") or ():
                answer.logprobs.append((token["token"], [(t["token"], t["logprob"]) for t in token["top_logprobs"]]))
        usage = chunk.get("usage")
        if usage:
            answer.prompt_tokens = usage["prompt_tokens"]
            answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        answer.kv_transfer_params = chunk.get("kv_transfer_params") or answer.kv_transfer_params
