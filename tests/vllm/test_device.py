"""Pages by way of host memory: whole, in their order, whatever the tensor's strides, and after their step. Tensors of
processors stand for a device's, and its stream is one that copies when the test says: what only a GPU can show, that
its own streams and events keep this order, is not shown here."""

import contextlib
import random
from types import SimpleNamespace

import kavern
import pytest
import tiny_models
import torch
from engine import transfer_config
from kavern import InvalidArgumentError, UnimplementedError, device
from kavern.device import DeviceMemory
from kavern.vllm import KavernConnector
from kavern.vllm.messages import StepPlan
from kavern.vllm.worker import WorkerSide
from played_worker import PAGE_BYTES, Worker, load, save
from recording import noted
from vllm.distributed import parallel_state
from vllm.v1.worker import kv_connector_model_runner_mixin as runner

PAGES = 6


def cache(layout: str) -> torch.Tensor:
    """Pages in front, then heads, tokens and channels: laid out as vLLM does, all layers in one storage or not."""
    numbers = torch.arange(3 * PAGES * 2 * 4 * 8, dtype=torch.float32).to(torch.bfloat16)
    if layout == "layers first":
        return numbers.view(3, PAGES, 2, 4, 8)[1]
    if layout == "pages first":
        return numbers.view(PAGES, 3, 2, 4, 8)[:, 1]
    if layout == "tokens before heads":
        return numbers.view(3, PAGES, 4, 2, 8)[1].transpose(1, 2)
    raise ValueError(layout)


@pytest.mark.parametrize("layout", ["layers first", "pages first", "tokens before heads"])
def test_pages_go_there_and_back(layout, monkeypatch):
    monkeypatch.setattr(device, "_CHUNK_BYTES", 2 * 128)  # of two pages
    tensor, other = cache(layout), cache("layers first")
    before = tensor.clone()
    memory = DeviceMemory([[tensor], [other]], PAGES)
    memory.bring([[4, 1, 0], []])
    for page in (4, 1, 0):
        # A page is one stretch of memory: its bytes in the order in which they lie.
        in_memory = torch.as_strided(tensor, (64,), (1,), tensor[page].storage_offset())
        assert torch.equal(memory.tensors[0][0][page].view(torch.bfloat16), in_memory)
    tensor.zero_()
    memory.take([[4], []])
    assert torch.equal(tensor[4], before[4])
    assert not tensor[[0, 1, 2, 3, 5]].any()
    assert torch.equal(other, cache("layers first"))


def test_a_copy_that_nobody_wants_any_more_stops(monkeypatch):
    monkeypatch.setattr(device, "_CHUNK_BYTES", 1)  # page by page
    memory = DeviceMemory([[torch.ones(4, 4096, dtype=torch.uint8)]], 4)
    wanted = iter([True, True, False])
    memory.bring([[0, 1, 2, 3]], lambda: next(wanted))
    assert [bool(page.any()) for page in memory.tensors[0][0]] == [True, True, False, False]


def test_memory_of_pages_that_are_done_is_given_back():
    memory = DeviceMemory([[torch.ones(4, 3 * 4096, dtype=torch.uint8)]], 4)
    memory.bring([[0, 1, 2]])
    memory.drop([[1]])
    here = memory.tensors[0][0]
    assert here[[0, 2]].all()
    assert not here[[1, 3]].any()  # the kernel's zeros: no memory behind them
    # Where pages share a page of the machine's memory, what is a neighbour's stays.
    small = DeviceMemory([[torch.ones(4, 6000, dtype=torch.uint8)]], 4)
    small.bring([[0, 1, 2]])
    small.drop([[1]])
    assert small.tensors[0][0][[0, 2]].all()


def test_pages_of_several_kernel_blocks_are_one():
    tensor = torch.arange(PAGES * 2 * 16, dtype=torch.int16).view(PAGES * 2, 16)
    memory = DeviceMemory([[tensor]], PAGES)
    memory.bring([[2]])
    assert torch.equal(memory.tensors[0][0][2].view(torch.int16), tensor[4:6].reshape(-1))


