"""Records the scheduler's hooks of a real engine under asynchronous scheduling (as_on_gpu.py).

    export KAVERN_BIN=build/dev/bin
    build/vllm/bin/python tests/vllm/hook_recorder.py tests/vllm/recordings/async_scheduling.jsonl

test_recorded_hooks.py replays them. The first line says what was recorded: vLLM's release, tokens per block, all tokens
of every request. Each further line is one call of a hook, with what the connector could see of the requests at that
moment, and what it answered.
"""

from __future__ import annotations

import json
import os
import pathlib
import random
import sys
import tempfile

from kavern.vllm import KavernConnector

ROOT = pathlib.Path(__file__).resolve().parents[2]
calls: list[dict] = []
requests: dict[str, object] = {}
_page_tables: dict[str, list] = {}


def _note(hook: str, **what) -> None:
    if not calls or calls[-1] != {"hook": hook} | what:  # a request that waits is looked up at every step
        calls.append({"hook": hook} | what)


def _name(request_id: str) -> str:
    return request_id.rpartition("-")[0]  # vLLM appends a random number


class HookRecorder(KavernConnector):
    def get_num_new_matched_tokens(self, request, num_computed_tokens):
        requests[_name(request.request_id)] = request
        hit, asynchronously = super().get_num_new_matched_tokens(request, num_computed_tokens)
        _note("match", request=_name(request.request_id), tokens=request.num_tokens, local=num_computed_tokens, hit=hit)
        return hit, asynchronously

    def update_state_after_alloc(self, request, blocks, num_external_tokens):
        super().update_state_after_alloc(request, blocks, num_external_tokens)
        pages = [list(ids) for ids in blocks.get_block_ids()]
        _note("allocated", request=_name(request.request_id), external=num_external_tokens, pages=pages)

    def build_connector_meta(self, scheduler_output):
        plan = super().build_connector_meta(scheduler_output)
        scheduled = {}
        for request_id, count in scheduler_output.num_scheduled_tokens.items():
            request = requests[_name(request_id)]
            seen = scheduled[_name(request_id)] = {
                "scheduled": count,
                "computed": request.num_computed_tokens,
                "in_flight": request.num_output_placeholders,  # of those: tokens that are not known yet
                "tokens": request.num_tokens,
            }
            pages = [list(ids) for ids in scheduler_output.kv_connector_block_state.get_block_ids(request_id)]
            if _page_tables.get(request_id) != pages:
                seen["pages"] = _page_tables[request_id] = pages
        _note(
            "plan",
            requests=scheduled,
            preempted=sorted(map(_name, scheduler_output.preempted_req_ids or ())),
            loads=[[_name(load.request_id), [pages for _, pages in load.groups]] for load in plan.loads],
            saves=[[_name(save.request_id), save.first, save.pages] for save in plan.saves],
        )
        return plan

    def update_connector_output(self, connector_output):
        super().update_connector_output(connector_output)
        report = connector_output.kv_connector_worker_meta
        loaded = sorted(map(_name, connector_output.finished_recving or ()))
        failed = {"loads": report.failed_loads, "saves": report.failed_saves} if report else {}
        failed = {what: sorted(map(_name, ids)) for what, ids in failed.items() if ids}
        if loaded or failed:
            _note("report", loaded=loaded, failed=failed)

    def request_finished_all_groups(self, request, block_ids):
        _note("finished", request=_name(request.request_id), tokens=request.num_tokens)
        return super().request_finished_all_groups(request, block_ids)


def run(daemon, model: pathlib.Path) -> None:
    """Preemptions, loads after the engine forgot its cache, requests aborted while they load and while they run, loads
    that fail, requests that end at the edge of a block."""
    import as_on_gpu
    import damage
    from engine import transfer_config
    from vllm import SamplingParams
    from vllm.config import KVTransferConfig
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    transfer = transfer_config(daemon.address, kv_connector="HookRecorder", kv_connector_module_path="hook_recorder")
    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=str(model),
            skip_tokenizer_init=True,
            enforce_eager=True,
            max_model_len=1024,
            max_num_batched_tokens=512,
            num_gpu_blocks_override=13,  # too few for the four requests
            distributed_executor_backend=as_on_gpu.Executor,
            kv_transfer_config=KVTransferConfig(**transfer),
        )
    )
    draw = random.Random(5)
    prompts = [[draw.randrange(3, 500) for _ in range(length)] for length in (360, 370, 380, 300)]

    def add(name: str, max_tokens: int, prompt: list[int]) -> None:
        sampling = SamplingParams(temperature=0, max_tokens=max_tokens, detokenize=False, ignore_eos=True)
        engine.add_request(name, {"prompt_token_ids": prompt}, sampling)

    def add_wave(name: str, max_tokens: int, more: list[int]) -> None:
        for number, prompt in enumerate(prompts):
            add(f"{name}{number}", max_tokens, prompt + more)

    def step(count: int | None = None) -> None:
        """As often, or until all is done."""
        while engine.has_unfinished_requests() and count != 0:
            engine.step()
            count = None if count is None else count - 1

    add_wave("first", 40, [])
    step()
    assert engine.reset_prefix_cache()
    add_wave("second", 20, [7] * 10)
    step(1)
    engine.abort_request(["second1"])  # while it loads
    step(8)
    engine.abort_request(["second2"])  # while a step of it is in flight
    step()
    assert engine.reset_prefix_cache()
    add("whole", 2, prompts[0][:256])  # both its blocks are stored, and the last token must be computed
    step()
    assert engine.reset_prefix_cache()
    for slot in range(16):
        damage.flip_signs(daemon.process.pid, 4 * 32768, slot, 0, 32768, item_bytes=2)
    add_wave("third", 3, [8] * 10)
    step()
    add("edge", 7, prompts[0][100:350])  # the last token but one completes its second block
    step()
    as_on_gpu.check(engine.engine_core.engine_core)


def main() -> None:
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "0-1",
        "HF_HUB_OFFLINE": "1",
    }
    sys.path[:0] = [str(ROOT / "client/python/tests"), str(ROOT / "deploy/vllm")]
    import hook_recorder  # vLLM imports it by this name, too
    import tiny_models
    from daemon import Daemon
    from vllm import __version__

    with tempfile.TemporaryDirectory() as directory:
        daemon = Daemon(pathlib.Path(directory), ram="256MiB")
        daemon.start()
        try:
            hook_recorder.run(daemon, tiny_models.write("gqa", pathlib.Path(directory) / "model"))
        finally:
            daemon.stop()
    tokens = {name: list(request.all_token_ids) for name, request in hook_recorder.requests.items()}
    lines = [{"vllm": __version__, "block_tokens": 128, "requests": tokens}, *hook_recorder.calls]
    path = pathlib.Path(sys.argv[1])
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))


if __name__ == "__main__":
    main()
