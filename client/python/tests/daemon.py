"""kavernd for tests: KAVERN_BIN is the directory of kavernd and kavern."""

import json
import os
import pathlib
import re
import signal
import subprocess


class Daemon:
    """One kavernd in a directory of its own. ram, region: sizes as in its YAML; more: more lines of it; tcp: listens on a
    port of 127.0.0.1, too, for the tenant `default`."""

    def __init__(self, directory: pathlib.Path, ram: str, region: str = "2MiB", more: str = "", tcp: bool = False):
        self.directory = directory
        self.ram = ram
        self.region = region
        self.more = more
        self.tcp = tcp
        self.bin = pathlib.Path(os.environ["KAVERN_BIN"])
        self.address = f"unix://{directory}/kavern.sock"
        self.process = None

    def start(self) -> None:
        config = self.directory / "kavern.yaml"
        tcp = ', tcp: {address: "127.0.0.1:0", tenant: default, insecure: true}' if self.tcp else ""
        config.write_text(
            f"listen: {{socket: {self.directory}/kavern.sock{tcp}}}\n"
            'http: {address: ""}\n'
            f"ram: {{capacity: {self.ram}, region: {self.region}, reserve: 0}}\n" + self.more
        )
        with open(self.directory / "kavernd.log", "a") as log:
            self.process = subprocess.Popen([self.bin / "kavernd", "--config", config], stderr=log)
        self.kavern("status", "--wait-ms", "120000")

    def kavern(self, *arguments: str) -> str:
        command = [self.bin / "kavern", "--address", self.address, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def tcp_address(self) -> str:
        log = (self.directory / "kavernd.log").read_text()
        return f"tcp://127.0.0.1:{re.findall('tcp: port ([0-9]+)', log)[-1]}"

    def status(self) -> dict:
        return json.loads(self.kavern("status", "--json"))

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process = None

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            assert self.process.wait(timeout=20) == 0
