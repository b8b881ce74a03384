"""The scheduler's half under sequences of hooks that were written by hand, after vLLM's sources: drafts, steps planned
ahead, reports that come late. What a real engine called is in test_recorded_hooks.py."""

import os
import signal
import time
from dataclasses import replace
from types import SimpleNamespace

import kavern
import pytest
from daemon import Daemon
from kavern.vllm import settings
from kavern.vllm.adapters import Adapters
from kavern.vllm.conversations import wish_of
from kavern.vllm.events import KvEvents
from kavern.vllm.identity import GroupTensors, check_version, layers_by_name
from kavern.vllm.link import Breaker
from kavern.vllm.messages import Handshake, StepReport
from kavern.vllm.worker import is_trouble
from played_scheduler import BLOCK, NULL, Request, Scheduler, store
from vllm.distributed.kv_events import BlockRemoved, BlockStored
from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash


@pytest.fixture(scope="module")
def daemon(many_small):
    return many_small


@pytest.fixture
def scheduler(daemon, request):
    scheduler = Scheduler(daemon, request.node.name)
    yield scheduler
    scheduler.side.close()


def test_a_hit_stops_before_the_last_token(scheduler, daemon):
    tokens = range(100, 116)
    keys = store(scheduler, daemon, tokens, 4)
    request = Request("a", tokens)
    assert scheduler.admit(request) == 12
    (load,) = scheduler.step().loads
    assert load.groups == [(keys[:3], [1, 2, 3])]
    assert scheduler.step().loads == []


def test_what_the_engine_has_is_not_loaded(scheduler, daemon):
    tokens = range(200, 217)
    keys = store(scheduler, daemon, tokens, 4)
    request = Request("a", tokens)
    assert scheduler.admit(request, local=8) == 8
    assert scheduler.step().loads[0].groups == [(keys[2:4], [3, 4])]
    other = Request("b", tokens)
    assert scheduler.admit(other, local=16) == 0
    assert scheduler.side.finished(other)["kavern"]["miss"] == "the engine has it itself"


def test_what_is_quicker_to_compute_is_not_loaded(daemon, request):
    scheduler = Scheduler(daemon, request.node.name, block_tokens=128, follow_plan=True)
    tokens = range(1000, 1520)
    keys = store(scheduler, daemon, tokens, 4)
    turn = Request("a", tokens)
    assert scheduler.admit(turn) == 512  # nothing was measured yet
    namespace = scheduler.side._link.namespace()
    parts = [bytearray(namespace.spec.layout.part_bytes()) for _ in keys]
    give_up = time.monotonic() + 30
    while not (plan := namespace.plan(keys, 520)).measured:
        assert time.monotonic() < give_up
        namespace.report_prefill(0, 512, 1e-6)
        namespace.fetch_into(keys, parts)
    assert plan.total_ms < 0.01
    computed = Request("b", tokens)
    assert scheduler.side.matched_tokens(computed, 0) == 0
    assert scheduler.side.finished(computed)["kavern"]["miss"] == "from token 0 on it is quicker to compute"
    scheduler.side.close()


def test_a_prefill_that_has_a_step_for_itself_is_told_of(scheduler):
    alone, other = Request("a", range(600, 620)), Request("b", range(700, 720))
    scheduler.admit(alone)
    scheduler.admit(other)
    assert scheduler.step((alone, 8)).alone == (0, 8)
    assert scheduler.step((alone, 1)).alone is None  # an answer's token
    assert scheduler.step((alone, 4), (other, 8)).alone is None


def test_steps_planned_ahead_save_known_tokens_only(scheduler):
    request = Request("a", range(10))
    scheduler.admit(request)
    assert [len(s.keys) for s in scheduler.step((request, 10)).saves] == [2]
    # Two steps are planned before the first sampled token is known: they complete no block.
    assert scheduler.step((request, 1)).saves == []
    assert scheduler.step((request, 1)).saves == []
    request.all_token_ids += [77, 78]
    (save,) = scheduler.step((request, 1)).saves
    assert (save.first, len(save.keys), save.pages) == (2, 1, [[3]])


