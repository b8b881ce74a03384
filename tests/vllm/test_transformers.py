"""Caches of transformers' models in Kavern: what comes back computes what the cache in memory computes, to the bit."""

import copy
import importlib.util
import operator
import os
import signal
import time

import kavern
import pytest
import tiny_models
import torch
import transformers
from kavern import loaded_weights
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
    assert keeper.save(sequence, cache) > 0
    second = torch.cat((sequence, draw(MORE, 2)), 1)
    daemon.kill()
    while client.connection.attached:  # what the dead one listed is mapped until then
        pass
    assert keeper.load(second).get_seq_length() == 0
    assert keeper.save(sequence, cache) == 0
    with kavern.Client(daemon.address) as early:  # before the daemon
        other = CacheKeeper(early, model, revision="gone")
        assert other.load(second).get_seq_length() == 0
        daemon.start()
        early.wait_until_attached()
        assert other.save(sequence, cache) > 0
        assert other.load(second).get_seq_length() > 0


def test_a_daemon_that_hangs_is_waited_for_until_the_deadline(tmp_path, daemon):
    folder = tiny_models.write("hybrid", tmp_path / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    sequence, cache = first_turn(model)
    with kavern.Client(daemon.address, deadline=600) as patient:
        patient.wait_until_attached()
        keeper = CacheKeeper(patient, model, revision="hangs")
        assert keeper.save(sequence, cache, deadline=60) > 0
        began = time.monotonic()
        os.kill(daemon.process.pid, signal.SIGSTOP)
        try:
            assert keeper.load(sequence, deadline=0.2).get_seq_length() == 0
            assert keeper.save(sequence.flip(1), cache, deadline=0.2) == 0  # what is stored already needs nobody
        finally:
            os.kill(daemon.process.pid, signal.SIGCONT)
        assert time.monotonic() - began < 60
        assert keeper.load(sequence, deadline=60).get_seq_length() > 0
        with pytest.raises(kavern.InvalidArgumentError, match="deadline: got 0"):
            keeper.load(sequence, deadline=0)


def test_what_changes_the_kv_is_part_of_the_identity(tmp_path, client):
    folder = tiny_models.write("gqa", tmp_path / "model")

    def load(**changes):
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **changes).eval()

    plain = load()
    sequence, cache = first_turn(plain)
    assert CacheKeeper(client, plain).save(sequence, cache) > 0
    second = torch.cat((sequence, draw(MORE, 2)), 1)
    assert CacheKeeper(client, load()).load(second).get_seq_length() > 0
    stretched = load(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0})
    assert CacheKeeper(client, stretched).load(second).get_seq_length() == 0
    tuned = load()
    with torch.no_grad():
        tuned.model.layers[3].self_attn.v_proj.weight.mul_(1.01)
    assert CacheKeeper(client, tuned).load(second).get_seq_length() == 0
    # A name for the weights that is wrong is not believed.
    assert CacheKeeper(client, plain, revision="v1").save(sequence, cache) > 0
    assert CacheKeeper(client, tuned, revision="v1").load(second).get_seq_length() == 0


def test_a_single_row_that_was_edited_in_memory_is_another_identity(tmp_path, client):
    folder = tiny_models.write("gqa", tmp_path / "model")

    def load():
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    plain = load()
    sequence, cache = first_turn(plain)
    assert CacheKeeper(client, plain).save(sequence, cache) > 0
    assert CacheKeeper(client, load()).load(sequence).get_seq_length() > 0
    with torch.no_grad():
        for place in ("embed_tokens.weight", "layers.0.mlp.down_proj.weight", "rotary_emb.inv_freq"):
            edited = load()
            operator.attrgetter(place)(edited.model)[13] += 1
            assert CacheKeeper(client, edited).load(sequence).get_seq_length() == 0, place


def odd_tensors() -> torch.nn.Module:
    module = torch.nn.Module()
    module.narrow = torch.nn.Parameter(torch.arange(6, dtype=torch.bfloat16).reshape(2, 3))
    module.turned = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).t())
    module.one = torch.nn.Parameter(torch.tensor(5.0))
    module.tied = module.narrow
    module.register_buffer("large", torch.zeros((3 << 20) + 1), persistent=False)
    module.register_buffer("flags", torch.zeros(3, dtype=torch.bool), persistent=False)
    module.register_buffer("nothing", torch.zeros(0))
    return module


