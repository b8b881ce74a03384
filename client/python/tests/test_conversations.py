"""Conversations, from the outside: what a real daemon makes of a name, a priority and a TTL."""

import time

import kavern
import pytest
from conftest import PART_BYTES, keys_of, payload, spec_of


def store(ns, keys):
    result = ns.store(keys, [payload(key) for key in keys])
    assert result.stored_bytes == len(keys) * PART_BYTES, result.decline_reason


def test_what_was_told_is_described_and_told_anew(ns):
    keys = keys_of(ns, 1, 5)
    store(ns, keys)
    terms = ns.update_conversation("chat", keys[2], 12, priority=60, ttl=3600)
    assert (terms.priority, terms.ttl, terms.updates) == (60, 3600.0, 1)
    terms = ns.update_conversation("chat", keys[4], 20, priority=0)
    assert (terms.priority, terms.ttl, terms.updates) == (0, 3600.0, 2)
    info = ns.describe_conversation("chat")
    assert (info.leaf, info.leaf_tier, info.token_count, info.priority, info.updates) == (keys[4], "ram", 20, 0, 2)
    assert 3590 < info.ttl <= 3600 and 0 <= info.idle <= info.age < 10


def test_a_name_is_of_its_namespace(client, ns):
    keys = keys_of(ns, 1, 1)
    store(ns, keys)
    ns.update_conversation("chat", keys[0], 4)
    with pytest.raises(kavern.NotFoundError):
        client.open_namespace(spec_of("another")).describe_conversation("chat")


@pytest.mark.parametrize(
    "changes, error, field",
    [
        ({"name": ""}, kavern.InvalidArgumentError, "conversation"),
        ({"name": "c" * 257}, kavern.InvalidArgumentError, "conversation"),
        ({"priority": 101}, kavern.InvalidArgumentError, "priority"),
        ({"token_count": 7}, kavern.InvalidArgumentError, "token_count"),
        ({"leaf": bytes(15)}, ValueError, "16"),
        ({"leaf": b"k" * 16}, kavern.NotFoundError, "leaf"),
        ({"ttl": 0}, ValueError, "ttl"),
        ({"ttl": -1.5}, ValueError, "ttl"),
        ({"ttl": float("nan")}, ValueError, "ttl"),
    ],
)
def test_what_is_wrong_is_named_and_changes_nothing(ns, changes, error, field):
    keys = keys_of(ns, 1, 1)
    store(ns, keys)
    update = {"name": "chat", "leaf": keys[0], "token_count": 4} | changes
    with pytest.raises(error, match=field):
        ns.update_conversation(**update)
    with pytest.raises(kavern.KavernError):
        ns.describe_conversation(update["name"])


def test_what_is_asked_for_is_lowered_to_the_configuration(make_daemon):
    daemon = make_daemon(ram="16MiB", more="conversations: {priority_max: 70, ttl_max: 60s, ttl_default: 5s}\n")
    with kavern.Client(daemon.address) as client:
        client.wait_until_attached()
        ns = client.open_namespace(spec_of())
        limits = ns.conversation_limits
        assert (limits.priority_max, limits.ttl_max, limits.ttl_default) == (70, 60.0, 5.0)
        keys = keys_of(ns, 1, 1)
        store(ns, keys)
        terms = ns.update_conversation("chat", keys[0], 4, priority=100, ttl=1e9)
        assert (terms.priority, terms.ttl) == (70, 60.0)
        terms = ns.update_conversation("chat", keys[0], 4)
        assert (terms.priority, terms.ttl) == (50, 5.0)


@pytest.mark.parametrize("priority, left", [(90, 200), (None, 0)])
def test_a_priority_decides_what_a_full_tier_forgets(make_daemon, priority, left):
    daemon = make_daemon(ram="4MiB")  # 1024 blocks
    with kavern.Client(daemon.address) as client:
        client.wait_until_attached()
        ns = client.open_namespace(spec_of())
        dear = keys_of(ns, 1_000_000, 200)
        store(ns, dear)
        if priority is not None:
            ns.update_conversation("dear", dear[-1], 4 * len(dear), priority=priority)
        for first in range(2_000_000, 5_000_000, 1_000_000):
            store(ns, keys_of(ns, first, 500))
        assert ns.match(dear) == left


def test_a_conversation_ends_with_its_ttl(ns):
    keys = keys_of(ns, 1, 1)
    store(ns, keys)
    ns.update_conversation("chat", keys[0], 4, ttl=0.2)
    give_up = time.monotonic() + 20
    with pytest.raises(kavern.NotFoundError):
        while time.monotonic() < give_up:
            ns.describe_conversation("chat")
    assert ns.match(keys) == 1


def test_a_flood_of_names_displaces_the_flooders_and_is_counted(make_daemon):
    daemon = make_daemon(ram="16MiB", more="conversations: {count_per_tenant_max: 10}\n")
    with kavern.Client(daemon.address) as client:
        client.wait_until_attached()
        ns = client.open_namespace(spec_of())
        keys = keys_of(ns, 1, 1)
        store(ns, keys)
        for i in range(25):
            ns.update_conversation(f"chat {i}", keys[0], 4, ttl=1000 + i)
        status = daemon.status()
        assert status["conversations"] == 10
        assert status["counters"]["conversations_displaced"] == 15
        assert ns.describe_conversation("chat 24").updates == 1


def test_a_restarted_daemon_is_told_again(daemon, ns):
    keys = keys_of(ns, 1, 1)
    store(ns, keys)
    ns.update_conversation("chat", keys[0], 4)
    daemon.kill()
    daemon.start()
    give_up = time.monotonic() + 20
    while time.monotonic() < give_up:
        try:
            store(ns, keys)
            break
        except kavern.KavernError:
            pass
    with pytest.raises(kavern.NotFoundError):
        ns.describe_conversation("chat")
    assert ns.update_conversation("chat", keys[0], 4).updates == 1
