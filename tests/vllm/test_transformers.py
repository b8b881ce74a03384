"""Caches of transformers' models in Kavern: what comes back computes what the cache in memory computes, to the bit."""

import copy

import kavern
import pytest
import tiny_models
import torch
import transformers
from kavern.transformers import CacheKeeper

TURN = 300
MORE = 21


@pytest.fixture(params=["gqa", "sliding", "hybrid", "mla"])
def model(request, tmp_path):
    folder = tiny_models.write(request.param, tmp_path / "model")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture
def client(daemon):
    with kavern.Client(daemon.address) as client:
        client.wait_until_attached()
        yield client


def draw(count: int, seed: int) -> torch.Tensor:
    return torch.randint(3, 500, (1, count), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def first_turn(model):
    """All token ids so far, and the cache, which lacks the last of them."""
    torch.manual_seed(0)
    output = model.generate(
        draw(TURN, 1), max_new_tokens=9, do_sample=False, return_dict_in_generate=True, eos_token_id=None
    )
    return output.sequences, output.past_key_values


@torch.no_grad()
def go_on(model, ids, cache):
    """Logits of what the cache lacks."""
    return model(ids[:, cache.get_seq_length() :], past_key_values=cache, use_cache=True).logits


def test_a_conversation_goes_on_in_another_process_as_it_would_have_here(model, client, daemon):
    sequence, cache = first_turn(model)
    here = copy.deepcopy(cache)
    keeper = CacheKeeper(client, model)
    stored = keeper.save(sequence, cache)
    sliding = any(layer.is_sliding for layer in cache.layers)
    assert stored == (cache.get_seq_length() if sliding else cache.get_seq_length() // 64 * 64)

    second = torch.cat((sequence, draw(MORE, 2)), 1)
    with kavern.Client(daemon.address) as other:
        other.wait_until_attached()
        there = CacheKeeper(other, model).load(second)
    assert there.get_seq_length() == stored
    if here.get_seq_length() > stored:
        here.crop(stored - here.get_seq_length())
    expected = go_on(model, second, here)
    assert torch.equal(go_on(model, second, there), expected)

    # The comparison sees a single wrong token.
    other_tokens = second.clone()
    other_tokens[0, 100] = 3 + (other_tokens[0, 100] + 1) % 400
    wrong = keeper.load(other_tokens)
    assert wrong.get_seq_length() < stored
    assert not torch.equal(go_on(model, other_tokens, wrong)[:, -MORE:], expected[:, -MORE:])


def test_a_static_cache_is_filled_and_kept(model, client):
    sequence, _ = first_turn(model)
    static = transformers.StaticCache(config=model.config, max_cache_len=TURN + 100)
    with torch.no_grad():
        model(sequence[:, :-1], past_key_values=static, use_cache=True)
    keeper = CacheKeeper(client, model, revision="static")
    stored = keeper.save(sequence, static)
    assert stored > 0
    second = torch.cat((sequence, draw(MORE, 2)), 1)
    from_static = go_on(model, second, keeper.load(second))
    into = transformers.StaticCache(config=model.config, max_cache_len=TURN + 100)
    assert keeper.load(second, into=into) is into
    assert into.get_seq_length() == stored
    torch.testing.assert_close(go_on(model, second, into), from_static, atol=1e-3, rtol=1e-3)


def test_three_lines_around_generate(model, client):
    keeper = CacheKeeper(client, model, revision="three lines")
    ids = draw(TURN, 5)
    plain = model.generate(ids, max_new_tokens=9, do_sample=False, eos_token_id=None)
    for stored in (False, True):
        cache = keeper.load(ids)
        assert (cache.get_seq_length() > 0) is (stored and not any(layer.is_sliding for layer in cache.layers))
        output = model.generate(
            ids, past_key_values=cache, max_new_tokens=9, do_sample=False, eos_token_id=None, return_dict_in_generate=True
        )
        assert torch.equal(output.sequences, plain)
        keeper.save(output.sequences, output.past_key_values)


def test_without_a_daemon_the_model_computes(model, client, daemon):
    keeper = CacheKeeper(client, model, revision="gone")
    sequence, cache = first_turn(model)
    keeper.save(sequence, cache)
    daemon.kill()
    assert keeper.load(torch.cat((sequence, draw(MORE, 2)), 1)).get_seq_length() == 0
    daemon.start()


def test_a_batch_is_refused(model, client):
    keeper = CacheKeeper(client, model)
    with pytest.raises(kavern.InvalidArgumentError, match="one sequence at a time"):
        keeper.load(torch.zeros((2, 5), dtype=torch.long))


def test_weights_of_no_folder_need_a_revision(model, client):
    model.config._name_or_path = ""
    with pytest.raises(kavern.InvalidArgumentError):
        CacheKeeper(client, model)
