"""Conversations by name, with real vLLM over HTTP: what a request says of its conversation decides what a full tier forgets."""

import sys
import time

import pytest
from conversations import user_turn
from daemon import Daemon
from engine import Engine, transfer_config

BLOCK_TOKENS = 128


@pytest.fixture(scope="module")
def small_daemon(tmp_path_factory):
    """With memory for fifteen blocks of the chat model."""
    daemon = Daemon(tmp_path_factory.mktemp("daemon"), ram="96MiB", region="32MiB", more="conversations: {ttl_max: 600s}\n")
    daemon.start()
    yield daemon
    daemon.stop()


@pytest.fixture(scope="module")
def engine(tmp_path_factory, chat_model, small_daemon, launch):
    engine = Engine(
        sys.executable,
        chat_model,
        tmp_path_factory.mktemp("engine"),
        kv_transfer_config=transfer_config(small_daemon.address),
        arguments=["--max-model-len", "2048", "--dtype", "float32"],
        environment={"VLLM_SERVER_DEV_MODE": "1"},
        launch=launch,
    )
    engine.start()
    yield engine
    engine.kill()


def ask(engine, talk: str, salt: str | None = None, **params) -> dict:
    """What the answer says of a turn of two to three blocks; params: of its conversation."""
    message = {"role": "user", "content": f"Talk {talk}. {user_turn(0, 0, 12)}"}
    extra = {"kv_transfer_params": {f"kavern.{name}": value for name, value in params.items()}} if params else {}
    if salt is not None:
        extra["cache_salt"] = salt
    told = engine.chat([message], 4, stream=False, **extra).kv_transfer_params["kavern"]
    engine.forget()
    return told


def wait_for_updates(daemon, count: int) -> dict:
    give_up = time.monotonic() + 30
    while daemon.status()["counters"]["conversation_updates"] < count and time.monotonic() < give_up:
        pass
    return daemon.status()


def test_a_full_tier_forgets_others_before_what_matters(engine, small_daemon):
    # Two turns alike, one of them named; then enough others to fill the tier twice.
    told = ask(engine, "dear", conversation="dear", priority=90, ttl_s=3600)["conversation"]
    assert told["state"] == "being kept" and told["tokens"] >= 2 * BLOCK_TOKENS
    assert (told["priority"], told["ttl_s"]) == (90, 600)
    assert wait_for_updates(small_daemon, 1)["conversations"] == 1
    assert "conversation" not in ask(engine, "nobody's")
    for i in range(12):
        ask(engine, f"number {i}")
    assert small_daemon.status()["counters"]["evicted_blocks"] > 0
    assert ask(engine, "nobody's")["hit_tokens"] == {"ram": 0}
    assert ask(engine, "dear")["hit_tokens"] == {"ram": told["tokens"]}
    assert engine.metrics()["vllm:kavern_conversations_total"] == 1


def test_two_salts_have_two_conversations_of_one_name(engine, small_daemon):
    before = small_daemon.status()
    for salt in ("a", "b", "a"):
        assert ask(engine, "salted", salt, conversation="c")["conversation"]["state"] == "being kept"
    after = wait_for_updates(small_daemon, before["counters"]["conversation_updates"] + 3)
    assert after["counters"]["conversation_updates"] == before["counters"]["conversation_updates"] + 3
    assert after["conversations"] == before["conversations"] + 2


def test_a_bad_value_is_told_and_changes_nothing(engine, small_daemon):
    before = small_daemon.status()["counters"]["conversation_updates"]
    told = ask(engine, "bad", conversation="c", priority="abc")["conversation"]
    assert told == {"state": "not kept", "why": "kavern.priority: got 'abc', expected an integer from 0 to 100"}
    # The next one is right, and the only one that the daemon hears of.
    assert ask(engine, "good", conversation="good")["conversation"]["state"] == "being kept"
    assert wait_for_updates(small_daemon, before + 1)["counters"]["conversation_updates"] == before + 1