@torch.no_grad()
def test_every_byte_of_every_tensor_is_digested_once(monkeypatch):
    hashed = []
    original = loaded_weights._tensor_digest
    monkeypatch.setattr(
        loaded_weights, "_tensor_digest", lambda tensor, pool: hashed.append(tensor) or original(tensor, pool)
    )
    digests = [loaded_weights.loaded_weights_digest(odd_tensors())]
    assert len(hashed) == 6  # of seven names
    assert loaded_weights.loaded_weights_digest(odd_tensors()) == digests[0]
    places = [(name, at) for name in ("narrow", "turned", "flags") for at in (0, -1)]
    places += [("one", 0), ("large", 0), ("large", (2 << 20) - 1), ("large", 2 << 20), ("large", -1)]
    for name, at in places:
        module = odd_tensors()
        tensor = getattr(module, name)
        flat = tensor.t().view(-1) if name == "turned" else tensor.view(-1)
        flat[at] = True if name == "flags" else flat[at] + 1
        digests.append(loaded_weights.loaded_weights_digest(module))
    assert len(set(digests)) == len(digests) == 12


def test_weights_without_bytes_are_refused():
    with torch.device("meta"):
        module = torch.nn.Linear(2, 2)
    with pytest.raises(kavern.UnimplementedError, match="weight: its bytes cannot be read, as of weights that are offloaded"):
        loaded_weights.loaded_weights_digest(module)


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook"])
def test_models_with_forward_hooks_are_refused(tmp_path, client, kind):
    """Steering: KV then depends on what no weight tells."""
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_models.write("gqa", tmp_path / "model")).eval()
    keeper = CacheKeeper(client, model)
    sequence, cache = first_turn(model)
    hook = getattr(model.model.layers[1], f"register_{kind}")(lambda *_: None)
    for use in (lambda: CacheKeeper(client, model), lambda: keeper.load(sequence), lambda: keeper.save(sequence, cache)):
        with pytest.raises(kavern.UnimplementedError, match="forward hooks: KV depends on what they do"):
            use()
    hook.remove()
    assert keeper.save(sequence, cache) > 0


def test_hooks_that_only_look_and_a_device_map_are_not_refused(tmp_path, client):
    folder = tiny_models.write("gqa", tmp_path / "model")
    mapped = {"device_map": "cpu"} if importlib.util.find_spec("accelerate") else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **mapped).eval()
    model(draw(5, 1), output_hidden_states=True)
    assert any(module._forward_hooks for module in model.modules())
    sequence, cache = first_turn(model)
    keeper = CacheKeeper(client, model)
    assert keeper.save(sequence, cache) > 0
    assert keeper.load(sequence).get_seq_length() > 0


