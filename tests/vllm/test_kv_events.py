"""What whoever routes by KV events hears of a real engine with Kavern."""

import random

import msgspec
import tiny_models
import zmq
from engine import transfer_config
from vllm.distributed.kv_events import BlockStored, KVEventBatch


def test_a_router_hears_of_every_block_that_kavern_keeps(tmp_path, daemon, tiny_engines):
    model = tiny_models.write("gqa", tmp_path / "model")
    prompt = [random.Random(1).randrange(3, 500) for _ in range(900)]
    endpoint = f"ipc://{tmp_path}/events"
    with zmq.Context() as context, context.socket(zmq.SUB) as router:
        router.subscribe(b"")
        router.connect(endpoint)
        # The last step of all finds what the first had stored.
        steps = [{"prompt": prompt}, {"prompt": prompt[:200]}]
        tiny_engines.run(model, steps, transfer_config(daemon.address), kv_events=endpoint)
        events = []
        while router.poll(timeout=1000):
            payload = router.recv_multipart()[-1]
            events += msgspec.msgpack.decode(payload, type=KVEventBatch).events
    stored = {medium: [] for medium in ("GPU", "CPU")}
    for event in events:
        if isinstance(event, BlockStored):
            parents = [event.parent_block_hash, *event.block_hashes]
            stored[event.medium] += zip(parents, event.block_hashes)
            assert len(event.token_ids) == len(event.block_hashes) * event.block_size
    # The engine tells of its own blocks by itself: ours are the same, each once.
    assert len(stored["CPU"]) == len(prompt) // 128
    assert len(set(stored["CPU"])) == len(stored["CPU"])
    assert set(stored["CPU"]) <= set(stored["GPU"])
