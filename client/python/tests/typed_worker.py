"""A worker as a type checker sees it: test_types.py checks it strictly, and runs it."""

from __future__ import annotations

import ctypes

import kavern

SPEC = kavern.NamespaceSpec("typed", kavern.KvLayout(4, [kavern.LayerGroup(1, kv_heads=2, head_dim=256)], dtype="int8"))


def store_and_fetch(ns: kavern.Namespace, keys: list[bytes]) -> int:
    part_bytes = ns.spec.layout.part_bytes()
    plan: kavern.TurnPlan = ns.plan(keys, token_count=4 * len(keys))
    outcomes: list[kavern.StoreOutcome] = ns.store(keys[:1], [bytes(part_bytes)]).outcomes
    with ns.begin_store(keys[1:], parent=keys[0]) as granted:
        for i in range(len(granted)):
            granted.fill(i, [bytes(part_bytes)])
        granted.commit()
    ns.prefetch(keys, on_progress=lambda progress: progress.failed == 0)
    with ns.fetch(keys) as lease:
        unreadable: list[kavern.KavernError] = [e for e in map(lease.status, range(len(lease))) if e is not None]
    errors: list[kavern.KavernError | None] = ns.fetch_into(keys, [bytearray(part_bytes) for _ in keys]).errors
    return plan.fetch_blocks + len(outcomes) + len(unreadable) + errors.count(None)


def load(ns: kavern.Namespace, keys: list[bytes]) -> list[list[kavern.KavernError | None]]:
    part_bytes = ns.spec.layout.part_bytes()
    memory = ctypes.create_string_buffer(part_bytes * len(keys))
    layout = kavern.TensorLayout([(ctypes.addressof(memory), part_bytes, part_bytes)], len(keys))
    paged = kavern.PagedKv(ns, [layout], tensors=memory)
    paged.begin_load([(keys, list(range(len(keys))))])
    results: list[kavern.PagedResult] = paged.take_results(patience=10.0)
    paged.close()
    return results[0].errors


def main(address: str) -> tuple[int, list[list[kavern.KavernError | None]]]:
    with kavern.Client(address) as client:
        client.wait_until_attached()
        ns = client.open_namespace(SPEC)
        chain = ns.chain()
        chain.append(range(1, 13))
        return store_and_fetch(ns, chain.keys) + ns.match(chain.keys), load(ns, chain.keys)
