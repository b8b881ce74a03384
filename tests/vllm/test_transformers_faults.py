"""Caches of transformers' models when what is stored is damaged, or does not fit: less comes back, and nothing wrong.

Each damage is one sign of one number. A client that compares no checksums loads it, so it is where the model looks.
"""

import os
import pathlib
from types import SimpleNamespace

import damage
import kavern
import pytest
import tiny_models
import torch
import transformers
from daemon import Daemon
from kavern.transformers import CacheKeeper
from kavern.weights import weights_revision

BLOCK = 64
LAYER_BYTES = 2 * 2 * 32 * BLOCK * 4  # K and V of two heads
TURN = 300  # four blocks and some tokens


@pytest.fixture
def make_daemon(tmp_path):
    """Not shared: the first block stored lies in the first slot of the first region."""
    daemons = []

    def make(ram: str) -> Daemon:
        daemons.append(Daemon(tmp_path, ram=ram))
        daemons[-1].start()
        return daemons[-1]

    yield make
    for daemon in daemons:
        daemon.stop()


def load_model(name: str, folder: pathlib.Path):
    return transformers.AutoModelForCausalLM.from_pretrained(tiny_models.write(name, folder), dtype=torch.float32).eval()


def draw(count: int, seed: int) -> torch.Tensor:
    return torch.randint(3, 500, (1, count), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def computed(model, ids):
    cache = transformers.DynamicCache(config=model.config)
    model(ids, past_key_values=cache, use_cache=True)
    return cache


def differ(one, other, tokens: int) -> bool:
    """Whether K or V of two caches differ within their first tokens."""
    pairs = [(a, b) for x, y in zip(one.layers, other.layers) for a, b in ((x.keys, y.keys), (x.values, y.values))]
    return any(not torch.equal(a[:, :, :tokens], b[:, :, :tokens]) for a, b in pairs)


# slot_bytes, slot: of what is damaged. The second block of four; a tail that is alone; and a tail where beside it, in
# another region, four blocks are stored: there a fifth would be empty.
@pytest.mark.parametrize(
    "name, slot_bytes, slot, left",
    [
        ("gqa", 4 * LAYER_BYTES, 1, BLOCK),
        ("hybrid", 2 * LAYER_BYTES, 1, 0),
        ("sliding", 0, 0, 0),
        ("hybrid", 2 * LAYER_BYTES, 4, 0),
    ],
    ids=["middle block", "middle block of a model with tails", "tail", "tail of a model with blocks"],
)
def test_damage_costs_what_cannot_do_without_it(name, slot_bytes, slot, left, make_daemon, tmp_path):
    daemon = make_daemon("16MiB")
    model = load_model(name, tmp_path / "model")
    ids = draw(TURN, 1)
    cache = computed(model, ids)
    more = torch.cat((ids, draw(9, 2)), 1)
    with kavern.Client(daemon.address) as client, kavern.Client(daemon.address, verify_checksums=False) as believing:
        keeper = CacheKeeper(client, model)
        stored = keeper.save(ids, cache)
        assert stored == (TURN // BLOCK * BLOCK if name == "gqa" else TURN)
        whole = keeper.load(more)
        assert whole.get_seq_length() == stored
        assert not differ(whole, cache, stored)

        assert damage.flip_signs(daemon.process.pid, slot_bytes, slot, first=0, length=4, regions_max=1) == 1
        wrong = CacheKeeper(believing, model).load(more)
        assert wrong.get_seq_length() == stored
        assert differ(wrong, cache, stored)

        rest = keeper.load(more)
        assert rest.get_seq_length() == left
        assert left == 0 or not differ(rest, cache, left)
        assert daemon.status()["counters"]["damaged_blocks"] == 1
        # What was dropped is stored anew.
        assert keeper.save(ids, cache) == stored
        again = keeper.load(more)
        assert again.get_seq_length() == stored
        assert not differ(again, cache, stored)


# Memory for sixteen blocks of the first model; of the second one, for its blocks or for its tails.
@pytest.mark.parametrize("name, tokens, kept", [("gqa", 22 * BLOCK, 16 * BLOCK), ("hybrid", TURN, 0)])
def test_of_a_full_tier_no_more_is_promised_than_it_took(name, tokens, kept, make_daemon, tmp_path):
    daemon = make_daemon("2MiB")
    model = load_model(name, tmp_path / "model")
    ids = draw(tokens, 1)
    cache = computed(model, ids)
    with kavern.Client(daemon.address) as client:
        keeper = CacheKeeper(client, model)
        assert keeper.save(ids, cache) == kept
        assert daemon.status()["counters"]["store_declined_blocks"] > 0
        loaded = keeper.load(torch.cat((ids, draw(9, 2)), 1))
    assert loaded.get_seq_length() == kept
    assert kept == 0 or not differ(loaded, cache, kept)


def test_weights_written_in_place_are_other_weights(tmp_path, monkeypatch):
    """Of the same size and with the old time of writing, as copying tools leave it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "model" / "model.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"weights")
    first, before = weights_revision(str(file.parent), None, "auto", 0), file.stat()
    while file.stat().st_ctime_ns == before.st_ctime_ns:  # files have the time of the last tick
        file.write_bytes(b"WEIGHTS")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    assert weights_revision(str(file.parent), None, "auto", 0) != first


@pytest.mark.parametrize("changed", ["st_size", "st_mtime_ns", "st_ctime_ns", "st_ino"])
def test_a_digest_is_remembered_until_the_file_is_another_in_any_respect(changed, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    told = {name: getattr(file.stat(), name) for name in ("st_mode", "st_size", "st_mtime_ns", "st_ctime_ns", "st_ino")}
    stat = pathlib.Path.stat

    def seen(path, **how):
        return SimpleNamespace(**told) if path == file else stat(path, **how)

    monkeypatch.setattr(pathlib.Path, "stat", seen)
    first = weights_revision(str(file), None, "auto", 0)
    file.write_bytes(b"WEIGHTS")
    assert weights_revision(str(file), None, "auto", 0) == first
    told[changed] += 1
    assert weights_revision(str(file), None, "auto", 0) != first
