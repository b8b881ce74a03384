"""What whoever routes by KV events hears of a request's blocks: each once, with its parent, and of its end."""

import kavern
import pytest
from kavern.vllm.events import KvEvents
from played_scheduler import BLOCK, Request, Scheduler, store
from vllm.distributed.kv_events import BlockRemoved, BlockStored
from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash


@pytest.fixture(scope="module")
def daemon(many_small):
    return many_small


def tell(scheduler: Scheduler) -> None:
    scheduler.side._events = KvEvents(BLOCK, hash_tokens=BLOCK // 2)


def hashes_of(name: str, blocks: int) -> list[bytes]:
    """As the engine has them: two for each block."""
    return [f"{name}{i}".encode() for i in range(2 * blocks)]


def test_kv_events_tell_of_each_block_once_with_its_parent_and_of_its_end(daemon):
    scheduler = Scheduler(daemon, "events")
    tell(scheduler)
    tokens = range(800, 817)
    store(scheduler, daemon, tokens, 4)
    request = Request("a", tokens, block_hashes=hashes_of("a", 4))
    scheduler.admit(request)
    (stored,) = scheduler.side.take_events()
    assert isinstance(stored, BlockStored)
    assert stored.block_hashes == [maybe_convert_block_hash(request.block_hashes[i]) for i in (1, 3, 5, 7)]
    assert stored.parent_block_hash is None
    assert (stored.token_ids, stored.block_size, stored.medium) == (list(tokens)[:16], BLOCK, "CPU")
    # Another conversation with the same beginning: what it adds is news, once it is there.
    longer = list(tokens)[:16] + list(range(900, 909))
    other = Request("b", longer, block_hashes=request.block_hashes + hashes_of("b", 2), cache_salt=None)
    other.num_computed_tokens = scheduler.admit(other)
    assert [len(save.keys) for save in scheduler.step((other, 9)).saves] == [2]
    assert scheduler.side.take_events() == []
    store(scheduler, daemon, longer, 6)
    (more,) = scheduler.side.take_events()
    assert more.block_hashes == [maybe_convert_block_hash(other.block_hashes[i]) for i in (9, 11)]
    assert more.parent_block_hash == stored.block_hashes[-1]
    assert scheduler.side.take_events() == []
    # Gone from the daemon.
    fingerprint = scheduler.side._link.namespace().fingerprint
    daemon.kavern("namespaces", "--purge", fingerprint if isinstance(fingerprint, str) else fingerprint.hex())
    removed = scheduler.side.take_events()
    assert [type(event) for event in removed] == [BlockRemoved]
    assert sorted(removed[0].block_hashes) == sorted(stored.block_hashes + more.block_hashes)
    assert scheduler.side.take_events() == []
    scheduler.side.close()


def test_kv_events_of_a_namespace_that_was_left_are_taken_back(daemon):
    scheduler = Scheduler(daemon, "events of a reset")
    tell(scheduler)
    tokens = range(1000, 1017)
    store(scheduler, daemon, tokens, 4)
    scheduler.admit(Request("a", tokens, block_hashes=hashes_of("a", 4)))
    (stored,) = scheduler.side.take_events()
    scheduler.side.reset()
    (removed,) = scheduler.side.take_events()
    assert isinstance(removed, BlockRemoved)
    assert removed.block_hashes == stored.block_hashes
    scheduler.side.close()


def test_kv_events_wait_for_hashes_that_the_engine_has_not_computed(daemon):
    scheduler = Scheduler(daemon, "events of late hashes")
    tell(scheduler)
    tokens = range(1200, 1217)
    store(scheduler, daemon, tokens, 4)
    request = Request("a", tokens, block_hashes=hashes_of("a", 4)[:5])  # of two blocks and a half
    scheduler.admit(request)
    (first,) = scheduler.side.take_events()
    assert len(first.block_hashes) == 2
    assert scheduler.side.take_events() == []
    request.block_hashes = hashes_of("a", 4)
    (second,) = scheduler.side.take_events()
    assert second.parent_block_hash == first.block_hashes[-1]
    assert len(second.block_hashes) == 2
    scheduler.side.close()
