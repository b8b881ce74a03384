"""The client from Python: what is stored comes back, and every status is an exception of its own."""

import gc
import threading

import kavern
import numpy as np
import pytest
from conftest import PART_BYTES, keys_of, payload, spec_of
from daemon import Daemon


def store(ns, keys, **options):
    return ns.store(keys, [payload(key) for key in keys], **options)


def test_what_was_stored_comes_back(ns):
    keys = keys_of(ns, 1, 5)
    assert ns.match(keys) == 0
    stored = store(ns, keys)
    assert stored.outcomes == [kavern.StoreOutcome.STORED] * 5
    assert stored.stored_bytes == 5 * PART_BYTES
    assert ns.match(keys) == 5
    blocks = np.zeros((5, PART_BYTES), np.uint8)
    fetched = ns.fetch_into(keys, list(blocks))
    assert fetched.all_ok and fetched.fetched_blocks == 5 and fetched.errors == [None] * 5
    assert [block.tobytes() for block in blocks] == [payload(key) for key in keys]
    assert store(ns, keys).outcomes == [kavern.StoreOutcome.EXISTS] * 5


def test_a_chain_is_continued_under_its_parent(ns):
    keys = keys_of(ns, 1, 4)
    store(ns, keys[:2])
    store(ns, keys[2:], parent=keys[1])
    assert ns.match(keys) == 4


def test_pieces_of_a_key_lie_end_to_end(ns):
    keys = keys_of(ns, 1, 2)
    halves = [[payload(key)[:1024], bytearray(payload(key)[1024:])] for key in keys]
    ns.store(keys, halves)
    targets = [(np.zeros(96, np.uint8), np.zeros((1000, 4), np.uint8)) for _ in keys]
    assert ns.fetch_into(keys, targets).all_ok
    for key, (head, tail) in zip(keys, targets):
        assert head.tobytes() + tail.tobytes() == payload(key)


def test_a_miss_is_told_key_by_key(ns):
    keys = keys_of(ns, 1, 3)
    store(ns, keys[:2])
    fetched = ns.fetch_into(keys, [bytearray(PART_BYTES) for _ in keys])
    assert not fetched.all_ok
    assert fetched.errors[:2] == [None, None]
    assert isinstance(fetched.errors[2], kavern.NotFoundError)
    assert "not there" in str(fetched.errors[2])


def test_namespaces_do_not_share_blocks(client, ns):
    keys = keys_of(ns, 1, 2)
    store(ns, keys)
    other = client.open_namespace(spec_of(weights_revision="other"))
    assert other.fingerprint != ns.fingerprint
    assert other.match(keys) == 0


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda ns: ns.match([b"short"]), ValueError, "keys[0]: got 5 bytes, expected 16"),
        (lambda ns: ns.store([bytes(16)], []), ValueError, "buffers: got 0 entries, expected 1"),
        (lambda ns: ns.store([b"k" * 16], [b"x"]), kavern.InvalidArgumentError, "4096"),
        (lambda ns: ns.fetch_into([b"k" * 16], [bytes(4096)]), TypeError, "buffers[0]: expected writable"),
        (lambda ns: ns.store([b"k" * 16], [object()]), TypeError, "buffers[0]: expected contiguous"),
        (lambda ns: ns.store([b"k" * 16], [np.zeros((4096, 2), np.uint8)[:, 0]]), TypeError, "contiguous"),
        (lambda ns: ns.store([b"k" * 16], [bytes(4096)], deadline=0), ValueError, "deadline: got 0"),
        (lambda ns: ns.store([b"k" * 16], [bytes(4096)], shard=7), kavern.InvalidArgumentError, "shard"),
        (lambda ns: kavern.KvLayout(0, []), kavern.InvalidArgumentError, "tokens_per_block"),
        (lambda ns: kavern.KvLayout.of_model("nope", 16), kavern.NotFoundError, "llama-3-8b"),
        (lambda ns: kavern.NamespaceSpec("", ns.spec.layout), kavern.InvalidArgumentError, "model"),
        (lambda ns: kavern.Client("ftp://x"), kavern.InvalidArgumentError, "address"),
    ],
)
def test_wrong_arguments_are_named(ns, call, error, words):
    with pytest.raises(error) as raised:
        call(ns)
    assert words in str(raised.value)


