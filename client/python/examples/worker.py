"""What an inference worker does with Kavern. Run it twice against one daemon: the second run computes nothing.

    python worker.py unix:///run/kavern/kavern.sock
"""

import itertools
import sys

import kavern
import numpy as np

# Everything that changes KV bytes goes into the spec: workers share blocks only if all of it is equal.
SPEC = kavern.NamespaceSpec(
    "llama-3-8b", kavern.KvLayout.of_model("llama-3-8b", tokens_per_block=16), weights_revision="main"
)


def prefill(key: bytes, kv: np.ndarray) -> None:
    """Stands for the model: the KV of a block follows from its key, which stands for all tokens up to its end."""
    kv[:] = np.resize(np.frombuffer(key, np.uint8), kv.shape)


def main(address: str) -> None:
    client = kavern.Client(address)
    try:
        client.wait_until_attached(deadline=2)
    except kavern.DeadlineExceededError:
        print("no daemon: computed everything")  # the worst that Kavern does to a worker
        return
    ns = client.open_namespace(SPEC)
    chain = ns.chain()
    chain.append(list(range(1000, 1256)))  # the prompt's token ids
    keys = chain.keys
    kv = np.empty((len(keys), SPEC.layout.part_bytes()), np.uint8)  # the worker's own KV memory

    cached = ns.match(keys)  # shared memory, no call
    errors = ns.fetch_into(keys[:cached], list(kv[:cached])).errors if cached else []
    cached = len(list(itertools.takewhile(lambda error: error is None, errors)))
    for i in range(cached, len(keys)):
        prefill(keys[i], kv[i])
    if cached < len(keys):
        ns.store(keys[cached:], list(kv[cached:]), parent=keys[cached - 1] if cached else None)
    print(f"{len(keys)} blocks: {cached} fetched, {len(keys) - cached} computed")

    # The next turn: what of it is worth fetching, as measured by then.
    plan = ns.plan(keys, token_count=256)  # no call
    to_fetch = keys[plan.first_block : plan.first_block + plan.fetch_blocks]
    ns.report_prefill(begin_token=0, end_token=256, seconds=0.04)
    print(f"next turn: {len(to_fetch)} to fetch")


main(*sys.argv[1:])
