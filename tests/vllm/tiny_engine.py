"""Runs prompts on tiny models, each plan in an engine and a process of its own, which ends with it.

Reads plans from stdin, one line of JSON each, and answers each with one line:

    {"model", "kv_transfer_config", "kv_events", "tensor_parallel_size", "as_on_gpu", "steps": [...], "log": path}
        ->  [answers], or null: see the log

A step is {"prompt": [token ids]} or {"damage": arguments of damage.flip_signs}; before a damage step the engine forgets
its own prefix cache. Importing vLLM takes longer than such an engine lives, so it is imported once, and forked.
"""

import json
import os
import sys
import traceback

import damage


def main() -> None:
    answers = os.dup(1)
    os.dup2(2, 1)  # vLLM prints; only the answers go to stdout
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "HF_HUB_OFFLINE": "1",
    }
    import vllm.entrypoints.llm  # noqa: F401
    import vllm.v1.engine.llm_engine  # noqa: F401
    import vllm.v1.worker.cpu_worker  # noqa: F401

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _run(json.loads(line), answers)
        _, status = os.waitpid(child, 0)
        if status != 0:
            os.write(answers, b"null\n")


def _run(plan: dict, answers: int) -> None:
    """In the child: never returns."""
    code = 1
    try:
        log = os.open(plan["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        line = json.dumps(_answers(plan)) + "\n"
        with os.fdopen(answers, "w") as out:
            out.write(line)
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
        max_model_len=2048,
        max_num_batched_tokens=512,
        tensor_parallel_size=ranks,
        kv_transfer_config=KVTransferConfig(**transfer) if transfer else None,
        kv_events_config=KVEventsConfig(enable_kv_cache_events=True, endpoint=events) if events else None,
        distributed_executor_backend=as_on_gpu.Executor if plan.get("as_on_gpu") else None,
    )
    sampling = SamplingParams(temperature=0, max_tokens=16, logprobs=5, detokenize=False, ignore_eos=True)
    answers = []
    for step in plan["steps"]:
        if "damage" in step:
            assert engine.reset_prefix_cache()
            answers.append({"damaged": damage.flip_signs(**step["damage"])})
            continue
        (result,) = engine.generate([{"prompt_token_ids": step["prompt"]}], sampling, use_tqdm=False)
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