def test_pages_that_are_no_stretch_of_memory_are_refused():
    heads_first = torch.zeros(2, PAGES, 4, 8).transpose(0, 1)
    with pytest.raises(InvalidArgumentError, match="leave gaps inside a page"):
        DeviceMemory([[heads_first]], PAGES)


# ---- Beside the engine ----


@pytest.fixture(scope="module")
def daemon(many_small):
    return many_small


@pytest.fixture
def make_worker(daemon, request, monkeypatch):
    workers = []

    def make(**options) -> Worker:
        workers.append(Worker(daemon, request.node.name, monkeypatch, **options))
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()


def test_a_save_is_copied_after_its_step(make_worker):
    worker = make_worker()
    keys = worker.keys(0, 2)
    worker.step(save("a", keys, [3, 5]), write={3: 7, 5: 8})
    worker.step(write={4: 1})  # the engine goes on
    assert worker.device.copied == []
    assert worker.stored(keys[0]) is None
    worker.device.copy()
    worker.steps_until_idle()
    assert [worker.stored(key) for key in keys] == [7, 8]
    assert worker.side._device._memory.tensors[0][0].sum() == 0, "memory of pages is given back"
    assert worker.failed_saves == []


@pytest.mark.parametrize("fenced", [True, False])
def test_a_page_gets_new_tokens_while_its_save_waits_for_the_device(fenced, make_worker):
    """Without the fence what is stored is wrong, so the comparison sees; with it the engine waits for the copy."""
    worker = make_worker()
    (key,) = worker.keys(0, 1)
    worker.step(save("a", [key], [3]), write={3: 7})
    with worker.when_engine_waits(worker.device.flow) as waits:
        worker.step(fresh=[3, 4] if fenced else [], write={3: 9, 4: 9})
    worker.device.flow()
    worker.steps_until_idle()
    assert len(waits) == fenced
    assert worker.stored(key) == (7 if fenced else 9)


def test_nobody_waits_for_saves_of_other_pages(make_worker):
    worker = make_worker()
    worker.step(save("a", worker.keys(0, 1), [3]), write={3: 7})
    with worker.when_engine_waits(worker.device.flow) as waits:
        worker.step(fresh=[4, 5], write={4: 9})
    assert waits == []


def test_the_save_whose_page_is_needed_is_copied_first(make_worker):
    worker = make_worker()
    for page in (1, 2, 3, 4):
        worker.step(save("a", worker.keys(100 * page, 1), [page]), write={page: 7})
    worker.device.entered.acquire()  # the first is on its way
    with worker.when_engine_waits(lambda: worker.device.copy(2)):
        worker.step(fresh=[4])
    assert worker.device.copied == [1, 4]


def test_after_the_deadline_a_save_is_given_up_and_never_stored(make_worker, caplog):
    worker = make_worker()
    keys = worker.keys(0, 1) + worker.keys(100, 1)
    with worker.impatient():
        worker.step(save("a", keys[:1], [3]), save("b", keys[1:], [4]), write={3: 7, 4: 7})
        worker.device.entered.acquire()
        worker.step(fresh=[3], write={3: 9})
        worker.step(fresh=[4], write={4: 9})
    worker.device.flow()  # too late
    worker.steps_until_idle()
    assert [worker.stored(key) for key in keys] == [None, None]
    assert sorted(worker.failed_saves) == ["a", "b"]
    assert worker.side.stats.data["saves_given_up"] == worker.side.stats.data["save_failures"] == 2
    assert "saves" not in worker.side.stats.data
    assert len([record for record in caplog.records if "given up" in record.message]) == 1
    # Offered again.
    worker.step(save("a", keys[:1], [5]), write={5: 7})
    worker.steps_until_idle()
    assert worker.stored(keys[0]) == 7


def test_saves_on_their_way_are_bounded(make_worker):
    worker = make_worker(inflight_save_bytes_max=2 * PAGE_BYTES)
    keys = worker.keys(0, 3)  # larger than the bound, but alone
    worker.step(save("large", keys, [1, 2, 3]), write={1: 7, 2: 7, 3: 7})
    more = worker.keys(100, 1)
    worker.step(save("more", more, [4]), write={4: 8})
    assert worker.failed_saves == ["more"]
    worker.device.flow()
    worker.steps_until_idle()
    worker.step(save("more", more, [4]))
    worker.steps_until_idle()
    assert worker.failed_saves == ["more"]
    assert [worker.stored(key) for key in (*keys, *more)] == [7, 7, 7, 8]


