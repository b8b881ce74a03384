"""Who shares KV with whom: salts, adapters, images, weights that change, other machines."""

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from kavern.vllm.adapters import Adapters
from kavern.vllm.identity import GroupTensors, layers_by_name
from kavern.vllm.messages import Handshake
from played_scheduler import Request, Scheduler, store
from vllm.lora.request import LoRARequest


@pytest.fixture(scope="module")
def daemon(many_small):
    return many_small


def test_salts_adapters_and_images_separate_conversations(scheduler, daemon, tmp_path):
    tokens = range(900, 917)
    store(scheduler, daemon, tokens, 4)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    adapter = lora(tmp_path)
    image = SimpleNamespace(identifier="image", mm_position=SimpleNamespace(offset=5, length=3))
    assert scheduler.admit(Request("plain", tokens)) == 16
    assert scheduler.admit(Request("salted", tokens, cache_salt="s")) == 0
    assert scheduler.admit(Request("adapted", tokens, lora_request=adapter)) == 0
    assert scheduler.admit(Request("seeing", tokens, mm_features=[image])) == 4  # the block before the image is shared


def test_where_in_a_block_an_image_begins_is_part_of_the_key(scheduler):
    """Its tokens are all alike: of one more or less at the beginning they do not tell."""
    saved = []
    for offset in (5, 6, 5):
        image = SimpleNamespace(identifier="ab" * 32, mm_position=SimpleNamespace(offset=offset, length=7))
        request = Request(f"request {len(saved)}", [7] * 17, mm_features=[image])
        scheduler.admit(request)
        saved.append(scheduler.step((request, 17)).saves[0].keys)
    assert saved[0] == saved[2]
    assert [one == other for one, other in zip(saved[0], saved[1])] == [True, False, False, False]


def lora(path, number: int = 1, **more):
    return LoRARequest("adapter", number, str(path), **more)


def adapter_at(path, weights: bytes):
    path.mkdir()
    (path / "adapter_model.safetensors").write_bytes(weights)
    return path


def test_an_adapter_is_its_content(scheduler, tmp_path):
    adapters = [adapter_at(tmp_path / name, weights) for name, weights in (("a", b"1"), ("b", b"2"), ("c", b"1"))]
    scheduler.side._requests._adapters = Adapters(may_be_replaced=False)
    saved = []
    for number, path in enumerate(adapters):
        request = Request(f"request {number}", range(9), lora_request=lora(path, number + 1))
        scheduler.admit(request)
        saved.append(scheduler.step((request, 9)).saves[0].keys)
    assert saved[0] == saved[2] != saved[1]


def test_what_an_adapter_does_is_how_the_engine_applies_it(tmp_path):
    path = adapter_at(tmp_path / "adapter", b"weights")
    keys = [
        Adapters("all modules", may_be_replaced=False).key(lora(path)),
        Adapters("o_proj only", may_be_replaced=False).key(lora(path)),
        Adapters("all modules", may_be_replaced=False).key(lora(path, is_3d_lora_weight=True)),
    ]
    assert len(set(keys)) == 3
    assert Adapters("all modules", may_be_replaced=False).key(lora(path, 2)) == keys[0]


# The engine goes on with the adapter that it loaded first for a number.
def test_adapters_that_share_a_number_are_not_cached_any_more(scheduler, tmp_path):
    first, second = (adapter_at(tmp_path / name, name.encode()) for name in ("first", "second"))
    scheduler.side._requests._adapters = Adapters(may_be_replaced=False)
    running = Request("running", range(17), lora_request=lora(first))
    other = Request("other", range(17), lora_request=lora(second))
    scheduler.admit(running)
    assert len(scheduler.step((running, 8)).saves) == 1
    scheduler.admit(other)
    assert scheduler.step((running, 8), (other, 8)).saves == []
    assert "two adapters have the number 1" in scheduler.side._requests.get("running").why_not


def test_an_adapter_that_is_read_anew_is_not_cached_any_more(scheduler, tmp_path):
    path = adapter_at(tmp_path / "adapter", b"weights")
    scheduler.side._requests._adapters = Adapters(may_be_replaced=False)
    request = Request("a", range(17), lora_request=lora(path, load_inplace=True))
    scheduler.admit(request)
    assert scheduler.step((request, 8)).saves == []
    assert "load_inplace" in scheduler.side._requests.get("a").why_not


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


def keys_with_image(daemon, name: str, **options) -> list[bytes]:
    """Of an engine of its own."""
    scheduler = Scheduler(daemon, "images", **options)
    image = SimpleNamespace(identifier=name, mm_position=SimpleNamespace(offset=0, length=3))
    request = Request("a", range(900, 917), mm_features=[image])
    scheduler.admit(request)
    keys = scheduler.step((request, 17)).saves[0].keys
    scheduler.side.close()
    return keys


# Whatever it looks like: a client may know the hash of another image, and vLLM hashes names, too.
@pytest.mark.parametrize("name", ["image-0", "ab" * 32])
def test_what_clients_call_their_images_is_not_shared_with_other_engines(daemon, name):
    assert keys_with_image(daemon, name) != keys_with_image(daemon, name)


def test_where_no_client_names_images_they_are_shared(daemon):
    keys = keys_with_image(daemon, "ab" * 32, trust_media_names=True)
    assert keys == keys_with_image(daemon, "ab" * 32, trust_media_names=True)
    assert keys != keys_with_image(daemon, "cd" * 32, trust_media_names=True)


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


def test_an_engine_whose_workers_run_code_of_others_shares_nothing(daemon):
    tokens = range(2000, 2017)
    for _ in range(2):
        scheduler = Scheduler(daemon, "extended", worker_extension="trainer.WorkerExtension")
        request = Request("a", tokens)
        assert scheduler.admit(request) == 0
        assert len(scheduler.step((request, 17)).saves) == 1
        store(scheduler, daemon, tokens, 4)  # into the namespace that others share
        scheduler.side.close()


def test_ranks_on_several_machines_are_refused(scheduler):
    here = Handshake(scheduler.identity)
    with pytest.raises(ValueError, match="2 machines"):
        scheduler.side.handshake({(0, 0): here, (0, 1): replace(here, machine="another")})


def test_where_layers_share_kv_nobody_is_taken_for_its_writer():
    groups = [SimpleNamespace(layer_names=["a", "b"]), SimpleNamespace(layer_names=["c", "d"])]
    found = [GroupTensors(None, ["a", "b"]), GroupTensors(None, ["c", "d"])]
    config = SimpleNamespace(kv_cache_groups=groups)
    assert layers_by_name(config, found) == {"a": (0, 0), "b": (0, 1), "c": (1, 0), "d": (1, 1)}
    found[1] = GroupTensors(None, ["c"])  # d looks into c's
    assert layers_by_name(config, found) == {}
