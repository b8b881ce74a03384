"""A real daemon for every test that asks."""

import kavern
import pytest
from daemon import Daemon


@pytest.fixture
def make_daemon(tmp_path):
    """Starts a daemon; `ram` is its capacity, `more` more lines of its configuration."""
    daemons = []

    def make(ram: str, more: str = "") -> Daemon:
        daemons.append(Daemon(tmp_path, ram, more=more))
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
