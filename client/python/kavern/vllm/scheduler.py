"""The scheduler's half: what is a hit, what is to be loaded, what is to be saved."""

from __future__ import annotations

import logging
import secrets
from collections import Counter
from typing import Any

import kavern
from kavern.vllm import identity as identities
from kavern.vllm.adapters import Adapters
from kavern.vllm.conversations import Teller, wish_of
from kavern.vllm.events import KvEvents
from kavern.vllm.link import Link
from kavern.vllm.messages import Handshake, Load, Save, StepPlan, StepReport
from kavern.vllm.metrics import Stats
from kavern.vllm.requests import Requests, TrackedRequest

logger = logging.getLogger("vllm.kavern")

# Blocks saved in one step, so that no step grows without bound: after a restart of the daemon, everything is to be saved.
_BLOCKS_PER_STEP = 1024


def _fresh_epoch() -> int:
    return secrets.randbits(63) | 1


def _kv_events(vllm_config, kv_cache_config, block_tokens: int) -> KvEvents | None:
    events = vllm_config.kv_events_config
    if events is None or not events.enable_kv_cache_events:
        return None
    from vllm.v1.core.kv_cache_utils import resolve_kv_cache_block_sizes

    _, hash_tokens = resolve_kv_cache_block_sizes(kv_cache_config, vllm_config)
    return KvEvents(block_tokens, hash_tokens)


