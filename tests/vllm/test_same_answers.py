"""The main promise on a real chat model over HTTP: killed and restarted, an engine with Kavern answers as one that was
never restarted and hits its own prefix cache: the same tokens, log-probabilities equal to the last bit."""

import concurrent.futures
import sys

import damage
import pytest
from conversations import play
from engine import Engine, transfer_config

CONVERSATIONS = 3
TURNS = 5
KILLED_BEFORE = 3
MAX_TOKENS = 16
# SmolLM2-135M: 30 layers of 3 KV heads of 64, 128 tokens a block, float32.
LAYER_BYTES = 2 * 3 * 64 * 128 * 4
BLOCK_BYTES = 30 * LAYER_BYTES

# bfloat16 takes ten times as long on processors without instructions for it.
ARGUMENTS = ["--max-model-len", "4096", "--enable-prompt-tokens-details", "--dtype", "float32"]


@pytest.fixture(scope="module")
def make_engine(tmp_path_factory, chat_model, launch):
    engines = []

    def make(transfer=None) -> Engine:
        """Not started."""
        directory = tmp_path_factory.mktemp("engine")
        environment = {"VLLM_SERVER_DEV_MODE": "1"}
        engines.append(
            Engine(
                sys.executable,
                chat_model,
                directory,
                kv_transfer_config=transfer,
                arguments=ARGUMENTS,
                environment=environment,
                launch=launch,
            )
        )
        return engines[-1]

    yield make
    for engine in engines:
        engine.kill()


def start_together(*engines: Engine) -> None:
    """Takes little longer than one alone: most of it is one thread that imports."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(Engine.start, engines))


@pytest.fixture(scope="module")
def both(make_engine, daemon):
    """An engine without Kavern and one with it."""
    engines = make_engine(), make_engine(transfer_config(daemon.address))
    start_together(*engines)
    return engines


@pytest.fixture(scope="module")
def reference(both):
    """Every turn of every conversation, of an engine that runs through."""
    engine = both[0]
    histories = [[] for _ in range(CONVERSATIONS)]
    turns = [
        [play(engine, i, history, turn, MAX_TOKENS) for i, history in enumerate(histories)] for turn in range(TURNS)
    ]
    engine.kill()
    return turns, histories


@pytest.fixture(scope="module")
def unchecked(make_engine, daemon):
    """Not started: an engine that believes whatever is in Kavern."""
    return make_engine(transfer_config(daemon.address, kavern_verify_checksums=False))


@pytest.fixture(scope="module")
def played(both, reference, unchecked):
    """The same with Kavern, and a crash in the middle. `unchecked` starts with the engine that comes back."""
    engine = both[1]
    histories = [[] for _ in range(CONVERSATIONS)]
    turns = []
    for turn in range(TURNS):
        if turn == KILLED_BEFORE:
            engine.kill()
            start_together(engine, unchecked)
        turns.append([play(engine, i, history, turn, MAX_TOKENS) for i, history in enumerate(histories)])
    return turns, engine.metrics()


def test_answers_are_those_of_an_engine_that_was_not_restarted(reference, played):
    expected, got = reference[0], played[0]
    tokens = 0
    for turn in range(TURNS):
        for theirs, ours in zip(expected[turn], got[turn]):
            assert ours.cached_tokens == theirs.cached_tokens
            assert ours.text == theirs.text
            assert ours.logprobs == theirs.logprobs
            tokens += len(ours.logprobs)
    from_kavern = played[1]["vllm:kavern_hit_tokens_total"]
    assert from_kavern == sum(answer.cached_tokens for answer in expected[KILLED_BEFORE])
    print(f"{CONVERSATIONS} conversations, {TURNS} turns, {tokens} tokens equal, {from_kavern:.0f} tokens from Kavern")


def test_a_damaged_layer_changes_the_answer_when_checksums_are_off(reference, played, unchecked, daemon):
    turns, histories = reference
    # The first conversation's first block lies in the first slot of the first region.
    where = {"slot": 0, "first": 15 * LAYER_BYTES, "length": LAYER_BYTES, "regions_max": 1}
    assert damage.flip_signs(daemon.process.pid, BLOCK_BYTES, **where) == 1
    answer = unchecked.chat(histories[0][:-1], MAX_TOKENS)
    assert unchecked.metrics()["vllm:kavern_hit_tokens_total"] > 0
    unchecked.kill()
    assert answer.logprobs != turns[-1][0].logprobs, "the comparison does not see a damaged layer"


def test_damage_is_found_and_recomputed(reference, played, both):
    turns, histories = reference
    engine = both[1]
    assert played[1].get("vllm:kavern_load_failures_total", 0) == 0
    engine.forget()
    answer = engine.chat(histories[0][:-1], MAX_TOKENS)
    samples = engine.metrics()
    assert samples["vllm:kavern_load_failures_total"] == 1
    # Recomputed in another split than the reference's: near, not equal.
    theirs = dict(turns[-1][0].logprobs[0][1])
    for token, logprob in answer.logprobs[0][1]:
        assert logprob == pytest.approx(theirs[token], abs=0.05)
    # The turn saved the block anew, and an engine that has forgotten it takes it.
    hit = samples["vllm:kavern_hit_tokens_total"]
    engine.forget()
    answer = engine.chat(histories[0][:-1], MAX_TOKENS)
    samples = engine.metrics()
    whole_blocks = (answer.prompt_tokens - 1) // 128 * 128
    assert samples["vllm:kavern_hit_tokens_total"] - hit == whole_blocks
    assert samples["vllm:kavern_load_failures_total"] == 1
