"""The scheduler's half under the hooks that a real engine called under asynchronous scheduling: a batch is planned
while the one before is in flight, its last tokens not known yet. recordings/ is made by hook_recorder.py.

Replayed without workers: what a lookup found there is stored before it, as another engine would. Not checked: what
workers do with a plan (live, in test_architectures.py).
"""

import json
import pathlib
from types import SimpleNamespace

import pytest
from daemon import Daemon
from kavern.vllm.messages import StepReport
from played_scheduler import Blocks, Request, Scheduler, store

RECORDING = pathlib.Path(__file__).with_name("recordings") / "async_scheduling.jsonl"


class Replay:
    def __init__(self, daemon, model: str, head: dict):
        self.daemon = daemon
        self.block_tokens = head["block_tokens"]
        self.tokens = head["requests"]
        self.scheduler = Scheduler(daemon, model, block_tokens=self.block_tokens)
        self.requests = {name: Request(name, []) for name in self.tokens}
        self.page_tables: dict[str, list] = {}
        self.saved: dict[str, int] = {name: 0 for name in self.tokens}  # blocks, from the first on
        self.met = {"steps ahead": 0, "preemptions": 0, "aborted loads": 0, "failed loads": 0}
        self._loading: set[str] = set()

    def play(self, call: dict) -> None:
        getattr(self, "_" + call["hook"])(call)

    def _seen(self, name: str, tokens: int) -> Request:
        request = self.requests[name]
        request.all_token_ids = self.tokens[name][:tokens]
        return request

    def _store(self, name: str, blocks: int) -> None:
        if blocks:
            store(self.scheduler, self.daemon, self.tokens[name][: blocks * self.block_tokens], blocks)

    def _match(self, call: dict) -> None:
        name, local, hit = call["request"], call["local"], call["hit"]
        request = self._seen(name, call["tokens"])
        if hit:
            self._store(name, (local + hit) // self.block_tokens)
        assert self.scheduler.side.matched_tokens(request, local) == hit

    def _allocated(self, call: dict) -> None:
        name = call["request"]
        self.scheduler.side.allocated(self.requests[name], Blocks(ids=call["pages"]), call["external"])
        if call["external"]:
            self._loading.add(name)

    def _plan(self, call: dict) -> None:
        for name, first, _ in call["saves"]:
            self._store(name, first)
        for name, seen in call["requests"].items():
            self._seen(name, seen["tokens"]).num_computed_tokens = seen["computed"]
            self.page_tables[name] = seen.get("pages", self.page_tables.get(name))
            self.met["steps ahead"] += seen["in_flight"]
        self.met["preemptions"] += len(call["preempted"])
        plan = self.scheduler.side.plan(
            SimpleNamespace(
                num_scheduled_tokens={name: seen["scheduled"] for name, seen in call["requests"].items()},
                kv_connector_block_state=SimpleNamespace(get_block_ids=self.page_tables.__getitem__),
            )
        )
        for save in plan.saves:
            self._check_save(save, call["requests"][save.request_id])
        assert [[load.request_id, [pages for _, pages in load.groups]] for load in plan.loads] == call["loads"]
        assert [[save.request_id, save.first, save.pages] for save in plan.saves] == call["saves"]

    def _check_save(self, save, seen: dict) -> None:
        """Whatever was recorded: tokens that are known, KV that is there after the step, pages of the request, nothing
        twice."""
        last = save.first + len(save.keys)
        assert last * self.block_tokens <= min(seen["tokens"], seen["computed"] + seen["scheduled"])
        assert save.pages == [pages[save.first : last] for pages in self.page_tables[save.request_id]]
        chain = self.scheduler.side._link.namespace().chain()
        chain.append(self.tokens[save.request_id])
        assert save.keys == chain.keys_between(save.first, last)
        assert save.first >= self.saved[save.request_id]
        self.saved[save.request_id] = last

    def _report(self, call: dict) -> None:
        self.met["aborted loads"] += len(set(call["loaded"]) - self._loading)
        self._loading -= set(call["loaded"])
        failed = call["failed"]
        self.met["failed loads"] += len(failed.get("loads", ()))
        if "loads" in failed:  # every block was damaged there, and is dropped by whoever finds it out
            self.daemon.kavern("namespaces", "--purge", self.scheduler.side._link.namespace().fingerprint.hex())
        report = StepReport(set(failed.get("loads", ())), set(failed.get("saves", ())))
        output = SimpleNamespace(finished_recving=set(call["loaded"]), kv_connector_worker_meta=report)
        self.scheduler.side.report(output)

    def _finished(self, call: dict) -> None:
        name = call["request"]
        self._loading.discard(name)
        assert self.scheduler.side.finished(self._seen(name, call["tokens"])) is not None


@pytest.fixture(scope="module")
def replay(tmp_path_factory):
    """After all of the recording."""
    head, *calls = map(json.loads, RECORDING.read_text().splitlines())
    daemon = Daemon(tmp_path_factory.mktemp("daemon"), ram="64MiB")
    daemon.start()
    try:
        replay = Replay(daemon, "recorded", head)
        for call in calls:
            replay.play(call)
        yield replay
        replay.scheduler.side.close()
    finally:
        daemon.stop()


def test_every_hook_answers_as_in_the_engine(replay):
    assert min(replay.met.values()) > 0, replay.met
    assert sum(replay.saved.values()) > 0
    assert not replay.scheduler.side._requests._tracked, "a request that ended is forgotten"
    print(f"replayed from a real engine: {replay.met}")


def test_the_block_that_a_last_step_in_flight_completes_is_not_saved(replay):
    """257 tokens, of which 256 have their KV; the 256th was not known when the last step was planned."""
    assert len(replay.tokens["edge"]) == 257
    assert replay.saved["edge"] == 1
