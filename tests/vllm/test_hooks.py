"""The scheduler's half under sequences of hooks that were written by hand, after vLLM's sources: drafts, steps planned
ahead, reports that come late. What a real engine called is in test_recorded_hooks.py."""

import os
import signal
import time
from types import SimpleNamespace

import pytest
from daemon import Daemon
from kavern.vllm import KavernConnector
from kavern.vllm.link import Breaker
from kavern.vllm.messages import StepReport
from played_scheduler import BLOCK, NULL, Request, Scheduler, store
from vllm.v1.metrics.cache_hit_source import CacheHitSource


@pytest.fixture(scope="module")
def daemon(many_small):
    return many_small


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


def test_a_hit_says_which_tier_had_it(tmp_path):
    """Two blocks of a daemon's earlier life, which are on disk only, and two after them that are in memory."""
    nvme = f"nvme: {{segment: 4MiB, devices: [{{path: {tmp_path}/nvme, capacity: 33MiB}}], catalog: {tmp_path}/catalog}}\n"
    daemon = Daemon(tmp_path, ram="8MiB", more=nvme)
    daemon.start()
    tokens = range(17)
    scheduler = Scheduler(daemon, "tiers")
    store(scheduler, daemon, tokens, 2)
    scheduler.side.close()
    give_up = time.monotonic() + 60
    while (status := daemon.status())["leases"] or status["nvme"]["write_back_blocks"]:
        assert time.monotonic() < give_up
    daemon.kill()
    daemon.start()

    scheduler = Scheduler(daemon, "tiers", attach_timeout_s=30)
    store(scheduler, daemon, tokens, 4, first=2)
    connector = KavernConnector.__new__(KavernConnector)
    connector._scheduler = connector._side = scheduler.side
    whole, rest = Request("whole", tokens), Request("rest", tokens)
    assert scheduler.admit(whole) == 16
    assert scheduler.side.hit_sources(whole, 16) == {"nvme": 8, "ram": 8}
    assert scheduler.side.hit_sources(whole, 12) == {"nvme": 8, "ram": 4}  # as much as there were pages for
    assert connector.get_external_cache_hit_sources(whole, 16) == {CacheHitSource.DISK: 8, CacheHitSource.HOST: 8}
    assert scheduler.side.stats.data["nvme_hit_tokens"] == 8
    assert scheduler.admit(rest, local=4) == 12
    assert connector.get_external_cache_hit_sources(rest, 12) == {CacheHitSource.DISK: 4, CacheHitSource.HOST: 8}
    assert scheduler.side.stats.data["nvme_hit_tokens"] == 8 + 4
    assert scheduler.side.stats.data["hit_tokens"] == 16 + 12
    assert scheduler.side.finished(whole)["kavern"]["hit_tokens"] == {"ram": 8, "nvme": 8}
    scheduler.side.close()
    daemon.stop()


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


def test_a_daemon_in_trouble_is_asked_for_nothing_until_its_rest_is_over(scheduler, daemon):
    now = 0.0
    scheduler.side._link.breaker = Breaker(clock=lambda: now)
    tokens = range(1200, 1217)
    store(scheduler, daemon, tokens, 4)
    running = Request("running", range(1300, 1320))
    scheduler.admit(running)
    scheduler.report(trouble=True)
    assert len(scheduler.step((running, 8)).saves) == 0
    asking = Request("asking", tokens)
    assert scheduler.admit(asking) == 0
    assert scheduler.side.finished(asking)["kavern"]["miss"] == "the daemon does not answer"
    now = Breaker.FIRST_S
    assert scheduler.admit(Request("asking again", tokens)) == 16
    (save,) = scheduler.step((running, 4)).saves
    assert (save.first, len(save.keys)) == (0, 3)
    # What ended well before is no answer of a daemon that is in trouble now.
    scheduler.report(trouble=True, answered=True)
    assert scheduler.admit(Request("early", tokens)) == 0
    scheduler.report(answered=True)
    assert scheduler.admit(Request("late", tokens)) == 16


def test_a_reset_ends_what_running_requests_save(scheduler):
    """Their next blocks follow KV of other weights, and so would their keys."""
    running, waiting = Request("running", range(20)), Request("waiting", range(100, 120))
    scheduler.admit(running)
    scheduler.admit(waiting)
    assert len(scheduler.step((running, 8)).saves) == 1
    scheduler.side.reset()
    fresh = Request("fresh", range(20))
    scheduler.admit(fresh)
    plan = scheduler.step((running, 8), (waiting, 8), (fresh, 20))
    assert [(save.request_id, save.first, len(save.keys)) for save in plan.saves] == [("fresh", 0, 5)]
    assert plan.epoch != 0
    assert scheduler.side._requests.get("running").why_not == "the cache was reset while the request ran"
    assert scheduler.admit(running) == 0  # preempted
    assert scheduler.step((running, 4)).saves == []


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


def test_no_step_grows_without_bound_however_many_requests_have_something_to_save(scheduler):
    tokens = 700 * BLOCK
    requests = [Request(f"request {i}", range(i * tokens, (i + 1) * tokens)) for i in range(3)]
    for request in requests:
        scheduler.admit(request)
    plan = scheduler.step(*((request, tokens) for request in requests))
    assert [(save.first, len(save.keys)) for save in plan.saves] == [(0, 700), (0, 324)]
    plan = scheduler.step(*((request, 1) for request in requests))
    assert [(save.request_id, save.first, len(save.keys)) for save in plan.saves] == [
        ("request 1", 324, 376),
        ("request 2", 0, 648),
    ]


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


def test_a_daemon_that_comes_back_with_another_tenant_is_used_again(tmp_path):
    daemon = Daemon(tmp_path, ram="64MiB")
    daemon.start()
    scheduler = Scheduler(daemon, "tenants")
    running = Request("running", range(17))
    scheduler.admit(running)
    scheduler.step((running, 8))
    daemon.stop()
    daemon.more = f"tenants:\n  - name: other\n    uids: [{os.getuid()}]\n"
    daemon.start()
    give_up = time.monotonic() + 30
    while scheduler.side._link._tenant != "other":
        assert time.monotonic() < give_up
        scheduler.step()
    # Keys of the request that ran are the former tenant's.
    assert scheduler.step((running, 8)).saves == []
    assert "another tenant" in scheduler.side._requests.get("running").why_not
    store(scheduler, daemon, range(17), 4)
    assert scheduler.admit(Request("later", range(17))) == 16
    scheduler.side.close()
    daemon.stop()


def test_lookups_that_were_left_out_for_want_of_a_daemon_are_counted(scheduler):
    scheduler.side._link.breaker.trouble()
    assert scheduler.admit(Request("a", range(17))) == 0
    assert scheduler.side.stats.take().data["lookups_without_daemon"] == 1


def test_ranks_are_merged_so_that_no_failure_is_lost():
    merged = StepReport({"a"}, {"b"}, False, True).aggregate(StepReport({"d"}, set(), True, False))
    assert merged == StepReport({"a", "d"}, {"b"}, True, True)