def test_rejected_drafts_are_not_saved(scheduler):
    request = Request("a", range(6))
    scheduler.admit(request)
    scheduler.step((request, 6))
    request.all_token_ids.append(50)
    # One sampled token and three drafts are computed; all drafts are rejected.
    assert scheduler.step((request, 4)).saves == []
    request.num_computed_tokens -= 3
    request.all_token_ids.append(51)
    (save,) = scheduler.step((request, 4)).saves
    # The key is that of the tokens that were accepted.
    chain = scheduler.side._link.namespace().chain()
    chain.append(request.all_token_ids)
    assert save.keys == chain.keys[1:2]


def test_a_save_that_failed_is_offered_again(scheduler):
    request = Request("a", range(8))
    scheduler.admit(request)
    assert scheduler.step((request, 8)).saves[0].first == 0
    request.all_token_ids += [1, 2, 3, 4]
    scheduler.report(failed_saves={"a"})
    (save,) = scheduler.step((request, 4)).saves
    assert (save.first, len(save.keys), save.parent) == (0, 3, None)


def test_what_a_daemon_lost_is_saved_again_though_the_engine_hit_it(scheduler):
    request = Request("a", range(20))
    scheduler.admit(request, local=16)
    request.num_computed_tokens = 16
    (save,) = scheduler.step((request, 4)).saves
    assert (save.first, len(save.keys)) == (0, 5)


def test_after_a_failed_load_the_next_lookup_misses(scheduler, daemon):
    tokens = range(300, 317)
    store(scheduler, daemon, tokens, 4)
    request = Request("a", tokens)
    assert scheduler.admit(request) == 16
    scheduler.step()
    scheduler.report(failed_loads={"a"})
    scheduler.report(failed_loads={"a"})  # by another rank, a step later
    assert scheduler.side.stats.data["failed_tokens"] == scheduler.side.stats.data["hit_tokens"] == 16
    assert scheduler.admit(request) == 0
    assert scheduler.side.finished(request)["kavern"]["miss"] == "a load failed"
    assert scheduler.admit(Request("b", tokens)) == 16


def test_a_preempted_request_looks_up_its_own_output(scheduler, daemon):
    request = Request("a", range(400, 410))
    scheduler.admit(request)
    scheduler.step((request, 10))
    request.all_token_ids += range(410, 420)
    store(scheduler, daemon, request.all_token_ids, 5)
    request.num_computed_tokens = 0
    assert scheduler.admit(request) == 16


def test_a_request_that_is_gone_may_still_be_reported(scheduler, daemon):
    tokens = range(500, 517)
    store(scheduler, daemon, tokens, 4)
    request = Request("a", tokens)
    scheduler.admit(request)
    scheduler.step()
    scheduler.side.finished(request)
    scheduler.report(failed_loads={"a"}, failed_saves={"a"})


def test_of_a_sliding_window_only_pages_are_loaded_and_nothing_incomplete_is_saved(daemon):
    scheduler = Scheduler(daemon, "sliding", groups=2)
    tokens = range(600, 617)
    keys = store(scheduler, daemon, tokens, 4)
    request = Request("a", tokens)
    pages = ([1, 2, 3, 4, 5, 6], [NULL, NULL, NULL, 7, 8, 9])
    assert scheduler.admit(request, pages) == 16
    assert scheduler.step().loads[0].groups == [(keys, [1, 2, 3, 4]), (keys[3:], [7])]
    # Another conversation, whose first pages left the window unsaved.
    late = Request("b", range(700, 720))
    scheduler.admit(late, pages)
    assert scheduler.step((late, 20)).saves == []
    assert "sliding window" in scheduler.side._requests.get("b").why_not
    scheduler.side.close()


