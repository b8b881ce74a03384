"""Plans from Python: what is measured is planned with, and what is not has no number."""

import re
import time

import kavern
import numpy as np
import pytest
from conftest import PART_BYTES, keys_of, payload, spec_of

BLOCKS = 32  # of 4 tokens and 4096 bytes: enough for a sample
TOKENS = 4 * BLOCKS + 2


def eventually(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def keys(ns):
    keys = keys_of(ns, 1, BLOCKS)
    ns.store(keys, [payload(key) for key in keys])
    return keys


def test_without_measurements_all_that_is_cached_is_fetched(ns, keys):
    plan = ns.plan(keys, TOKENS, engine_tokens=10)
    assert not plan.measured and not plan.probe
    assert (plan.first_block, plan.fetch_blocks) == (2, BLOCKS - 2)
    assert plan.total_ms is None and plan.recompute_all_ms is None
    cached, new = plan.ranges
    assert (cached.begin_token, cached.end_token) == (10, 4 * BLOCKS)
    assert cached.fetch and cached.tier == "ram" and cached.fetch_ms is None
    assert not new.fetch and new.tier == "none" and new.end_token == TOKENS
    assert plan.samples == {"prefill": 0, "ram": 0, "nvme": 0}
    assert repr(cached) == "PlanRange(10 to 128, fetch from ram)"


def test_a_plan_is_made_of_what_was_measured(client, ns, keys):
    for tokens in (64, 128, 256, 512, 1024):
        ns.report_prefill(0, tokens, seconds=tokens * 1.0)
        ns.fetch_into(keys, list(np.zeros((BLOCKS, PART_BYTES), np.uint8)))
    eventually(lambda: ns.plan(keys, TOKENS).samples["prefill"] == 5)
    eventually(lambda: ns.plan(keys, TOKENS).measured)
    plan = ns.plan(keys, TOKENS)
    assert plan.samples["ram"] >= 4 and plan.samples["nvme"] == 0
    assert plan.fetch_blocks == BLOCKS
    assert plan.recompute_all_ms == pytest.approx(TOKENS * 1000, rel=0.05)
    assert plan.total_ms == pytest.approx(plan.ranges[0].fetch_ms + plan.ranges[1].recompute_ms)
    assert 0 < plan.ranges[0].fetch_ms < plan.ranges[0].recompute_ms
    again = client.open_namespace(spec_of())
    assert again.plan(keys, TOKENS).measured
    eventually(lambda: again.plan(keys, TOKENS).total_ms == ns.plan(keys, TOKENS).total_ms)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda ns, keys: ns.plan(keys, TOKENS - 4), "keys: got 32, expected at most 31"),
        (lambda ns, keys: ns.plan(keys, TOKENS, engine_tokens=131), "engine_tokens: got 131"),
        (lambda ns, keys: ns.plan([], 1 << 40), "token_count: got"),
        (lambda ns, keys: ns.report_prefill(0, 512, seconds=-1.0), "1000 * seconds: got -1000"),
        (lambda ns, keys: ns.report_prefill(0, 512, seconds=float("nan")), "1000 * seconds: got nan"),
        (lambda ns, keys: ns.report_prefill(7, 7, seconds=1.0), "end_token: got 7"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(ns, keys, call, words):
    with pytest.raises(kavern.InvalidArgumentError, match=re.escape(words)):
        call(ns, keys)


def test_without_a_daemon_all_is_computed_and_nothing_raises(daemon, client, ns, keys):
    daemon.kill()
    eventually(lambda: not client.connection.attached)
    ns.report_prefill(0, 512, seconds=0.1)
    plan = ns.plan(keys, TOKENS)
    assert plan.fetch_blocks == 0 and [r.fetch for r in plan.ranges] == [False]
