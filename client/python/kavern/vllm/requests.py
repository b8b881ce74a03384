"""The engine's requests: what is known of each, and the chain of its blocks."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

import kavern
from kavern.vllm.adapters import Adapters
from kavern.vllm.link import Link

_AWAY = "the daemon is away"


@dataclass
class TrackedRequest:
    """From its first lookup to its end."""

    request: Any
    chain: kavern.BlockKeyChain | None = None  # None: its KV is not cached, see `why_not`
    why_not: str = ""
    adapter: bytes = b""  # key of the LoRA adapter; empty: none
    # Blocks that workers were told to save or that the daemon has; None: ask the directory.
    offered: int | None = None
    local_tokens: int = 0  # what the engine itself still has
    hit_tokens: int = 0
    hit_tiers: list[str] = field(default_factory=list)  # per block beyond the engine's own: who had it at the match
    miss: str = "not looked up"
    load_failed: bool = False

    def give_up(self, why: str) -> None:
        """Nothing of it is cached any more, from here on."""
        self.chain, self.why_not = None, why


class Requests:
    def __init__(self, link: Link, block_tokens: int, adapters: Adapters, *, trust_media_names: bool):
        self._link = link
        self._block_tokens = block_tokens
        self._adapters = adapters
        # In which this engine's clients name images: a name may look like a hash, and be given to two of them.
        self._names = b"" if trust_media_names else secrets.token_bytes(16)
        self._tracked: dict[str, TrackedRequest] = {}

    def get(self, request_id: str) -> TrackedRequest | None:
        return self._tracked.get(request_id)

    def track(self, request) -> TrackedRequest:
        tracked = self._tracked.get(request.request_id)
        if tracked is None:
            tracked = self._tracked[request.request_id] = TrackedRequest(request)
            if request.prompt_embeds is not None:
                tracked.why_not = "prompt embeddings are not cached"
            elif request.resumable:
                tracked.why_not = "streamed input is not cached"
            elif request.lora_request is not None:
                tracked.why_not = self._adapters.why_not(request.lora_request)
                if not tracked.why_not:
                    tracked.adapter = self._adapters.key(request.lora_request)
        return tracked

    def end(self, request_id: str) -> TrackedRequest | None:
        return self._tracked.pop(request_id, None)

    def give_up_all(self, why: str) -> None:
        for tracked in self._tracked.values():
            tracked.give_up(why)

    def start_chain(self, tracked: TrackedRequest) -> bool:
        """Whether there is a chain; where not (yet), or no more, `why_not` says why."""
        if tracked.adapter and (why_not := self._adapters.why_not(tracked.request.lora_request)):
            tracked.give_up(why_not)
        if tracked.chain is None and tracked.why_not in ("", _AWAY):
            namespace = self._link.namespace()
            tracked.chain = namespace.chain() if namespace is not None else None
            tracked.why_not = "" if namespace is not None else _AWAY
        return tracked.chain is not None

    def extend(self, tracked: TrackedRequest, tokens: int) -> None:
        """Appends the complete blocks among the first `tokens` tokens to the chain."""
        chain, request = tracked.chain, tracked.request
        first, last = len(chain), tokens // self._block_tokens
        if last <= first:
            return
        for block in range(first, last if request.mm_features else min(last, 1)):
            extra = self._extra_keys(tracked, block)
            if extra:
                chain.set_extra_keys(block, extra)
        chain.append(list(request.all_token_ids[first * self._block_tokens : last * self._block_tokens]))

    def _extra_keys(self, tracked: TrackedRequest, block: int) -> list[bytes]:
        """What changes a block's KV beside tokens and ancestors. Of the first block: of the whole chain."""
        request, keys = tracked.request, []
        if block == 0:
            if request.cache_salt:
                keys.append(b"salt\0" + request.cache_salt.encode())
            if tracked.adapter:
                keys.append(tracked.adapter)
        begin, end = block * self._block_tokens, (block + 1) * self._block_tokens
        for feature in request.mm_features or ():
            offset = feature.mm_position.offset
            if offset < end and begin < offset + feature.mm_position.length:
                keys.append(b"mm\0%d\0%s\0%s" % (offset - begin, self._names, feature.identifier.encode()))
        return keys