def test_pages_of_new_tokens_are_told_where_workers_copy_after_the_step(daemon):
    new = [
        SimpleNamespace(num_computed_tokens=0, block_ids=([1, 2], [3, 4])),
        SimpleNamespace(num_computed_tokens=2 * BLOCK + 1, block_ids=([5, 6, 7, 8], [NULL, NULL, 9, 10])),
    ]
    cached = SimpleNamespace(
        req_ids=["goes on", "needs none", "resumed"],
        resumed_req_ids={"resumed"},
        num_computed_tokens=[9 * BLOCK, 5 * BLOCK, BLOCK],
        new_block_ids=[([11], [12]), None, ([13, 14], [NULL, 15])],
    )
    output = {"scheduled_new_reqs": new, "scheduled_cached_reqs": cached, "new_block_ids_to_zero": [16]}
    scheduler = Scheduler(daemon, "fences", groups=2, copies_later=True)
    assert scheduler.step(**output).fresh_pages == {1, 2, 3, 4, 7, 8, 9, 10, 11, 12, 14, 15, 16}
    scheduler.side.close()
    scheduler = Scheduler(daemon, "no fences", groups=2)
    assert scheduler.step(**output).fresh_pages == set()
    scheduler.side.close()


def test_a_step_saves_no_more_than_may_be_on_its_way(daemon):
    bound = 3 * 4096 + 1  # three blocks
    scheduler = Scheduler(daemon, "bounded", copies_later=True, inflight_save_bytes_max=bound)
    request = Request("a", range(20))
    scheduler.admit(request)
    none = SimpleNamespace(req_ids=[], resumed_req_ids=set(), num_computed_tokens=[], new_block_ids=[])
    output = {"scheduled_new_reqs": [], "scheduled_cached_reqs": none, "new_block_ids_to_zero": None}
    assert [len(s.keys) for s in scheduler.step((request, 20), **output).saves] == [3]
    request.all_token_ids += [1, 2, 3, 4]
    (save,) = scheduler.step((request, 4), **output).saves
    assert (save.first, len(save.keys)) == (3, 3)
    scheduler.side.close()


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"prompt_embeds": object()}, "prompt embeddings are not cached"),
        ({"resumable": True}, "streamed input is not cached"),
        ({"skip_reading_prefix_cache": True}, "the request does not read caches"),
    ],
)
def test_what_is_not_cached_says_why(scheduler, daemon, changes, why):
    tokens = range(800, 817)
    store(scheduler, daemon, tokens, 4)
    request = Request("a", tokens, **changes)
    assert scheduler.admit(request) == 0
    assert scheduler.side.finished(request)["kavern"]["miss"] == why


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


def test_salts_adapters_and_images_separate_conversations(scheduler, daemon, tmp_path):
    tokens = range(900, 917)
    store(scheduler, daemon, tokens, 4)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    adapter = SimpleNamespace(lora_path=str(tmp_path), lora_int_id=1)
    image = SimpleNamespace(identifier="image", mm_position=SimpleNamespace(offset=5, length=3))
    assert scheduler.admit(Request("plain", tokens)) == 16
    assert scheduler.admit(Request("salted", tokens, cache_salt="s")) == 0
    assert scheduler.admit(Request("adapted", tokens, lora_request=adapter)) == 0
    assert scheduler.admit(Request("seeing", tokens, mm_features=[image])) == 4  # the block before the image is shared


def lora(path, number: int = 1):
    return SimpleNamespace(lora_path=str(path), lora_int_id=number)


def adapter_at(path, weights: bytes):
    path.mkdir()
    (path / "adapter_model.safetensors").write_bytes(weights)
    return path


def test_an_adapter_is_its_content(scheduler, tmp_path):
    adapters = [adapter_at(tmp_path / name, weights) for name, weights in (("a", b"1"), ("b", b"2"), ("c", b"1"))]
    scheduler.side._requests._adapters = Adapters(may_be_replaced=False)
    saved = []
    for number, path in enumerate(adapters):
        request = Request(f"request {number}", range(9), lora_request=lora(path, number))
        scheduler.admit(request)
        saved.append(scheduler.step((request, 9)).saves[0].keys)
    assert saved[0] == saved[2] != saved[1]


