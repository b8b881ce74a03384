"""Runs prompts on tiny models, each plan in an engine and a process of its own, which ends with it.

Reads plans from stdin, one line of JSON each:

    {"model", "kv_transfer_config", "kv_events", "tensor_parallel_size", "as_on_gpu", "pages", "steps": [...],
     "number": of the plan, "log": path, "answers": path}

and says on stdout, a line each, as they come: the number of a plan that has ended. Its answers are then in the file; where
there is none, see the log. Plans run side by side.

A step is {"prompt": [token ids]}, or {"more": [token ids]}: the prompt before, its answer, and these; or {"damage":
arguments of damage.flip_signs}, or {"together": [prompts]}, before which the engine forgets its own prefix cache. Importing vLLM takes longer than such
an engine lives, so it is imported once, and forked.
"""

import json
import os
import signal
import sys
import traceback

import damage


def main() -> None:
    ended = os.dup(1)
    os.dup2(2, 1)  # vLLM prints; only numbers go to stdout
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "HF_HUB_OFFLINE": "1",
    }
    import vllm.entrypoints.llm  # noqa: F401
    import vllm.v1.engine.llm_engine  # noqa: F401
    import vllm.v1.worker.cpu_worker  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who watch
    for line in sys.stdin:
        if os.fork() == 0:
            _watch(json.loads(line), ended)


def _watch(plan: dict, ended: int) -> None:
    """In a child, which says how its own child ended: never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    engine = os.fork()
    if engine == 0:
        _run(plan)
    os.waitpid(engine, 0)
    os.write(ended, f"{plan['number']}\n".encode())
    os._exit(0)


def _run(plan: dict) -> None:
    """In the child's child: never returns."""
    code = 1
    try:
        log = os.open(plan["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        answers = json.dumps(_answers(plan))
        with open(plan["answers"], "w") as out:
            out.write(answers)
        code = 0
    except BaseException:  # noqa: BLE001 what the parent shall see is in the log
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _answers(plan: dict) -> list:
    import as_on_gpu
    from vllm import LLM, SamplingParams
    from vllm.config import KVEventsConfig, KVTransferConfig

    ranks = plan.get("tensor_parallel_size", 1)
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "0|1" if ranks == 2 else "0-1"
    transfer = plan.get("kv_transfer_config")
    events = plan.get("kv_events")  # where to publish them
    engine = LLM(
        plan["model"],
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=1024 if plan.get("pages") else 2048,
        num_gpu_blocks_override=plan.get("pages"),
        max_num_batched_tokens=512,
        tensor_parallel_size=ranks,
        kv_transfer_config=KVTransferConfig(**transfer) if transfer else None,
        kv_events_config=KVEventsConfig(enable_kv_cache_events=True, endpoint=events) if events else None,
        distributed_executor_backend=as_on_gpu.Executor if plan.get("as_on_gpu") else None,
    )
    sampling = SamplingParams(temperature=0, max_tokens=16, logprobs=5, detokenize=False, ignore_eos=True)
    answers = []
    prompt = []
    for step in plan["steps"]:
        if "damage" in step:
            assert engine.reset_prefix_cache()
            answers.append({"damaged": damage.flip_signs(**step["damage"])})
            continue
        if "together" in step:
            assert engine.reset_prefix_cache()
            sampling.max_tokens = 40
            results = engine.generate([{"prompt_token_ids": p} for p in step["together"]], sampling, use_tqdm=False)
            answers.append({"cached": sum(result.num_cached_tokens for result in results)})
            continue
        prompt = prompt + answers[-1]["tokens"] + step["more"] if "more" in step else step["prompt"]
        (result,) = engine.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)
        (output,) = result.outputs
        answers.append(
            {
                "tokens": list(output.token_ids),
                "cached": result.num_cached_tokens,
                "logprobs": [sorted((token, p.logprob) for token, p in step.items()) for step in output.logprobs],
                "told": result.kv_transfer_params,
            }
        )
    if plan.get("as_on_gpu"):
        as_on_gpu.check(engine.llm_engine.engine_core.engine_core)
    engine.llm_engine.engine_core.shutdown()  # what was being stored is stored
    return answers


if __name__ == "__main__":
    main()