def test_a_load_is_reported_when_its_pages_are_on_the_device(make_worker):
    worker = make_worker()
    keys = worker.keys(0, 2)
    worker.store(keys, 7)
    worker.step(load("a", keys, [3, 5]))
    worker.steps_until_entered()
    worker.step(write={4: 1})
    assert worker.ended == []
    assert not worker.tensor[[3, 5]].any()
    worker.device.copy()
    worker.steps_until(lambda: worker.ended)
    assert worker.tensor[[3, 5]].eq(7).all()
    worker.step()
    assert worker.ended == ["a"]
    assert worker.device.copied == [1], "after what was launched when it began, not later"
    assert worker.side._device._memory.tensors[0][0].sum() == 0


def test_of_a_load_that_fails_what_is_before_the_bad_block_is_used(make_worker):
    worker = make_worker()
    keys = worker.keys(0, 3)
    worker.store(keys[:2], 7)
    worker.device.flow()
    ended = worker.step(load("a", keys, [3, 4, 5]))
    while not ended.request_ids:
        ended = worker.step()
    assert ended.failed_pages == {5}
    assert worker.tensor[[3, 4]].eq(7).all()
    assert not worker.tensor[5].any()


@pytest.mark.parametrize("in_time", [True, False])
def test_a_load_into_pages_that_are_still_saved_waits(in_time, make_worker):
    worker = make_worker()
    saved, stored = worker.keys(0, 1), worker.keys(100, 1)
    worker.store(stored, 9)
    with contextlib.nullcontext() if in_time else worker.impatient():
        worker.step(save("a", saved, [3]), write={3: 7})
    with worker.when_engine_waits(worker.device.flow if in_time else lambda: None) as waits:
        worker.step(load("b", stored, [3]))
    assert waits
    worker.device.flow()
    worker.steps_until(lambda: worker.ended)
    worker.steps_until_idle()
    assert worker.ended == ["b"]
    assert worker.stored(saved[0]) == 7
    assert worker.tensor[3].eq(9 if in_time else 7).all()
    assert worker.side.stats.data.get("load_failures", 0) == (not in_time)


def test_loads_go_before_saves(make_worker):
    worker = make_worker()
    (key,) = worker.keys(100, 1)
    worker.store([key], 9)
    for page in (1, 2):
        worker.step(save("a", worker.keys(page * 1000, 1), [page]), write={page: 7})
    worker.device.entered.acquire()
    worker.step(load("b", [key], [3]))
    worker.steps_until(lambda: worker.side._device._loads)
    worker.device.flow()
    worker.steps_until(lambda: worker.ended)
    worker.steps_until_idle()
    assert worker.device.copied == [1, 3, 2]


def test_a_device_that_fails_costs_what_it_copied(make_worker):
    worker = make_worker()
    stored, saved = worker.keys(0, 2), worker.keys(100, 1)
    worker.store(stored, 7)
    worker.device.flow()
    worker.device.error = RuntimeError("unspecified launch failure")
    worker.step(load("loads", stored, [3, 4]), save("saves", saved, [5]), write={5: 8})
    ended = worker.step()
    while not worker.ended:
        ended = worker.step()
    assert ended.failed_pages == {3, 4}
    worker.steps_until_idle()
    assert worker.ended == ["loads"]
    assert worker.failed_saves == ["saves"]
    assert worker.stored(saved[0]) is None
    # The thread lives.
    worker.device.error = None
    worker.step(load("loads", stored, [3, 4]), save("saves", saved, [5]))
    worker.steps_until(lambda: len(worker.ended) == 2)
    worker.steps_until_idle()
    assert worker.tensor[[3, 4]].eq(7).all()
    assert worker.stored(saved[0]) == 8


