"""A kavernd with a file as its NVMe tier, to be killed and started again. Needs only Python's standard library."""

from __future__ import annotations

import json
import pathlib
import subprocess
import time


class Daemon:
    """binaries: the folder of kavernd and kavern. directory: for the socket, the disk's file, its catalog and the log. A
    context manager, which ends it."""

    def __init__(self, binaries: pathlib.Path, directory: pathlib.Path, *, ram: str = "512MiB", nvme: str = "1GiB"):
        self._binaries = binaries
        self._directory = directory
        self.address = f"unix://{directory}/kavern.sock"
        settings = {
            "listen.socket": f"{directory}/kavern.sock",
            "http.address": "",
            "ram.capacity": ram,
            "ram.region": "64MiB",
            "nvme.devices": f"[{{path: {directory}/nvme, capacity: {nvme}}}]",
            "nvme.catalog": f"{directory}/catalog",
            "nvme.durability": "batch",
        }
        self._command = [str(binaries / "kavernd")]
        for key, value in settings.items():
            self._command += ["--set", f"{key}={value}"]
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_) -> None:
        self.kill()

    def start(self) -> None:
        with open(self._directory / "kavernd.log", "a") as log:
            self._process = subprocess.Popen(self._command, stderr=log)
        try:
            self._kavern("status", "--wait-ms", "120000")
        except subprocess.CalledProcessError:
            self.kill()
            log = (self._directory / "kavernd.log").read_text(errors="replace")
            raise RuntimeError(f"kavernd did not start:\n{log[-4000:]}") from None

    def kill(self) -> None:
        """As a crash would: SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def status(self) -> dict:
        return json.loads(self._kavern("status", "--json"))

    def wait_until_written(self, timeout_s: float = 60) -> None:
        """Until all that was stored is on disk. Raises RuntimeError."""
        give_up = time.monotonic() + timeout_s
        while True:
            status = self.status()
            if status["leases"] == 0 and status["nvme"]["write_back_blocks"] == 0:
                return
            if time.monotonic() > give_up:
                raise RuntimeError(f"still not on disk after {timeout_s:.0f} s: {status}")
            time.sleep(0.05)

    def _kavern(self, *arguments: str) -> str:
        command = [str(self._binaries / "kavern"), "--address", self.address, *arguments]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
