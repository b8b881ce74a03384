"""Workers of several processes: each makes its own client, and none touches what is another's."""

import gc
import multiprocessing
import pickle

import kavern
import pytest
from conftest import PART_BYTES, keys_of, payload, spec_of

PATIENCE = 60.0


def in_child(method: str, target, *arguments):
    """What `target` returned in a child process that ended as it should. A child that hangs fails the test."""
    context = multiprocessing.get_context(method)
    answers, ours = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(ours, target, arguments))
    child.start()
    ours.close()
    try:
        assert answers.poll(PATIENCE), "the child does not answer"
        answer = answers.recv()
    finally:
        child.join(PATIENCE)
        child.kill()
    child.join()
    assert child.exitcode == 0
    return answer


def _answer(pipe, target, arguments) -> None:
    pipe.send(target(*arguments))


def fetch_with_a_client_of_its_own(address: str, spec: kavern.NamespaceSpec, keys: list) -> list:
    with kavern.Client(address) as client:
        client.wait_until_attached(20)
        ns = client.open_namespace(spec)
        assert ns.match(keys) == len(keys)
        blocks = [bytearray(PART_BYTES) for _ in keys]
        assert ns.fetch_into(keys, blocks).all_ok
        more = keys_of(ns, 1000, 1)
        ns.store(more, [payload(key) for key in more])
        return [bytes(block) for block in blocks]


def client_refused(address: str) -> str:
    with pytest.raises(kavern.FailedPreconditionError) as refused:
        kavern.Client(address)
    return str(refused.value)


# gRPC's threads do not come along: a call could hang for ever.
def test_a_child_forked_beside_a_client_is_refused_one(daemon, client):
    assert "spawn it, or fork it before the first client" in in_child("fork", client_refused, daemon.address)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_worker_of_multiprocessing_makes_its_own_client(method, daemon, client, ns):
    keys = keys_of(ns, 1, 3)
    ns.store(keys, [payload(key) for key in keys])
    got = in_child(method, fetch_with_a_client_of_its_own, daemon.address, ns.spec, keys)
    assert got == [payload(key) for key in keys]
    assert ns.match(keys_of(ns, 1000, 1)) == 1
    client.ping()


def use_what_is_the_parents(client, ns, read, write, keys, drop) -> list:
    """Names of the errors that every call raised; then lets go of all of it."""
    calls = [
        client.ping,
        client.wait_until_attached,
        lambda: client.open_namespace(spec_of()),
        lambda: ns.store(keys, [payload(key) for key in keys]),
        lambda: ns.fetch_into(keys, [bytearray(PART_BYTES) for _ in keys]),
        lambda: ns.begin_store(keys),
        lambda: ns.fetch(keys),
        lambda: ns.prefetch(keys),
        lambda: ns.update_conversation("chat", keys[0], 4),
        lambda: ns.describe_conversation("chat"),
        lambda: read[0],
        lambda: read.copy_to(0, bytearray(PART_BYTES)),
        read.release,
        lambda: write[0],
        lambda: write.fill(0, bytes(PART_BYTES)),
        lambda: write.set_checksum(0, 1),
        write.commit,
    ]
    told = []
    for call in calls:
        try:
            told.append(f"{call()}")
        except kavern.KavernError as error:
            told.append(type(error).__name__)
    assert ns.match(keys) == 0 and not client.connection.attached
    write.abort()
    client.close()
    drop()
    del calls, client, ns, read, write
    gc.collect()
    return told


def test_a_forked_child_can_neither_use_nor_end_what_is_its_parents(daemon, client, ns):
    keys = keys_of(ns, 1, 2)
    ns.store(keys[:1], [payload(keys[0])])
    held = {"read": ns.fetch(keys[:1]), "write": ns.begin_store(keys[1:], parent=keys[0])}
    before = daemon.status()
    told = in_child("fork", use_what_is_the_parents, client, ns, *held.values(), keys, held.clear)
    assert told == ["FailedPreconditionError"] * 17
    after = daemon.status()
    for what in ("leases", "sessions"):
        assert after[what] == before[what]
    target = bytearray(PART_BYTES)
    held["read"].copy_to(0, target)
    assert target == payload(keys[0])
    held["read"].release()
    held["write"].fill(0, payload(keys[1]))
    held["write"].commit()
    assert ns.match(keys) == 2
    assert daemon.status()["leases"] == 0


def test_what_says_who_shares_can_be_sent_to_another_process(ns):
    spec = spec_of(weights_revision="w", adapter="a", quantization="q", rope="r", engine_layout="e", epoch=7)
    groups = [
        kavern.LayerGroup(2, kind=kavern.LayerGroupKind.SLIDING_WINDOW, kv_heads=1, head_dim=8, window_tokens=16),
        kavern.LayerGroup(1, kind=kavern.LayerGroupKind.LATENT, latent_dim=24),
        kavern.LayerGroup(1, kind=kavern.LayerGroupKind.RECURRENT_STATE, state_bytes=100),
    ]
    layout = kavern.KvLayout(8, groups, dtype="float16", shard_count=2)
    for value in (spec, layout, *groups):
        assert pickle.loads(pickle.dumps(value)) == value
    error = pickle.loads(pickle.dumps(kavern.NotFoundError("a miss")))
    assert isinstance(error, kavern.NotFoundError) and str(error) == "a miss"


def test_what_is_a_process_s_own_cannot(client, ns):
    keys = keys_of(ns, 1, 1)
    for value in (client, ns, ns.begin_store(keys)):
        with pytest.raises(TypeError):
            pickle.dumps(value)