@pytest.mark.parametrize("in_time", [True, False])
def test_a_reset_ends_saves_in_the_namespace_where_they_began_or_nowhere(in_time, make_worker):
    worker = make_worker()
    (key,), (fresh_key,) = worker.keys(0, 1), worker.keys(0, 1, epoch=1)
    worker.step(save("a", [key], [3]), write={3: 7})
    worker.device.entered.acquire()
    with worker.when_engine_waits(worker.device.flow) if in_time else worker.impatient():
        worker.side._follow(1)
    worker.device.flow()
    worker.step(save("b", [fresh_key], [4]), write={4: 8}, epoch=1)
    worker.steps_until_idle()
    assert worker.stored(key) == (7 if in_time else None)
    assert worker.stored(key, epoch=1) is None
    assert worker.stored(fresh_key, epoch=1) == 8


def test_a_reset_waits_for_a_load_that_is_being_written(make_worker):
    worker = make_worker()
    keys = worker.keys(0, 1)
    worker.store(keys, 7)
    worker.step(load("a", keys, [3]))
    worker.steps_until_entered()
    with worker.when_engine_waits(worker.device.flow):
        worker.step(epoch=1)
    assert worker.ended == ["a"]
    assert worker.tensor[3].eq(7).all()


def test_an_engine_that_ends_leaves_a_device_that_hangs(make_worker):
    worker = make_worker()
    keys = worker.keys(0, 1)
    worker.step(save("a", keys, [3]), write={3: 7})
    worker.device.entered.acquire()
    with worker.impatient():
        worker.side.close()
    worker.device.flow()
    worker.side._device._thread.join()
    assert worker.stored(keys[0]) is None


def test_what_a_forward_pass_did_not_finish_is_not_saved(make_worker):
    worker = make_worker()
    keys = worker.keys(0, 1)
    worker.device.flow()
    worker.side.begin(StepPlan(saves=[save("a", keys, [3])]))
    worker.steps_until_idle()
    assert worker.stored(keys[0]) is None
    assert worker.failed_saves == ["a"]


def test_of_ranks_that_hold_the_same_kv_the_first_saves_it(make_worker, monkeypatch):
    places = []
    for rank in range(4):
        monkeypatch.setattr(parallel_state, "get_tp_group", lambda rank=rank: SimpleNamespace(rank_in_group=rank))
        monkeypatch.setattr(parallel_state, "get_pp_group", lambda: SimpleNamespace(rank_in_group=1))
        side = SimpleNamespace(_vllm_config=SimpleNamespace(parallel_config=SimpleNamespace(tensor_parallel_size=4)))
        WorkerSide._place(side, 2)
        places.append((side._shard, side._saves_here))
    assert places == [(2, True), (2, False), (3, True), (3, False)]

    replica = make_worker(bounce=False)
    replica.side._saves_here = False
    saved, stored = replica.keys(0, 1), replica.keys(100, 1)
    replica.store(stored, 9)
    replica.step(save("a", saved, [3]), load("b", stored, [4]), write={3: 7})
    replica.steps_until(lambda: replica.ended)
    replica.steps_until_idle()
    assert replica.stored(saved[0]) is None
    assert replica.failed_saves == []  # nor is the other's save a failed one
    assert replica.tensor[4].eq(9).all()


# V1 calls wait_for_save in a `finally`, so with the exception on its way.
@pytest.mark.parametrize("bounce", [True, False])
@pytest.mark.parametrize("failure", [RuntimeError("in a layer"), SystemExit()])
def test_a_forward_pass_that_raised_saves_nothing(failure, bounce, make_worker, monkeypatch):
    worker = make_worker(bounce=bounce)
    keys = worker.keys(0, 2)
    worker.device.flow()
    connector = KavernConnector.__new__(KavernConnector)
    connector._worker = connector._side = worker.side
    monkeypatch.setattr(runner, "get_kv_transfer_group", lambda: connector)
    monkeypatch.setattr(runner, "get_forward_context", lambda: None)

    def step(plan: StepPlan, forward) -> None:
        output = SimpleNamespace(kv_connector_metadata=plan, has_sync_kv_loads=False, finished_req_ids=set())
        hooks = runner.KVConnectorModelRunnerMixin._get_kv_connector_output(output)
        try:
            with hooks as told:
                forward()
                connector.save_kv_layer("layer", None, None)
        finally:
            report = told.kv_connector_worker_meta  # what has ended by now is not told again
            worker.failed_saves += report.failed_saves if report else ()

    def fails() -> None:
        raise failure

    with pytest.raises(type(failure)):
        step(StepPlan(saves=[save("a", keys[:1], [3])]), fails)
    worker.steps_until_idle()
    assert worker.stored(keys[0]) is None
    assert worker.failed_saves == ["a"]
    step(StepPlan(saves=[save("b", keys, [3, 4])]), lambda: None)  # and the next one does
    worker.steps_until_idle()
    assert worker.stored(keys[1]) == 0


