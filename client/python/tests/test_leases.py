"""Leases: arrays of the daemon's memory without a copy, and never longer than the lease."""

import gc
import json
import os
import signal

import kavern
import numpy as np
import pytest
from conftest import PART_BYTES, keys_of, payload
from test_client import store


def leases(daemon) -> int:
    return json.loads(daemon.kavern("--json", "status"))["leases"]


def test_a_store_by_lease_is_seen_when_it_is_committed(ns):
    keys = keys_of(ns, 1, 2)
    with ns.begin_store(keys) as lease:
        assert lease.outcomes == [kavern.StoreOutcome.STORED] * 2
        for i, key in enumerate(keys):
            lease.fill(i, payload(key))
        assert ns.match(keys) == 0
        lease.commit()
        assert (lease.durable_blocks, lease.not_durable_reason) == (0, "")  # nobody asked for it
    assert ns.match(keys) == 2


def test_what_is_not_committed_is_given_back(daemon, ns):
    keys = keys_of(ns, 1, 2)
    with ns.begin_store(keys) as lease:
        lease.fill(0, payload(keys[0]))
    with pytest.raises(kavern.FailedPreconditionError):
        lease.commit()
    assert ns.match(keys) == 0
    assert leases(daemon) == 0


def test_views_are_the_daemons_memory(ns):
    keys = keys_of(ns, 1, 2)
    store(ns, keys)
    with ns.fetch(keys) as lease:
        view = np.asarray(lease[1])
        assert view.tobytes() == payload(keys[1])
        assert not view.flags.writeable
        with pytest.raises((ValueError, RuntimeError)):
            view[0] = 1
        again = np.asarray(lease[1])
        assert again.ctypes.data == view.ctypes.data
        del view, again


def test_dlpack_consumers_hold_the_lease_too(ns):
    keys = keys_of(ns, 1, 2)
    store(ns, keys[:1])
    read, write = ns.fetch(keys[:1]), ns.begin_store(keys[1:], parent=keys[0])
    source, target = np.from_dlpack(read[0]), np.from_dlpack(write[0])
    assert source.tobytes() == payload(keys[0])
    assert (source.flags.writeable, target.flags.writeable) == (False, True)
    for end in (read.release, write.commit, write.abort):
        with pytest.raises(BufferError):
            end()
    del source, target
    read.release()
    write.abort()


def test_a_lease_with_views_cannot_be_released(ns):
    keys = keys_of(ns, 1, 1)
    store(ns, keys)
    lease = ns.fetch(keys)
    view = memoryview(lease[0])
    with pytest.raises(BufferError):
        lease.release()
    assert view[:16] == keys[0]
    view.release()
    del view
    gc.collect()
    lease.release()
    with pytest.raises(kavern.FailedPreconditionError):
        lease[0]
    with pytest.raises(kavern.FailedPreconditionError):
        lease.release()
    with pytest.raises(kavern.FailedPreconditionError):
        lease.copy_to(0, bytearray(PART_BYTES))


@pytest.mark.parametrize("end", ["release", "with"])
def test_a_lease_that_is_over_says_so_and_nothing_else(ns, end):
    keys = keys_of(ns, 1, 2)
    store(ns, keys[:1])
    lease = ns.fetch(keys)
    if end == "with":
        with lease:
            pass
    else:
        lease.release()
    told = [lease.status, lease.checksum, lease.tier, lease.__getitem__, lambda i: lease.copy_to(i, bytearray(PART_BYTES))]
    for call in told:
        for i in range(2):
            with pytest.raises(kavern.FailedPreconditionError, match="the lease was released"):
                call(i)


def test_a_view_keeps_a_dropped_lease(daemon, ns):
    keys = keys_of(ns, 1, 1)
    store(ns, keys)
    view = np.asarray(ns.fetch(keys)[0])
    gc.collect()
    assert leases(daemon) == 1
    assert view.tobytes() == payload(keys[0])


def test_an_exception_in_the_body_is_not_hidden_by_views(ns):
    keys = keys_of(ns, 1, 1)
    store(ns, keys)
    with pytest.raises(ZeroDivisionError):
        with ns.fetch(keys) as lease:
            view = np.asarray(lease[0])
            view.size // 0


def test_rubbish_in_shared_memory_is_told_and_not_served(ns):
    keys = keys_of(ns, 1, 2)
    lease = ns.begin_store(keys)
    for i, key in enumerate(keys):
        lease.fill(i, payload(key))
    view = np.asarray(lease[1])
    view[7] ^= 1
    del view
    gc.collect()
    lease.commit()
    with ns.fetch(keys) as read:
        read.copy_to(0, bytearray(PART_BYTES))
        with pytest.raises(kavern.DataLossError):
            read.copy_to(1, bytearray(PART_BYTES))


def test_a_view_that_is_refused_does_not_hold_the_lease(daemon, ns):
    """copy_to finds rubbish: the part's status is then not OK, and lease[0] raises."""
    keys = keys_of(ns, 1, 1)
    with ns.begin_store(keys) as write:
        write.fill(0, payload(keys[0]))
        write.set_checksum(0, 12345)
        write.commit()
    lease = ns.fetch(keys)
    view = np.asarray(lease[0])
    with pytest.raises(kavern.DataLossError):
        lease.copy_to(0, bytearray(PART_BYTES))
    for _ in range(2):
        with pytest.raises(kavern.DataLossError):
            lease[0]
    with pytest.raises(BufferError):
        lease.release()
    del view
    lease.release()
    assert leases(daemon) == 0


def test_what_a_lease_could_not_get_is_told_key_by_key(ns):
    keys = keys_of(ns, 1, 2)
    store(ns, keys[:1])
    with ns.fetch(keys) as lease:
        assert len(lease) == 2
        assert lease.status(0) is None
        assert lease.tier(0) == "ram"
        assert isinstance(lease.status(1), kavern.NotFoundError)
        assert lease.tier(1) == "none"
        with pytest.raises(kavern.NotFoundError):
            lease[1]
        with pytest.raises(IndexError):
            lease[2]


def test_a_forked_child_is_refused_and_leaves_the_parents_lease_alone(daemon, client, ns):
    keys = keys_of(ns, 1, 1)
    store(ns, keys)
    lease = ns.fetch(keys)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        told = 0
        of_its_own = lambda: kavern.Client(daemon.address)  # noqa: E731
        for call in (client.ping, lambda: store(ns, keys), lease.release, lambda: lease[0], of_its_own):
            try:
                call()
            except kavern.FailedPreconditionError:
                told += 1
        os._exit(0 if told == 5 else 1)
    assert os.waitpid(child, 0)[1] == 0
    target = bytearray(PART_BYTES)
    lease.copy_to(0, target)
    assert target == payload(keys[0])
