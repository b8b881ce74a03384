#!/usr/bin/env python3
"""Hit counts of a prefix cache under leaf-first LRU, simulated apart from the project's own code.

The cache holds `capacity` blocks. A request names a chain of blocks, root first, each standing for the whole
prefix up to it. In this order, which is the daemon's for one worker:

1. Match: the longest prefix of the chain that is cached; its blocks are the hits. They are used (touched).
2. Store: the other blocks are inserted root to leaf. When the cache is full, each first evicts one block:
   of the blocks without cached children that are not of this request's chain, the least recently
   used. If there is none, this block and the rest of the chain are not inserted.
3. All blocks of the chain that are cached now are touched, leaf to root, so that the root is the most recent.

Touching the hits in step 1 changes no count: the chain is not evicted from in step 2, and step 3 puts all of
it in order. So this is also the textbook order, in which a request only inserts and then touches. A request
longer than the capacity ends with its first `capacity` blocks cached and nothing else.

With an NVMe tier (--nvme-blocks) there are two such caches. A block that either has is a hit, of RAM where RAM has
it. Every block of a request is used in both: what RAM lacks is promoted (step 2, root to leaf, before the new
blocks), what the NVMe tier lacks is written back. So RAM holds what was used last, and the NVMe tier that and more.

What it does not model: pending and leased blocks of other workers, several slots per block, orphans.
"""

from __future__ import annotations

import argparse
import heapq
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

TOKENS_PER_BLOCK = 512


class PrefixCache:
    """Blocks named by integers; a heap of possible victims, entries of which may be out of date."""

    def __init__(self, capacity_blocks: int) -> None:
        self.capacity_blocks = capacity_blocks
        self.clock = 0
        self.used_at: dict[int, int] = {}  # cached block -> time of its last use
        self.parent: dict[int, int | None] = {}
        self.child_count: dict[int, int] = {}
        self.heap: list[tuple[int, int]] = []  # (time, block)
        self.evictions = 0

    def serve(self, chain: Sequence[int]) -> int:
        """Matches and stores one request's chain, root first; returns how many blocks hit."""
        hits = self.prefix(chain)
        self.use(chain)
        return hits

    def prefix(self, chain: Sequence[int]) -> int:
        """How many of its first blocks are cached."""
        hits = 0
        while hits < len(chain) and chain[hits] in self.used_at:
            hits += 1
        return hits

    def use(self, chain: Sequence[int]) -> None:
        """Inserts what is missing of the chain, and touches all of it."""
        cached = self._insert_all(chain, self.prefix(chain))
        for block in reversed(chain[:cached]):
            self.clock += 1
            self.used_at[block] = self.clock
            if self.child_count[block] == 0:
                heapq.heappush(self.heap, (self.clock, block))

    def _insert_all(self, chain: Sequence[int], hits: int) -> int:
        """Inserts what follows the hits as far as there is room; returns how much of the chain is cached."""
        own = set(chain)
        for position in range(hits, len(chain)):
            if len(self.used_at) >= self.capacity_blocks and not self._evict_one(own):
                return position
            block = chain[position]
            above = chain[position - 1] if position else None
            self.used_at[block] = 0
            self.parent[block] = above
            self.child_count[block] = 0
            if above is not None:
                self.child_count[above] += 1
        return len(chain)

    def _evict_one(self, spared: set[int]) -> bool:
        while self.heap:
            time, block = heapq.heappop(self.heap)
            # Blocks of this request come back into the heap when it touches them.
            current = self.used_at.get(block) == time and self.child_count[block] == 0
            if not current or block in spared:
                continue
            above = self.parent.pop(block)
            del self.used_at[block], self.child_count[block]
            self.evictions += 1
            if above is not None:
                self.child_count[above] -= 1
                if self.child_count[above] == 0:
                    heapq.heappush(self.heap, (self.used_at[above], above))
            return True
        return False