# The engine reads an adapter's files at a time of its own: what it has then is not what lies there now.
@pytest.mark.parametrize("change", ["written", "replaced", "linked", "gone"])
def test_an_adapter_that_changes_while_the_engine_runs_is_not_cached_any_more(scheduler, tmp_path, change):
    path = adapter_at(tmp_path / "adapter", b"weights")
    (tmp_path / "link").symlink_to(path)
    path = tmp_path / "link"
    wait_for_next_change_time(tmp_path)
    scheduler.side._requests._adapters = Adapters(may_be_replaced=False)
    running = Request("running", range(17), lora_request=lora(path))
    scheduler.admit(running)
    assert len(scheduler.step((running, 8)).saves) == 1
    other = adapter_at(tmp_path / "other", b"other weights")
    wait_for_next_change_time(tmp_path)
    if change == "written":
        (path / "adapter_model.safetensors").write_bytes(b"other weights")
    elif change == "gone":
        (path / "adapter_model.safetensors").unlink()
    elif change == "replaced":
        (tmp_path / "adapter").rename(tmp_path / "old")
        other.rename(tmp_path / "adapter")
    else:
        path.unlink()
        path.symlink_to(other)
    why = "the adapter's files cannot be read" if change == "gone" else "the adapter's files are newer than the engine"
    later = Request("later", range(17), lora_request=lora(path))
    scheduler.admit(later)
    assert scheduler.step((running, 8), (later, 8)).saves == []
    for request in (running, later):
        assert scheduler.side._requests.get(request.request_id).why_not.startswith(why)


def wait_for_next_change_time(directory) -> None:
    """Files have the time of the last tick, and those of two ticks are told apart."""
    probe, now = directory / "probe", time.time_ns()
    while not probe.exists() or probe.stat().st_ctime_ns <= now:
        probe.write_bytes(b"")


def test_adapters_that_can_be_replaced_at_run_time_are_not_cached(scheduler, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    scheduler.side._requests._adapters = Adapters()
    request = Request("a", range(9), lora_request=lora(adapter_at(tmp_path / "adapter", b"weights")))
    scheduler.admit(request)
    assert scheduler.step((request, 9)).saves == []
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in scheduler.side.finished(request)["kavern"]["miss"]


def test_what_clients_call_their_images_is_not_shared_with_other_engines(daemon):
    tokens, saved = range(900, 917), []
    for name in ("image-0", "image-0", "ab" * 32, "ab" * 32):
        scheduler = Scheduler(daemon, "images")
        image = SimpleNamespace(identifier=name, mm_position=SimpleNamespace(offset=0, length=3))
        request = Request("a", tokens, mm_features=[image])
        scheduler.admit(request)
        saved.append(scheduler.step((request, 17)).saves[0].keys)
        scheduler.side.close()
    assert saved[0] != saved[1]
    assert saved[2] == saved[3]


def test_a_reset_while_the_daemon_hangs_holds_no_step(tmp_path):
    daemon = Daemon(tmp_path, ram="64MiB")
    daemon.start()
    scheduler = Scheduler(daemon, "hanging")
    os.kill(daemon.process.pid, signal.SIGSTOP)
    began = time.monotonic()
    try:
        scheduler.side.reset()
        for number in range(8):
            request = Request(f"request {number}", range(17))
            assert scheduler.admit(request) == 0
            assert scheduler.step((request, 17)).saves == []
        assert time.monotonic() - began < scheduler.side._settings.load_timeout_s
    finally:
        os.kill(daemon.process.pid, signal.SIGCONT)
    give_up = time.monotonic() + 30
    while scheduler.side._link.namespace() is None:
        assert time.monotonic() < give_up
    request = Request("after", range(17))
    scheduler.admit(request)
    assert len(scheduler.step((request, 17)).saves) == 1
    scheduler.side.close()
    daemon.stop()


def test_ranks_on_several_machines_are_refused(scheduler):
    here = Handshake(scheduler.identity)
    with pytest.raises(ValueError, match="2 machines"):
        scheduler.side.handshake({(0, 0): here, (0, 1): replace(here, machine="another")})


def test_an_engine_whose_workers_run_code_of_others_shares_nothing(daemon):
    tokens = range(2000, 2017)
    for _ in range(2):
        scheduler = Scheduler(daemon, "extended", worker_extension="trainer.WorkerExtension")
        request = Request("a", tokens)
        assert scheduler.admit(request) == 0
        assert len(scheduler.step((request, 17)).saves) == 1
        store(scheduler, daemon, tokens, 4)  # into the namespace that others share
        scheduler.side.close()


def test_a_reset_leaves_what_was_stored_to_others(scheduler, daemon):
    tokens = range(1000, 1017)
    store(scheduler, daemon, tokens, 4)
    scheduler.side.reset()
    assert scheduler.admit(Request("a", tokens)) == 0
    plan = scheduler.step()
    assert plan.epoch != 0
    other = Scheduler(daemon, scheduler.identity.model)
    assert other.admit(Request("b", tokens)) == 16
    other.side.close()


def test_an_engine_whose_weights_are_sent_in_shares_nothing(scheduler, daemon):
    tokens = range(1100, 1117)
    store(scheduler, daemon, tokens, 4)
    trained = Scheduler(daemon, scheduler.identity.model, weight_transfer=object())
    assert trained.admit(Request("a", tokens)) == 0
    assert trained.step().epoch != 0
    trained.side.close()


def test_trouble_rests_the_daemon_and_success_ends_it():
    now = [0.0]
    breaker = Breaker(clock=lambda: now[0])
    rests = []
    for _ in range(6):
        breaker.trouble()
        breaker.trouble()  # of something asked before: counts once
        began = now[0]
        while not breaker.closed:
            now[0] += 0.25
        rests.append(now[0] - began)
    assert rests == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]
    breaker.success()
    breaker.trouble()
    assert not breaker.closed
    now[0] += 0.5
    assert breaker.closed


