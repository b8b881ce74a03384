"""vLLM's scheduler as the connector's scheduler half sees it, played by hand or from a recording."""

import time
from types import SimpleNamespace

import kavern
from kavern.vllm import settings
from kavern.vllm.identity import Identity
from kavern.vllm.messages import Handshake, StepReport
from kavern.vllm.scheduler import SchedulerSide

BLOCK = 4
NULL = 0


class Request(SimpleNamespace):
    def __init__(self, request_id: str, tokens, **more):
        super().__init__(
            request_id=request_id,
            all_token_ids=list(tokens),
            num_computed_tokens=0,
            cache_salt=None,
            lora_request=None,
            mm_features=[],
            prompt_embeds=None,
            resumable=False,
            skip_reading_prefix_cache=False,
            block_hashes=[],
            kv_transfer_params=None,
        )
        self.__dict__.update(more)

    @property
    def num_tokens(self) -> int:
        return len(self.all_token_ids)


class Blocks(SimpleNamespace):
    def get_block_ids(self):
        return self.ids


class Scheduler:
    """What vLLM's scheduler does with the connector, step by step."""

    def __init__(
        self,
        daemon,
        model: str,
        groups: int = 1,
        weight_transfer=None,
        block_tokens: int = BLOCK,
        worker_extension: str = "",
        copies_later: bool = False,
        **options,
    ):
        group = SimpleNamespace(kv_cache_spec=SimpleNamespace(block_size=block_tokens))
        cache_config = SimpleNamespace(kv_cache_groups=[group] * groups)
        options = {"address": daemon.address} | options
        options = settings.parse({f"kavern.{name}": value for name, value in options.items()})
        vllm_config = SimpleNamespace(
            kv_events_config=None,
            weight_transfer_config=weight_transfer,
            lora_config=None,
            parallel_config=SimpleNamespace(worker_extension_cls=worker_extension),
        )
        self.side = SchedulerSide(options, vllm_config, cache_config)
        self.identity = Identity(
            model, "w", "", "", "", "int8", block_tokens, 1, tuple([(1, "FULL_ATTENTION", 2, 256, 0, 0)] * groups)
        )
        self.side.handshake({(0, 0): Handshake(self.identity, copies_later)})
        self.pages: dict[str, tuple[list[int], ...]] = {}

    def step(self, *scheduled, **output):
        """Plans a step of (request, tokens); then, as asynchronous scheduling does, counts them as computed at once.
        output: what else vLLM's SchedulerOutput says."""
        state = SimpleNamespace(get_block_ids=lambda request_id: self.pages[request_id])
        tokens = {request.request_id: count for request, count in scheduled}
        plan = self.side.plan(SimpleNamespace(num_scheduled_tokens=tokens, kv_connector_block_state=state, **output))
        for request, count in scheduled:
            request.num_computed_tokens += count
        return plan

    def report(self, **what):
        output = SimpleNamespace(finished_recving=set(), kv_connector_worker_meta=StepReport(**what))
        self.side.report(output)

    def admit(self, request, pages=None, local: int = 0) -> int:
        external = self.side.matched_tokens(request, local)
        count = (request.num_tokens + 8 * BLOCK) // BLOCK
        self.pages[request.request_id] = pages or (list(range(1, count + 1)),)
        self.side.allocated(request, Blocks(ids=self.pages[request.request_id]), external)
        return external


def store(scheduler: Scheduler, daemon, tokens, blocks: int, first: int = 0) -> list[bytes]:
    """As another engine would. first: how many of the blocks are there already. Returns the keys of all."""
    with kavern.Client(daemon.address) as client:
        client.wait_until_attached()
        namespace = client.open_namespace(scheduler.identity.spec(0))
        chain = namespace.chain()
        chain.append(list(tokens))
        keys = chain.keys_between(0, blocks)
        parts = [bytes(namespace.spec.layout.part_bytes())] * (blocks - first)
        parent = keys[first - 1] if first else None
        for group in range(len(scheduler.identity.groups)):
            assert not namespace.store(keys[first:], parts, group=group, parent=parent).decline_reason
        stored_in = namespace.fingerprint
    _wait_until_seen(scheduler, stored_in, keys)
    return keys


def _wait_until_seen(scheduler: Scheduler, stored_in: bytes, keys: list[bytes]) -> None:
    """A client is told of what another one stored a moment later; one in another namespace never is."""
    give_up = time.monotonic() + 30
    while True:
        namespace = scheduler.side._link.namespace()
        if namespace is not None and (namespace.fingerprint != stored_in or namespace.match(keys) == len(keys)):
            return
        assert time.monotonic() < give_up