def test_a_step_within_an_except_saves(make_worker):
    worker = make_worker(bounce=False)
    (key,) = worker.keys(0, 1)
    try:
        raise KeyError("somebody handles this, and goes on")
    except KeyError:
        worker.step(save("a", [key], [3]), write={3: 7})
    worker.steps_until_idle()
    assert worker.stored(key) == 7


@pytest.mark.parametrize("bounce, stages, told", [(False, 1, 4), (True, 1, 0), (False, 2, 0)])
def test_only_who_can_time_a_prefill_tells_of_it(bounce, stages, told, daemon, make_worker):
    worker = make_worker(bounce=bounce, stages=stages)
    kept = worker.namespace()  # what nobody has open and nothing is in is forgotten
    worker.device.flow()
    for _ in range(4):
        worker.side.begin(StepPlan(alone=(0, 4)))
        worker.side.finish_saves()
        worker.side.begin(StepPlan())  # two requests
        worker.side.finish_saves()
    worker.side.close()  # tells what it has
    with kavern.Client(daemon.address) as client:
        client.wait_until_attached(20)
        plan = client.open_namespace(kept.spec).plan(worker.keys(0, 1), 5)
    assert plan.samples["prefill"] == told


def test_loads_on_their_way_are_bounded(make_worker):
    worker = make_worker(inflight_load_bytes_max=2 * PAGE_BYTES)
    keys = worker.keys(0, 2)
    worker.store(keys, 7)
    worker.step(load("a", keys, [3, 4]))
    ended = worker.step(load("b", keys[:1], [5]))
    assert (ended.request_ids, ended.failed_pages) == ({"b"}, {5})
    worker.device.flow()
    worker.steps_until(lambda: "a" in worker.ended)
    worker.step(load("c", keys, [6, 7]))
    worker.steps_until(lambda: "c" in worker.ended)
    assert worker.tensor[[3, 4, 6, 7]].eq(7).all()


def test_an_engine_that_ends_leaves_a_load_that_hangs(make_worker):
    worker = make_worker()
    keys = worker.keys(0, 1)
    worker.store(keys, 7)
    worker.step(load("a", keys, [3]))
    worker.steps_until_entered()
    with worker.impatient():
        worker.side.close()
    worker.device.flow()
    worker.side._device._thread.join()


@pytest.mark.parametrize("what, why", [("zeroed", "zeroed before use"), ("sleeps", "enable_sleep_mode")])
def test_what_overwrites_pages_without_a_hook_is_refused(what, why, make_worker):
    with pytest.raises(UnimplementedError, match=why):
        make_worker(**{what: True})


@pytest.mark.parametrize("late", [False, True])
def test_an_engine_with_few_pages_on_a_device_that_lags(late, tmp_path, empty_daemon, tiny_engines):
    """Pages for three of four requests, and a device that copies at the last moment. Where the fence comes after the
    step's writes, the engine loads blocks that it never saved, so the witness sees."""
    model = tiny_models.write("gqa", tmp_path / "model")
    draw = random.Random(5)
    prompts = [[draw.randrange(3, 500) for _ in range(length)] for length in (360, 370, 380, 300)]
    transfer = transfer_config(
        empty_daemon.address, kv_connector="LaggingConnector", kv_connector_module_path="lagging", kavern_bounce=True
    )
    transfer["kv_connector_extra_config"] |= {"record": str(tmp_path), "late": late}
    tiny_engines.run(model, [{"together": prompts}] * 4, transfer, as_on_gpu=True, pages=13)
    counts = {what: noted(tmp_path, what) for what in ("fenced", "verified", "wrong")}
    print(f"late: {late}, {counts}")
    assert counts["fenced"] > 0
    assert counts["verified"] > 0 or late
    assert (counts["wrong"] > 0) == late