def test_a_load_of_which_a_part_came_too_late_is_trouble():
    gone, late = kavern.NotFoundError("gone"), kavern.DeadlineExceededError("late")
    for error, errors, trouble in (
        (None, [[None, None]], False),
        (None, [[None, gone], [gone]], False),
        (None, [[None, None], [None, late]], True),
        (kavern.UnavailableError("away"), [[]], True),
        (kavern.ResourceExhaustedError("full"), [], False),
    ):
        assert is_trouble(SimpleNamespace(error=error, errors=errors)) is trouble


@pytest.mark.parametrize(
    "extra, message",
    [
        ({"kavern.adress": "x"}, "did you mean kavern.address"),
        ({"kavern.copy_threads": "2"}, "kavern.copy_threads: got '2', expected int"),
        ({"kavern.copy_threads": True}, "expected int"),
        ({"kavern.load_timeout_s": 0}, "expected a number above 0"),
        ({"kavern.verify_checksums": 1}, "expected bool"),
    ],
)
def test_settings_say_what_they_expected(extra, message):
    with pytest.raises(ValueError, match=message):
        settings.parse(extra)
    assert settings.parse({"kavern.load_timeout_s": 3, "other.key": 1}).load_timeout_s == 3.0


@pytest.mark.parametrize("version", ["0.31.0", "0.32.1", "0.33.1", "1.0"])
def test_a_release_that_was_not_tried_is_refused(version):
    with pytest.raises(kavern.UnimplementedError, match=f"vLLM {version}: this connector was tried with"):
        check_version(version, untried=False)
    check_version(version, untried=True)
    check_version("0.32.0+cpu", untried=False)


def test_ranks_are_merged_so_that_no_failure_is_lost():
    merged = StepReport({"a"}, {"b"}, False, True).aggregate(StepReport({"d"}, set(), True, False))
    assert merged == StepReport({"a", "d"}, {"b"}, True, True)


# ---- KV events ----


