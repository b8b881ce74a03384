"""A real daemon for every test that asks: KAVERN_BIN is the directory of kavernd and kavern."""

import os
import pathlib
import signal
import subprocess

import kavern
import pytest


class Daemon:
    def __init__(self, directory: pathlib.Path, ram: str):
        self.directory = directory
        self.ram = ram
        self.bin = pathlib.Path(os.environ["KAVERN_BIN"])
        self.address = f"unix://{directory}/kavern.sock"
        self.process = None

    def start(self) -> None:
        config = self.directory / "kavern.yaml"
        config.write_text(
            f"listen: {{socket: {self.directory}/kavern.sock}}\n"
            'http: {address: ""}\n'
            f"ram: {{capacity: {self.ram}, region: 2MiB, reserve: 0}}\n"
        )
        with open(self.directory / "kavernd.log", "a") as log:
            self.process = subprocess.Popen([self.bin / "kavernd", "--config", config], stderr=log)
        self.kavern("status", "--wait-ms", "20000")

    def kavern(self, *arguments: str) -> str:
        command = [self.bin / "kavern", "--address", self.address, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process = None

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            assert self.process.wait(timeout=20) == 0


@pytest.fixture
def make_daemon(tmp_path):
    """Starts a daemon; `ram` is its capacity."""
    daemons = []

    def make(ram: str) -> Daemon:
        daemons.append(Daemon(tmp_path, ram))
        daemons[-1].start()
        return daemons[-1]

    yield make
    for daemon in daemons:
        daemon.stop()


@pytest.fixture
def daemon(make_daemon):
    return make_daemon(ram="16MiB")


@pytest.fixture
def client(daemon):
    with kavern.Client(daemon.address) as client:
        client.wait_until_attached()
        yield client


PART_BYTES = 4096


def spec_of(model: str = "m", **names) -> kavern.NamespaceSpec:
    """Blocks of four tokens, one part of 4096 bytes each."""
    group = kavern.LayerGroup(1, kv_heads=2, head_dim=256)
    return kavern.NamespaceSpec(model, kavern.KvLayout(4, [group], dtype="int8"), **names)


@pytest.fixture
def ns(client):
    return client.open_namespace(spec_of())


def keys_of(ns, first: int, count: int) -> list:
    chain = ns.chain()
    chain.append(list(range(first, first + 4 * count)))
    return chain.keys


def payload(key: bytes) -> bytes:
    return key * (PART_BYTES // len(key))
