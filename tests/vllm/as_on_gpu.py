"""A real engine on processors whose connector sees what engines on GPUs do: asynchronous scheduling, and V2's hooks.

vLLM turns asynchronous scheduling off on processors, for their runner gains nothing by it. Its scheduler and engine
core do not mind: here they are vLLM's own (AsyncScheduler, two batches in flight), over that runner, which computes a
batch when it is submitted. The hooks of a step are called by the class that the V2 runner has for it
(ActiveKVConnector), around V1's forward pass. What this does not show: the worker's hooks of one step running beside
the scheduler's of the next, which they share no state with; and the order of copies on a device.
"""

from __future__ import annotations

import contextlib

from vllm.v1.executor.uniproc_executor import UniProcExecutor

v2_steps = 0


class Executor(UniProcExecutor):
    """For `distributed_executor_backend`."""

    def _init_executor(self) -> None:
        super()._init_executor()
        # The runner has read its configuration by now; scheduler and engine core have not.
        self.vllm_config.scheduler_config.async_scheduling = True
        _call_hooks_as_v2_does(self.vllm_config)


def check(engine_core) -> None:
    """AssertionError unless the engine did all that."""
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    assert isinstance(engine_core.scheduler, AsyncScheduler)
    assert engine_core.step_fn == engine_core.step_with_batch_queue
    assert engine_core.batch_queue_size == 2
    assert v2_steps > 0


def _call_hooks_as_v2_does(vllm_config) -> None:
    from vllm.distributed.kv_transfer import get_kv_transfer_group
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.worker.gpu.kv_connector import ActiveKVConnector
    from vllm.v1.worker.kv_connector_model_runner_mixin import KVConnectorModelRunnerMixin

    @contextlib.contextmanager
    def step(scheduler_output, defer_finalize=False):
        global v2_steps
        v2_steps += 1
        hooks = ActiveKVConnector.__new__(ActiveKVConnector)  # V1's runner has registered the KV caches
        hooks.vllm_config, hooks.kv_connector = vllm_config, get_kv_transfer_group()
        hooks._pending_load_kwargs, hooks._disabled = None, False
        output = KVConnectorOutput()
        hooks.pre_forward(scheduler_output)
        yield output
        hooks.finish_forward()
        vars(output).update(vars(hooks.post_forward(scheduler_output.finished_req_ids)))

    KVConnectorModelRunnerMixin._get_kv_connector_output = staticmethod(step)