def test_adapters_and_models_of_more_than_text_are_refused(tmp_path, client):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_models.write("gqa", tmp_path / "model"))
    keeper = CacheKeeper(client, model)
    model._hf_peft_config_loaded = True  # as load_adapter() leaves it
    for refused in (lambda: keeper.load(draw(TURN, 1)), lambda: CacheKeeper(client, model)):
        with pytest.raises(kavern.UnimplementedError, match="adapters"):
            refused()
    model._hf_peft_config_loaded = False
    model.config = transformers.Gemma3Config()
    with pytest.raises(kavern.UnimplementedError, match="more than text"):
        CacheKeeper(client, model)


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "longrope of one layer type", "module only"])
def test_rope_that_depends_on_the_sequences_length_is_refused(tmp_path, client, kind):
    """KV of a prefix is then another in a long prompt than in a short one."""
    folder = tiny_models.write("hybrid" if "layer type" in kind else "gqa", tmp_path / "model")

    def load(**changes):
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **changes).eval()

    model = load()
    keeper = CacheKeeper(client, model)
    if kind == "module only":
        model.model.rotary_emb.rope_type = "dynamic"
    else:
        rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
        if kind != "dynamic":
            rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 512}
            rope |= {"short_factor": [1.0] * 16, "long_factor": [4.0] * 16}
        if "layer type" in kind:
            rope = {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
        model = load(rope_parameters=rope, max_position_embeddings=1024)
        keeper._model = model
    sequence, cache = first_turn(model)
    uses = (lambda: CacheKeeper(client, model), lambda: keeper.load(sequence), lambda: keeper.save(sequence, cache))
    for use in uses:
        with pytest.raises(kavern.UnimplementedError, match="RoPE of type (dynamic|longrope): KV of a prefix depends"):
            use()


PAD = 0


@torch.no_grad()
def turn_of(model, ids, **arguments):
    output = model.generate(ids, max_new_tokens=2, do_sample=False, return_dict_in_generate=True, **arguments)
    return output.sequences, output.past_key_values


@pytest.mark.parametrize("model", ["hybrid"], indirect=True)
def test_under_a_mask_that_hides_tokens_nothing_is_stored_or_loaded(model, client, caplog):
    keeper = CacheKeeper(client, model, revision="mask")
    ids = draw(TURN, 11)
    ones = torch.ones_like(ids)
    mask = ones.clone()
    mask[:, :64] = 0
    sequence, hidden = turn_of(model, ids, attention_mask=mask)
    assert keeper.save(sequence, hidden, attention_mask=mask) == 0
    assert keeper.load(sequence).get_seq_length() == 0
    sequence, plain = turn_of(model, ids, attention_mask=ones)
    assert keeper.save(sequence, plain, attention_mask=ones.bool()) > 0  # of the prompt: shorter than the sequence
    assert keeper.load(sequence, attention_mask=mask).get_seq_length() == 0
    assert keeper.load(sequence, attention_mask=torch.ones_like(sequence)).get_seq_length() > 0
    assert caplog.text.count("the attention mask hides tokens") == 1


@pytest.mark.parametrize("model", ["hybrid"], indirect=True)
def test_ids_of_which_generate_makes_a_mask_are_not_cached(model, client, caplog):
    keeper = CacheKeeper(client, model, revision="pad")
    ids = draw(TURN, 12)
    ids[0, 70] = PAD
    sequence, cache = turn_of(model, ids)
    assert keeper.save(sequence, cache) == 0
    assert keeper.save(sequence, cache, attention_mask=torch.ones_like(sequence)) == 0
    model.generation_config.eos_token_id = [2, PAD]  # generate then makes none
    assert keeper.load(sequence).get_seq_length() == 0
    assert keeper.save(sequence, cache) > 0
    assert keeper.load(sequence).get_seq_length() > 0
    model.generation_config.eos_token_id = 2
    assert keeper.load(sequence).get_seq_length() == 0
    assert caplog.text.count("pad tokens") == 1


@pytest.mark.parametrize("model", ["hybrid"], indirect=True)
@pytest.mark.parametrize("pad", [2, None])
def test_ids_that_begin_with_the_pad_token_are_not_cached(model, client, pad):
    """Where it is the eos token generate makes no mask, but who pads gives one."""
    keeper = CacheKeeper(client, model, revision="left")
    model.generation_config.pad_token_id = pad
    ids = torch.cat((torch.full((1, 64), 2), draw(TURN, 13)), 1)
    sequence, cache = turn_of(model, ids, eos_token_id=[2])
    assert keeper.save(sequence, cache) == 0
    assert keeper.load(sequence).get_seq_length() == 0
    model.generation_config.bos_token_id = 2
    assert keeper.save(sequence, cache) > 0
    assert keeper.load(sequence).get_seq_length() > 0


@pytest.mark.parametrize("model", ["hybrid"], indirect=True)
def test_a_cache_of_another_dtype_or_shape_is_refused(model, client):
    """It would be cast, or cut, and then be served as this model's."""
    keeper = CacheKeeper(client, model, revision="casts")
    sequence, cache = first_turn(model)

    def change(index, keys, values):
        changed = copy.deepcopy(cache)
        changed.layers[index].keys, changed.layers[index].values = keys, values
        return changed

    for index in (0, 2):  # sliding, full
        keys, values = cache.layers[index].keys, cache.layers[index].values
        for wrong in ((keys.half(), values.half()), (keys[:, :1], values[:, :1]), (keys, values[..., :16])):
            told = f"of layer {index} of the cache: .*; expected torch.float32, 2 heads of 32"
            with pytest.raises(kavern.InvalidArgumentError, match=told):
                keeper.save(sequence, change(index, *wrong))
        with pytest.raises(kavern.InvalidArgumentError, match="on meta; expected .*on cpu"):
            keeper.save(sequence, change(index, keys.to("meta"), values.to("meta")))
    fewer = copy.deepcopy(cache)
    fewer.layers.pop()
    with pytest.raises(kavern.InvalidArgumentError, match="a cache of 5 layers, expected the model's 6"):
        keeper.save(sequence, fewer)
    assert keeper.load(sequence).get_seq_length() == 0
    assert keeper.save(sequence, cache) > 0
    into = transformers.StaticCache(config=model.config, max_cache_len=TURN + 100)
    into.early_initialization(1, 2, 32, torch.float16, model.device)
    with pytest.raises(kavern.InvalidArgumentError, match="layer 0 of the cache: torch.float16"):
        keeper.load(sequence, into=into)


def test_a_batch_is_refused(model, client):
    keeper = CacheKeeper(client, model)
    with pytest.raises(kavern.InvalidArgumentError, match="one sequence at a time"):
        keeper.load(torch.zeros((2, 5), dtype=torch.long))


def test_weights_of_no_folder_need_a_revision(model, client):
    model.config._name_or_path = ""
    with pytest.raises(kavern.InvalidArgumentError):
        CacheKeeper(client, model)
