"""KV events: what Kavern keeps of this engine's requests, told to whoever routes by it.

The directory is asked, at every step: a block is told of once it is there, which is when every rank has stored it; and as
nobody announces what the daemon evicts, a part of what was told is looked up again, and what is gone is told to be
removed. Medium CPU stands for RAM and disk: a fetch takes a block from either.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque

import kavern

# Blocks that are remembered to have been told of; of more, the oldest are told to be removed.
TOLD_MAX = 1 << 18
# Looked up again per step, at about 0.1 us each: all of them within TOLD_MAX / 256 steps.
LOOKED_UP_PER_STEP = 256
# What was to be stored and is not there by then was declined, or evicted at once.
EXPECTED_S = 60.0
EXPECTED_MAX = 4096


class KvEvents:
    def __init__(self, block_tokens: int, hash_tokens: int):
        """hash_tokens: of how many tokens the engine's block hashes are; block_tokens is a multiple of it."""
        self._block_tokens = block_tokens
        self._hashes_per_block = block_tokens // hash_tokens
        self._told: OrderedDict[bytes, object] = OrderedDict()  # Kavern's key: the engine's hash
        self._expected: deque[tuple] = deque(maxlen=EXPECTED_MAX)
        self._events: list = []

    def expect(self, request, keys: list[bytes], first: int) -> None:
        """Blocks [first, first + len(keys)) of the request are there, or are being stored; `keys` are theirs."""
        self._expected.append((request, keys, first, time.monotonic() + EXPECTED_S))

    def take(self, namespace: kavern.Namespace | None) -> list:
        """What is news since the last call. None: the daemon is away, and nobody knows."""
        if namespace is not None:
            self._look_up_expected(namespace)
            self._look_up_told(namespace)
        events, self._events = self._events, []
        return events

    def forget(self) -> None:
        """What was told so far is of no use to this engine any more."""
        self._expected.clear()
        self._removed(list(self._told.values()))
        self._told.clear()

    def _look_up_expected(self, namespace: kavern.Namespace) -> None:
        now = time.monotonic()
        for _ in range(len(self._expected)):
            request, keys, first, until = self._expected.popleft()
            # The engine's own hashes may come later than Kavern's keys.
            hashed = len(request.block_hashes) // self._hashes_per_block - first
            there = max(0, min(namespace.match(keys), hashed))
            self._stored(request, keys[:there], first)
            if there < len(keys) and now < until:
                self._expected.append((request, keys[there:], first + there, until))

    def _look_up_told(self, namespace: kavern.Namespace) -> None:
        gone = []
        for _ in range(min(LOOKED_UP_PER_STEP, len(self._told))):
            key, block_hash = self._told.popitem(last=False)
            if namespace.match([key]):
                self._told[key] = block_hash  # behind all others
            else:
                gone.append(block_hash)
        while len(self._told) > TOLD_MAX:
            gone.append(self._told.popitem(last=False)[1])
        self._removed(gone)

    def _stored(self, request, keys: list[bytes], first: int) -> None:
        from vllm.distributed.kv_events import MEDIUM_CPU, BlockStored

        start = 0
        while start < len(keys):
            end = start
            while end < len(keys) and keys[end] not in self._told:
                end += 1
            if end > start:
                hashes = [self._hash(request, first + block) for block in range(start, end)]
                self._told.update(zip(keys[start:end], hashes))
                lora = request.lora_request
                tokens = slice((first + start) * self._block_tokens, (first + end) * self._block_tokens)
                self._events.append(
                    BlockStored(
                        block_hashes=hashes,
                        parent_block_hash=self._hash(request, first + start - 1) if first + start else None,
                        token_ids=list(request.all_token_ids[tokens]),
                        block_size=self._block_tokens,
                        lora_id=lora.adapter_id if lora else None,
                        medium=MEDIUM_CPU,
                        lora_name=lora.name if lora else None,
                        extra_keys=self._extra_keys(request, first + start, first + end),
                    )
                )
            start = end + 1

    def _removed(self, hashes: list) -> None:
        from vllm.distributed.kv_events import MEDIUM_CPU, BlockRemoved

        if hashes:
            self._events.append(BlockRemoved(block_hashes=hashes, medium=MEDIUM_CPU))

    def _hash(self, request, block: int):
        from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash

        # Each hash chains over its whole prefix: a block's is that of its last piece.
        return maybe_convert_block_hash(request.block_hashes[(block + 1) * self._hashes_per_block - 1])

    def _extra_keys(self, request, first: int, last: int) -> list | None:
        from vllm.v1.core.kv_cache_utils import generate_block_hash_extra_keys, to_event_extra_keys

        found, image = [], 0
        for block in range(first, last):
            begin = block * self._block_tokens
            extra, image = generate_block_hash_extra_keys(request, begin, begin + self._block_tokens, image)
            found.append(extra)
        return to_event_extra_keys(found)