def read_chains(trace: Path, full_blocks_only: bool) -> Iterator[list[int]]:
    """Yields the block ids of each request of a trace in the Mooncake format, root first."""
    with trace.open(encoding="utf-8") as lines:
        for line in lines:
            request = json.loads(line)
            ids: list[int] = request["hash_ids"]
            if full_blocks_only:
                ids = ids[: request["input_length"] // TOKENS_PER_BLOCK]
            yield ids


def simulate_tiers(
    trace: Path, ram_blocks: int, nvme_blocks: int, full_blocks_only: bool
) -> dict[str, int | bool]:
    """Counts over the whole trace: requests, block references, hits by tier, evictions from each."""
    ram, nvme = PrefixCache(ram_blocks), PrefixCache(nvme_blocks)
    requests = references = hits = ram_hits = 0
    for chain in read_chains(trace, full_blocks_only):
        requests += 1
        references += len(chain)
        prefix_hits = 0
        while prefix_hits < len(chain) and (
            chain[prefix_hits] in ram.used_at or chain[prefix_hits] in nvme.used_at
        ):
            ram_hits += chain[prefix_hits] in ram.used_at
            prefix_hits += 1
        hits += prefix_hits
        ram.use(chain)
        nvme.use(chain)
    return {
        "capacity_blocks": ram_blocks,
        "nvme_blocks": nvme_blocks,
        "full_blocks_only": full_blocks_only,
        "requests": requests,
        "block_references": references,
        "hit_blocks": hits,
        "ram_hit_blocks": ram_hits,
        "nvme_hit_blocks": hits - ram_hits,
        "evicted_blocks": ram.evictions,
        "nvme_evicted_blocks": nvme.evictions,
    }


def simulate(trace: Path, capacity_blocks: int, full_blocks_only: bool) -> dict[str, int | bool]:
    """Counts over the whole trace: requests, block references, hits, evictions."""
    cache = PrefixCache(capacity_blocks)
    requests = references = hits = 0
    for chain in read_chains(trace, full_blocks_only):
        requests += 1
        references += len(chain)
        hits += cache.serve(chain)
    return {
        "capacity_blocks": capacity_blocks,
        "full_blocks_only": full_blocks_only,
        "requests": requests,
        "block_references": references,
        "hit_blocks": hits,
        "evicted_blocks": cache.evictions,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", type=Path, help="JSON lines with input_length and hash_ids")
    parser.add_argument("--capacity-blocks", type=int, required=True, action="append", metavar="N",
                        help="blocks that the cache holds; may be given several times")
    parser.add_argument("--nvme-blocks", type=int, metavar="N",
                        help="blocks that an NVMe tier below it holds, at least as many")
    parser.add_argument("--full-blocks-only", action="store_true",
                        help=f"take floor(input_length / {TOKENS_PER_BLOCK}) blocks of each request")
    parser.add_argument("--json", action="store_true", help="print one JSON object: command, rows")
    arguments = parser.parse_args()
    if any(capacity < 1 for capacity in arguments.capacity_blocks):
        parser.error("--capacity-blocks: expected at least 1")
    if arguments.nvme_blocks is not None and arguments.nvme_blocks < max(arguments.capacity_blocks):
        parser.error("--nvme-blocks: expected at least --capacity-blocks")
    rows = [simulate(arguments.trace, capacity, arguments.full_blocks_only)
            if arguments.nvme_blocks is None
            else simulate_tiers(arguments.trace, capacity, arguments.nvme_blocks, arguments.full_blocks_only)
            for capacity in arguments.capacity_blocks]
    if arguments.json:
        command = " ".join(["tests/sim/lru_reference.py", *sys.argv[1:]])
        print(json.dumps({"command": command, "rows": rows}, indent=1))
        return 0
    for row in rows:
        ratio = 100 * row["hit_blocks"] / max(1, row["block_references"])
        print(f"{row['capacity_blocks']:>9} blocks: {row['hit_blocks']:>8} of "
              f"{row['block_references']} hit ({ratio:.2f} %), {row['evicted_blocks']} evicted")
        if "nvme_blocks" in row:
            print(f"          of which {row['ram_hit_blocks']} in RAM, {row['nvme_hit_blocks']} on NVMe")
    return 0


if __name__ == "__main__":
    sys.exit(main())