def test_calls_end_at_once_without_a_daemon(tmp_path):
    client = kavern.Client(f"unix://{tmp_path}/nobody.sock")
    with pytest.raises(kavern.UnavailableError):
        client.ping()
    with pytest.raises(kavern.UnavailableError, match="never attached to unix://.*/nobody.sock .*wait_until_attached"):
        client.open_namespace(spec_of())
    with pytest.raises(kavern.DeadlineExceededError):
        client.wait_until_attached(0.05)
    assert not client.connection.attached
    client.close()
    with pytest.raises(kavern.FailedPreconditionError):
        client.ping()


def test_a_killed_daemon_costs_misses_and_its_successor_is_found(daemon, client, ns):
    keys = keys_of(ns, 1, 3)
    store(ns, keys)
    before = client.connection
    daemon.kill()
    daemon.start()
    client.wait_until_attached(10)
    while client.connection.attach_count == before.attach_count:
        client.wait_until_attached(10)
    assert client.connection.incarnation != before.incarnation
    deadline = threading.Event()
    for _ in range(1000):
        try:
            store(ns, keys)
            break
        except kavern.UnavailableError:
            deadline.wait(0.01)
    blocks = [bytearray(PART_BYTES) for _ in keys]
    assert ns.fetch_into(keys, blocks).all_ok
    assert blocks == [payload(key) for key in keys]


def test_threads_share_a_namespace(ns):
    def work(first):
        keys = keys_of(ns, first, 8)
        store(ns, keys)
        blocks = [bytearray(PART_BYTES) for _ in keys]
        assert ns.fetch_into(keys, blocks).all_ok
        results.append(blocks == [payload(key) for key in keys])

    results = []
    threads = [threading.Thread(target=work, args=(1000 * i,)) for i in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 8


def test_a_namespace_outlives_its_client_handle(daemon):
    client = kavern.Client(daemon.address)
    client.wait_until_attached()
    ns = client.open_namespace(spec_of())
    client.close()
    del client
    gc.collect()
    keys = keys_of(ns, 1, 1)
    store(ns, keys)
    assert ns.match(keys) == 1


def test_a_prefetch_tells_how_far_it_is_and_can_be_called_off(ns):
    keys = keys_of(ns, 1, 3)
    store(ns, keys[:2])
    told = []
    done = ns.prefetch(keys, on_progress=lambda progress: told.append(progress.ready))
    assert (done.ready, done.failed, done.total) == (2, 1, 3)
    assert told == sorted(told) and told[-1] == 2
    with pytest.raises(kavern.CancelledError):
        ns.prefetch(keys, on_progress=lambda progress: False)
    with pytest.raises(ZeroDivisionError):
        ns.prefetch(keys, on_progress=lambda progress: 1 // 0)
    assert ns.prefetch(keys[:2]).ready == 2


def test_over_tcp_a_match_is_as_long_as_what_is_there(tmp_path):
    daemon = Daemon(tmp_path, "64MiB", tcp=True, more="limits: {keys_per_request_max: 16}\n")
    daemon.start()
    try:
        with kavern.Client(daemon.tcp_address()) as client:
            client.wait_until_attached(20)
            ns = client.open_namespace(spec_of())
            keys = keys_of(ns, 1, 41)
            ns.store(keys[:40], [payload(key) for key in keys[:40]])
            for count in (15, 16, 17, 32, 40, 41):
                assert ns.match(keys[:count]) == min(count, 40)
                assert ns.match_tiers(keys[:count]) == ["ram"] * min(count, 40)
    finally:
        daemon.stop()
