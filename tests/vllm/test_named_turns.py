"""What requests say of their conversations, told to the daemon at the end of each turn."""

import time

import kavern
import pytest
from kavern.vllm.conversations import wish_of
from played_scheduler import BLOCK, Request, Scheduler, store


@pytest.fixture(scope="module")
def daemon(many_small):
    return many_small


def finish_named(scheduler, daemon, request, **params) -> dict:
    """What the answer says of the conversation; all of the request's blocks are stored."""
    request.kv_transfer_params = {f"kavern.{name}": value for name, value in params.items()}
    scheduler.admit(request)
    scheduler.step((request, request.num_tokens))
    store(scheduler, daemon, request.all_token_ids, request.num_tokens // BLOCK)
    return scheduler.side.finished(request)["kavern"]["conversation"]


def wait_for_tellings(scheduler, count: int) -> dict:
    """What is counted once so many conversations have been told, or could not be."""
    counts, give_up = {}, time.monotonic() + 30
    while sum(counts.values()) < count and time.monotonic() < give_up:
        scheduler.step()
        counts = {name: n for name, n in scheduler.side.stats.data.items() if name.startswith("conversation")}
    return counts


def described(scheduler, daemon, name: str) -> kavern.ConversationInfo:
    with kavern.Client(daemon.address) as client:
        client.wait_until_attached()
        return client.open_namespace(scheduler.identity.spec(0)).describe_conversation(name)


def test_a_named_conversation_reaches_the_daemon_with_its_turn(scheduler, daemon):
    request = Request("a", range(9))
    told = finish_named(scheduler, daemon, request, conversation="c", priority=60, ttl_s=3600)
    assert told == {"state": "being kept", "tokens": 8, "priority": 60, "ttl_s": 3600}
    assert wait_for_tellings(scheduler, 1) == {"conversations": 1}
    info = described(scheduler, daemon, "plain:c")
    assert (info.token_count, info.priority, info.leaf_tier) == (8, 60, "ram")
    assert 3500 < info.ttl <= 3600
    # The next turn, which says less and goes on.
    told = finish_named(scheduler, daemon, Request("b", range(17)), conversation="c")
    assert told == {"state": "being kept", "tokens": 16, "priority": 50, "ttl_s": 3600}
    assert wait_for_tellings(scheduler, 2) == {"conversations": 2}
    info = described(scheduler, daemon, "plain:c")
    assert (info.token_count, info.priority, info.updates) == (16, 50, 2)


def test_what_a_conversation_gets_is_told_after_clamping(scheduler, daemon):
    told = finish_named(scheduler, daemon, Request("a", range(1000, 1009)), conversation="c", priority=100, ttl_s=1e9)
    assert told == {"state": "being kept", "tokens": 8, "priority": 100, "ttl_s": 24 * 3600}
    assert wait_for_tellings(scheduler, 1) == {"conversations": 1}
    assert described(scheduler, daemon, "plain:c").ttl <= 24 * 3600


def test_no_two_salts_share_a_name():
    def scoped(name, salt):
        return wish_of({"kavern.conversation": name}, salt).name

    names = [scoped("c", None), scoped("c", "s"), scoped("c", "t"), scoped("sc", "s"), scoped("c", "ss")]
    # What looks like a name that another one became, and what is half a character.
    names += [scoped(scoped("c", "s"), None), scoped("plain:c", None), scoped("\ud800", None), scoped("?", None)]
    assert len(set(names)) == len(names)
    assert all(len(name.encode()) <= 256 for name in [*names, scoped("c" * 240, None), scoped("c" * 240, "s" * 999)])


@pytest.mark.parametrize(
    "params, why",
    [
        ({"conversation": "c", "priority": "abc"}, "kavern.priority: got 'abc', expected an integer from 0 to 100"),
        ({"conversation": "c", "priority": 101}, "kavern.priority: got 101"),
        ({"conversation": "c", "priority": True}, "kavern.priority: got True"),
        ({"conversation": "c", "ttl_s": -1}, "kavern.ttl_s: got -1, expected seconds above 0"),
        ({"conversation": "c", "ttl_s": float("nan")}, "kavern.ttl_s: got nan"),
        ({"conversation": ""}, "kavern.conversation: got ''"),
        ({"conversation": 7}, "kavern.conversation: got 7"),
        ({"conversation": "c" * 241}, "expected a string of 1 to 240 bytes"),
        ({"priority": 60}, "kavern.priority without kavern.conversation"),
        ({"conversation": "c", "prioritty": 60}, "unknown key kavern.prioritty; did you mean kavern.priority?"),
    ],
)
def test_bad_values_are_told_and_change_nothing(scheduler, daemon, params, why):
    told = finish_named(scheduler, daemon, Request("a", range(3000, 3009)), **params)
    assert told["state"] == "not kept" and why in told["why"]
    # The next one, which is right, is the first that the daemon hears of.
    assert finish_named(scheduler, daemon, Request("b", range(3000, 3009)), conversation="c")["state"] == "being kept"
    assert wait_for_tellings(scheduler, 1) == {"conversations": 1}
    assert described(scheduler, daemon, "plain:c").updates == 1


def test_a_conversation_that_cannot_be_kept_says_why(scheduler, daemon):
    short = Request("short", range(3), kv_transfer_params={"kavern.conversation": "c"})
    scheduler.admit(short)
    scheduler.step((short, 3))
    why = {"state": "not kept", "why": "it is shorter than a block"}
    assert scheduler.side.finished(short)["kavern"]["conversation"] == why
    given = Request("given", range(9), prompt_embeds=object(), kv_transfer_params={"kavern.conversation": "c"})
    scheduler.admit(given)
    why = {"state": "not kept", "why": "prompt embeddings are not cached"}
    assert scheduler.side.finished(given)["kavern"]["conversation"] == why
    scheduler.side._link.breaker.trouble()
    away = Request("away", range(9), kv_transfer_params={"kavern.conversation": "c"})
    scheduler.admit(away)
    assert scheduler.side.finished(away)["kavern"]["conversation"] == {"state": "not kept", "why": "the daemon is away"}


def test_a_turn_of_which_nothing_was_stored_is_counted(scheduler):
    request = Request("a", range(4000, 4009), kv_transfer_params={"kavern.conversation": "c"})
    scheduler.admit(request)
    scheduler.step((request, 9))  # no worker saves it
    assert scheduler.side.finished(request)["kavern"]["conversation"]["state"] == "being kept"
    assert wait_for_tellings(scheduler, 1) == {"conversation_failures": 1}


def test_of_one_conversation_a_later_turn_is_not_told_before_an_earlier_one(daemon):
    """Whose blocks come late. Then the conversation would end where it was before."""
    scheduler = Scheduler(daemon, "in order", load_timeout_s=60)
    early = Request("early", range(5000, 5009), kv_transfer_params={"kavern.conversation": "c"})
    scheduler.admit(early)
    scheduler.step((early, 9))
    assert scheduler.side.finished(early)["kavern"]["conversation"]["tokens"] == 8
    late = Request("late", range(6000, 6017))  # the conversation was edited
    assert finish_named(scheduler, daemon, late, conversation="c")["tokens"] == 16
    # Nobody waits for another's conversation. Once it has been told, both turns have been looked at.
    assert finish_named(scheduler, daemon, Request("other", range(7000, 7009)), conversation="d")["tokens"] == 8
    assert wait_for_tellings(scheduler, 1) == {"conversations": 1}
    assert described(scheduler, daemon, "plain:d").updates == 1
    store(scheduler, daemon, early.all_token_ids, 2)
    assert wait_for_tellings(scheduler, 3) == {"conversations": 3}
    info = described(scheduler, daemon, "plain:c")
    assert (info.token_count, info.updates) == (16, 2)
    scheduler.side.close()