def tell(scheduler: Scheduler) -> None:
    scheduler.side._events = KvEvents(BLOCK, hash_tokens=BLOCK // 2)


def hashes_of(name: str, blocks: int) -> list[bytes]:
    """As the engine has them: two for each block."""
    return [f"{name}{i}".encode() for i in range(2 * blocks)]


def test_kv_events_tell_of_each_block_once_with_its_parent_and_of_its_end(daemon):
    scheduler = Scheduler(daemon, "events")
    tell(scheduler)
    tokens = range(800, 817)
    store(scheduler, daemon, tokens, 4)
    request = Request("a", tokens, block_hashes=hashes_of("a", 4))
    scheduler.admit(request)
    (stored,) = scheduler.side.take_events()
    assert isinstance(stored, BlockStored)
    assert stored.block_hashes == [maybe_convert_block_hash(request.block_hashes[i]) for i in (1, 3, 5, 7)]
    assert stored.parent_block_hash is None
    assert (stored.token_ids, stored.block_size, stored.medium) == (list(tokens)[:16], BLOCK, "CPU")
    # Another conversation with the same beginning: what it adds is news, once it is there.
    longer = list(tokens)[:16] + list(range(900, 909))
    other = Request("b", longer, block_hashes=request.block_hashes + hashes_of("b", 2), cache_salt=None)
    other.num_computed_tokens = scheduler.admit(other)
    assert [len(save.keys) for save in scheduler.step((other, 9)).saves] == [2]
    assert scheduler.side.take_events() == []
    store(scheduler, daemon, longer, 6)
    (more,) = scheduler.side.take_events()
    assert more.block_hashes == [maybe_convert_block_hash(other.block_hashes[i]) for i in (9, 11)]
    assert more.parent_block_hash == stored.block_hashes[-1]
    assert scheduler.side.take_events() == []
    # Gone from the daemon.
    fingerprint = scheduler.side._link.namespace().fingerprint
    daemon.kavern("namespaces", "--purge", fingerprint if isinstance(fingerprint, str) else fingerprint.hex())
    removed = scheduler.side.take_events()
    assert [type(event) for event in removed] == [BlockRemoved]
    assert sorted(removed[0].block_hashes) == sorted(stored.block_hashes + more.block_hashes)
    assert scheduler.side.take_events() == []
    scheduler.side.close()


def test_kv_events_of_a_namespace_that_was_left_are_taken_back(daemon):
    scheduler = Scheduler(daemon, "events of a reset")
    tell(scheduler)
    tokens = range(1000, 1017)
    store(scheduler, daemon, tokens, 4)
    scheduler.admit(Request("a", tokens, block_hashes=hashes_of("a", 4)))
    (stored,) = scheduler.side.take_events()
    scheduler.side.reset()
    (removed,) = scheduler.side.take_events()
    assert isinstance(removed, BlockRemoved)
    assert removed.block_hashes == stored.block_hashes
    scheduler.side.close()


def test_kv_events_wait_for_hashes_that_the_engine_has_not_computed(daemon):
    scheduler = Scheduler(daemon, "events of late hashes")
    tell(scheduler)
    tokens = range(1200, 1217)
    store(scheduler, daemon, tokens, 4)
    request = Request("a", tokens, block_hashes=hashes_of("a", 4)[:5])  # of two blocks and a half
    scheduler.admit(request)
    (first,) = scheduler.side.take_events()
    assert len(first.block_hashes) == 2
    assert scheduler.side.take_events() == []
    request.block_hashes = hashes_of("a", 4)
    (second,) = scheduler.side.take_events()
    assert second.parent_block_hash == first.block_hashes[-1]
    assert len(second.block_hashes) == 2
    scheduler.side.close()


def test_where_layers_share_kv_nobody_is_taken_for_its_writer():
    groups = [SimpleNamespace(layer_names=["a", "b"]), SimpleNamespace(layer_names=["c", "d"])]
    found = [GroupTensors(None, ["a", "b"]), GroupTensors(None, ["c", "d"])]
    config = SimpleNamespace(kv_cache_groups=groups)
    assert layers_by_name(config, found) == {"a": (0, 0), "b": (0, 1), "c": (1, 0), "d": (1, 1)}
    found[1] = GroupTensors(None, ["c"])  # d looks into c's
    assert layers_by_name(config, found) == {}
