"""For every architecture: an engine that takes KV out of Kavern answers exactly as one that still has it.

Negative control in the same run: with checksums off, one layer of one block with its signs flipped changes the answer,
so that the comparison is known to see.
"""

import random

import pytest
import tiny_models
import torch
from engine import transfer_config

PROMPT_TOKENS = 900
MORE_TOKENS = 40

AMX = torch.cpu._is_amx_tile_supported()
NEEDS_AMX = pytest.mark.skipif(not AMX, reason="vLLM computes MLA after a cached prefix only on processors with AMX")


# Name, ranks, tokens per block, parts of the layout: (bytes of a slot, bytes of one layer of a block). as_on_gpu: an
# engine with asynchronous scheduling and V2's hooks is compared with one that has neither.
@pytest.mark.parametrize(
    "name, ranks, block_tokens, slot_bytes, layer_bytes, bounce, as_on_gpu",
    [
        ("gqa", 1, 128, 4 * 32768, 32768, False, False),
        ("gqa", 2, 128, 4 * 16384, 16384, False, False),
        ("mqa", 2, 128, 4 * 16384, 16384, False, False),  # both ranks hold the same KV, which one of them saves
        ("sliding", 1, 128, 4 * 32768, 32768, False, False),
        ("hybrid", 1, 128, 2 * 32768, 32768, False, False),
        ("hybrid", 1, 128, 2 * 32768, 32768, True, False),  # as with a KV cache on a GPU
        ("gqa", 1, 128, 4 * 32768, 32768, True, True),
        ("hybrid", 1, 128, 2 * 32768, 32768, True, True),
        pytest.param("mla", 1, 128, 4 * 147456, 147456, False, False, marks=NEEDS_AMX),
        pytest.param("mla", 2, 128, 4 * 147456, 147456, False, False, marks=NEEDS_AMX),
    ],
)
def test_a_hit_in_kavern_answers_like_a_hit_in_the_engine(
    name, ranks, block_tokens, slot_bytes, layer_bytes, bounce, as_on_gpu, tmp_path, empty_daemon, tiny_engines
):
    model = tiny_models.write(name, tmp_path / "model")
    draw = random.Random(f"{ranks} {bounce}")
    first = [draw.randrange(3, 500) for _ in range(PROMPT_TOKENS)]
    more = [draw.randrange(3, 500) for _ in range(MORE_TOKENS)]

    checked = transfer_config(empty_daemon.address, kavern_bounce=bounce)
    without = tiny_engines.begin(model, [{"prompt": first}, {"more": more}], None, ranks)
    (once,) = tiny_engines.run(model, [{"prompt": first}], checked, ranks, as_on_gpu=as_on_gpu)
    stored = empty_daemon.status()["counters"]["store_blocks"]
    second = first + once["tokens"] + more
    earlier, expected = tiny_engines.answers(without)
    assert earlier["tokens"] == once["tokens"]
    assert earlier["logprobs"] == once["logprobs"]
    hit = (PROMPT_TOKENS + len(once["tokens"]) - 1) // block_tokens * block_tokens
    assert expected["cached"] == hit
    if name == "mqa":
        assert stored == hit // block_tokens, "what is the same on every rank is stored once"

    unchecked = transfer_config(empty_daemon.address, kavern_bounce=bounce, kavern_verify_checksums=False)
    damage = {
        "daemon_pid": empty_daemon.process.pid,
        "slot_bytes": slot_bytes,
        "slot": hit // block_tokens - 1,  # the last block of the hit: inside every window
        "first": layer_bytes,
        "length": layer_bytes,
        "item_bytes": 2,
    }
    got, damaged, changed = tiny_engines.run(
        model, [{"prompt": second}, {"damage": damage}, {"prompt": second}], unchecked, ranks, as_on_gpu=as_on_gpu
    )
    assert got["cached"] == hit, got["told"]
    assert got["told"]["kavern"]["hit_tokens"]["ram"] == hit
    assert got["tokens"] == expected["tokens"]
    assert got["logprobs"] == expected["logprobs"]
    assert damaged["damaged"] > 0
    assert changed["told"]["kavern"]["hit_tokens"]["ram"] == hit
    assert changed["logprobs"] != expected["logprobs"], "the comparison does not see a damaged layer"
    print(f"{name}, {ranks} ranks: {hit} tokens of {len(second)} from Kavern, answers equal; damage changed them")


# A failed load is recomputed from where the engine still has what that needs: of a sliding window the pages before the
# hit's window were never there.
@pytest.mark.parametrize(
    "name, slot_bytes, bounce, as_on_gpu",
    [
        ("gqa", 4 * 32768, False, False),
        ("gqa", 4 * 32768, True, False),
        ("gqa", 4 * 32768, True, True),
        ("sliding", 4 * 32768, False, False),
        ("hybrid", 2 * 32768, False, False),
        ("hybrid", 2 * 32768, True, True),
    ],
)
def test_after_a_failed_load_the_answer_is_that_of_a_computed_prompt(
    name, slot_bytes, bounce, as_on_gpu, tmp_path, empty_daemon, tiny_engines
):
    model = tiny_models.write(name, tmp_path / "model")
    draw = random.Random(f"{name} {bounce}")
    first = [draw.randrange(3, 500) for _ in range(PROMPT_TOKENS)]
    second = first + [draw.randrange(3, 500) for _ in range(MORE_TOKENS)]
    hit = PROMPT_TOKENS // 128 * 128

    without = tiny_engines.begin(model, [{"prompt": first}, {"prompt": second}])
    last_block = {"slot": hit // 128 - 1, "first": 32768, "length": 32768}
    damage = {"daemon_pid": empty_daemon.process.pid, "slot_bytes": slot_bytes, "item_bytes": 2, **last_block}
    transfer = transfer_config(empty_daemon.address, kavern_bounce=bounce)
    _, damaged, got = tiny_engines.run(
        model, [{"prompt": first}, {"damage": damage}, {"prompt": second}], transfer, as_on_gpu=as_on_gpu
    )
    _, expected = tiny_engines.answers(without)
    assert damaged["damaged"] > 0
    assert got["told"]["kavern"]["miss"] == "a load failed"
    # Computed in another split: near, not equal.
    theirs, ours = dict(expected["logprobs"][0]), dict(got["logprobs"][0])
    common = theirs.keys() & ours.keys()
    difference = max(abs(theirs[token] - ours[token]) for token in common)
    print(f"{name}: log-probabilities after a failed load differ by {difference:.4f}")
    assert len(common) >= 4
    assert difference < 0.05


@pytest.mark.skipif(AMX, reason="vLLM computes MLA after a cached prefix here")
def test_an_engine_that_cannot_compute_after_a_cached_prefix_is_refused(tmp_path, daemon, tiny_engines):
    model = tiny_models.write("mla", tmp_path / "model")
    with pytest.raises(AssertionError, match="prefix caching is off: vLLM turns it off where"):
        tiny_engines.run(model, [{"prompt": [5] * 40}], transfer_config(daemon.address))