class SchedulerSide:
    def __init__(self, settings, vllm_config, kv_cache_config):
        self._settings = settings
        self._link = Link(settings, "vllm scheduler")
        self._block_tokens = kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size
        self._identity: identities.Identity | None = None
        # Where weights are sent in while the engine runs, its files do not tell them, and no hook says when: such an
        # engine shares nothing. Code that extends its workers may do the same.
        parallel = vllm_config.parallel_config
        is_private = vllm_config.weight_transfer_config is not None or parallel.worker_extension_cls
        self._epoch = _fresh_epoch() if is_private else 0
        self._null_page = 0
        self._fences = False  # workers copy pages after their step
        self._blocks_per_step = _BLOCKS_PER_STEP
        adapters = Adapters(identities.options_digest("lora_config", vllm_config.lora_config))
        self._requests = Requests(
            self._link, self._block_tokens, adapters, trust_media_names=settings.trust_media_names
        )
        self._loads: list[Load] = []
        self._teller = Teller(settings.load_timeout_s)
        self._events = _kv_events(vllm_config, kv_cache_config, self._block_tokens)
        self.stats = Stats()

    # ---- The engine's life ----

    def handshake(self, workers: dict[tuple[int, int], Handshake]) -> None:
        """Raises ValueError when workers keep KV of different shapes, or in different daemons."""
        machines = {worker.machine for worker in workers.values()}
        if len(machines) != 1:
            raise ValueError(
                f"Kavern: the workers run on {len(machines)} machines: their shards would lie in several daemons, and no "
                f"block be whole"
            )
        found = {worker.identity for worker in workers.values()}
        if len(found) != 1:
            raise ValueError(f"Kavern: the workers' KV differs: {sorted(map(str, found))}")
        (self._identity,) = found
        self._fences = any(worker.copies_later for worker in workers.values())
        if self._fences:
            blocks = self._settings.inflight_save_bytes_max // self._identity.block_bytes
            self._blocks_per_step = max(1, min(blocks, _BLOCKS_PER_STEP))
        self._link.use(self._identity.spec(self._epoch), wait_s=self._settings.attach_timeout_s)

    def bind_block_pool(self, pool) -> None:
        self._null_page = pool.null_block.block_id

    def reset(self) -> None:
        """Weights may have changed: what was stored so far is not this engine's any more. It stays, for others."""
        self._epoch = _fresh_epoch()
        logger.info("Kavern: cache reset, a fresh namespace from here on (epoch %d)", self._epoch)
        if self._identity is not None:
            self._link.use(self._identity.spec(self._epoch))
        self._forget("the cache was reset while the request ran")

    def _forget(self, why: str) -> None:
        """What requests that run have stored so far has keys of another namespace than this engine's."""
        self._requests.give_up_all(why)
        if self._events is not None:
            self._events.forget()

    def close(self) -> None:
        self._teller.close()
        self._link.close()

    # ---- Matching ----

    def matched_tokens(self, request, local_tokens: int) -> int:
        """Tokens beyond `local_tokens` that can be loaded; whole blocks, and never the last token."""
        state = self._requests.track(request)
        state.local_tokens = local_tokens
        state.hit_tokens = 0
        state.miss = self._why_no_lookup(state)
        if state.miss:
            return 0
        self._requests.extend(state, request.num_tokens)
        usable = (request.num_tokens - 1) // self._block_tokens
        keys = state.chain.keys_between(0, usable)
        tiers = self._link.namespace().match_tiers(keys)
        state.hit_tiers = tiers[local_tokens // self._block_tokens :]
        stored = len(tiers) * self._block_tokens
        if stored <= local_tokens:
            state.miss = "the engine has it itself" if local_tokens else "not stored, or evicted"
            return 0
        state.miss = "" if len(tiers) == usable else f"stored up to token {stored}"
        if self._settings.follow_plan:
            plan = self._link.namespace().plan(keys, request.num_tokens, engine_tokens=local_tokens)
            worthwhile = (plan.first_block + plan.fetch_blocks) * self._block_tokens
            if worthwhile < stored:
                state.miss = f"from token {max(worthwhile, local_tokens)} on it is quicker to compute"
                stored = worthwhile
        return max(stored - local_tokens, 0)

    def _why_no_lookup(self, state: TrackedRequest) -> str:
        if state.request.skip_reading_prefix_cache:
            return "the request does not read caches"
        if state.load_failed:
            return "a load failed"  # another try could fail as well, for ever
        if not self._link.breaker.closed or not self._link.attached:
            self.stats.add("lookups_without_daemon")
            return "the daemon is away" if self._link.breaker.closed else "the daemon does not answer"
        return "" if self._requests.start_chain(state) else state.why_not

    def allocated(self, request, blocks, external_tokens: int) -> None:
        """Pages for what matched_tokens() said are there: they are loaded."""
        if external_tokens == 0:
            return
        state = self._requests.track(request)
        first = state.local_tokens // self._block_tokens
        last = first + external_tokens // self._block_tokens
        keys = state.chain.keys_between(first, last)
        groups = []
        for pages in blocks.get_block_ids():
            # Of a sliding window only the last blocks have pages.
            wanted = [(key, page) for key, page in zip(keys, pages[first:last]) if page != self._null_page]
            groups.append(([key for key, _ in wanted], [page for _, page in wanted]))
        self._loads.append(Load(request.request_id, groups))
        if self._events is not None:  # other engines' blocks, and those of this one's earlier life
            self._events.expect(request, state.chain.keys_between(0, last), 0)
        state.hit_tokens = external_tokens
        self.stats.add("hit_tokens", external_tokens)
        self.stats.add("nvme_hit_tokens", self._tokens_by_tier(state, external_tokens).get("nvme", 0))

    def hit_sources(self, request, external_tokens: int) -> dict[str, int]:
        """Of what is loaded for the request: tokens by the tier that had them when it was looked up."""
        return self._tokens_by_tier(self._requests.track(request), external_tokens)

    def _tokens_by_tier(self, state: TrackedRequest, tokens: int) -> dict[str, int]:
        blocks = Counter(state.hit_tiers[: tokens // self._block_tokens])
        return {tier: count * self._block_tokens for tier, count in blocks.items()}

    # ---- Every step ----

    def plan(self, output) -> StepPlan:
        if self._link.poll():
            self._forget("the daemon came back with another tenant while the request ran")
        for outcome in self._teller.take_outcomes():
            self.stats.add(outcome)
        plan = StepPlan(epoch=self._epoch, idle=not output.num_scheduled_tokens, loads=self._loads)
        self._loads = []
        if self._fences:
            plan.fresh_pages = self._fresh_pages(output)
        if len(output.num_scheduled_tokens) == 1:
            plan.alone = self._alone(*next(iter(output.num_scheduled_tokens.items())))
        block_state = output.kv_connector_block_state
        may_save = self._link.breaker.closed and self._link.attached
        room = self._blocks_per_step
        for request_id, scheduled in output.num_scheduled_tokens.items():
            state = self._requests.get(request_id)
            if state is None or not may_save:
                continue
            request = state.request
            # Tokens whose KV is right after this step: the last sampled one is not computed yet, and of drafts
            # num_tokens counts the accepted ones only.
            ready = min(request.num_computed_tokens + scheduled, request.num_tokens) // self._block_tokens
            if state.offered is not None and ready <= state.offered or ready == 0:
                continue
            save = self._save(state, ready, block_state, room)
            if save is not None:
                plan.saves.append(save)
                room -= len(save.keys)
        return plan

    def _fresh_pages(self, output) -> set[int]:
        """Pages that the step's forward pass may be the first to write for its tokens. Those of loads are not among
        them: workers fence a load themselves."""
        cached = output.scheduled_cached_reqs
        tables = [(new.num_computed_tokens, new.block_ids) for new in output.scheduled_new_reqs]
        for request_id, computed, pages in zip(cached.req_ids, cached.num_computed_tokens, cached.new_block_ids):
            # Of a resumed request all pages are told, and the first ones may be others' too, who computed them.
            tables.append((computed if request_id in cached.resumed_req_ids else 0, pages or ()))
        fresh = {page for computed, pages in tables for ids in pages for page in ids[computed // self._block_tokens :]}
        return fresh.union(output.new_block_ids_to_zero or ()) - {self._null_page}

    def _alone(self, request_id: str, scheduled: int) -> tuple[int, int] | None:
        """Tokens of a prefill that has the step for itself, and so tells what a prefill costs."""
        state = self._requests.get(request_id)
        if state is None or scheduled < self._block_tokens:
            return None
        begin = state.request.num_computed_tokens
        return begin, begin + scheduled

    def _save(self, state: TrackedRequest, ready: int, block_state, room: int) -> Save | None:
        if not self._requests.start_chain(state):
            return None
        self._requests.extend(state, ready * self._block_tokens)
        if state.offered is None:
            state.offered = self._link.namespace().match(state.chain.keys_between(0, ready))
        first, last = state.offered, min(ready, state.offered + room)
        if first >= last:
            return None
        pages = [list(ids[first:last]) for ids in block_state.get_block_ids(state.request.request_id)]
        # A sliding window has left a page behind: what follows would have no complete ancestor.
        count = min((ids.index(self._null_page) if self._null_page in ids else len(ids)) for ids in pages)
        if count == 0:
            state.give_up("its beginning left the sliding window before it was stored")
            return None
        state.offered = first + count
        keys = state.chain.keys_between(first, first + count)
        parent = state.chain.keys_between(first - 1, first)[0] if first else None
        if self._events is not None:
            self._events.expect(state.request, keys, first)
        return Save(state.request.request_id, first, parent, keys, [ids[:count] for ids in pages])

    def report(self, output) -> None:
        """What workers said about loads and saves of earlier steps."""
        report = output.kv_connector_worker_meta
        if not isinstance(report, StepReport):
            return
        for request_id in report.failed_loads:
            state = self._requests.get(request_id)
            if state is not None:
                state.load_failed = True
                self.stats.add("failed_tokens", state.hit_tokens)
                state.hit_tokens = 0
                state.miss = "a load failed"
        for request_id in report.failed_saves:
            state = self._requests.get(request_id)
            if state is not None:
                state.offered = None
        if report.trouble:
            self._link.breaker.trouble()
        elif report.answered:
            self._link.breaker.success()

    def finished(self, request) -> dict[str, Any] | None:
        """The request's answer carries this, where it is not streamed."""
        state = self._requests.end(request.request_id)
        if state is None:
            return None
        hit_tokens = {"ram": 0, **self._tokens_by_tier(state, state.hit_tokens)}
        told = {"hit_tokens": hit_tokens, "engine_tokens": state.local_tokens}
        if state.miss:
            told["miss"] = state.miss
        conversation = self._tell_conversation(state)
        if conversation is not None:
            told["conversation"] = conversation
        return {"kavern": told}

    def _tell_conversation(self, state: TrackedRequest) -> dict[str, Any] | None:
        """What the answer says of the conversation that the request names, which the daemon is told of meanwhile."""
        try:
            wish = wish_of(state.request.kv_transfer_params, state.request.cache_salt)
        except ValueError as error:
            return {"state": "not kept", "why": str(error)}
        if wish is None:
            return None
        if not (self._link.breaker.closed and self._link.attached):
            return {"state": "not kept", "why": "the daemon is away"}
        if state.chain is None:
            return {"state": "not kept", "why": state.why_not or "nothing of it was stored"}
        blocks = len(state.chain) if state.offered is None else state.offered
        if blocks == 0:
            return {"state": "not kept", "why": "it is shorter than a block"}
        namespace = self._link.namespace()
        if not self._teller.tell(namespace, wish, state.chain.keys_between(0, blocks)):
            return {"state": "not kept", "why": "the daemon is slow: too many wait to be told"}
        priority, ttl_s = wish.within(namespace.conversation_limits)
        return {"state": "being kept", "tokens": blocks * self._block_tokens, "priority": priority, "ttl_s": ttl_s}

    def take_events(self) -> list:
        if self._events is None:
            return []
        return self._events.take(self._link.namespace() if self._link.attached else None)
