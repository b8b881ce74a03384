"""Wrong arguments: refused by name, with what was given and what was expected."""

import ctypes
import re

import kavern
import numpy as np
import pytest
from conftest import PART_BYTES, keys_of, payload
from kavern.paged import tensor_layout

KEY, SHORT = b"k" * 16, b"k" * 15
MEMORY = ctypes.create_string_buffer(4 * PART_BYTES)
LAYOUT = kavern.TensorLayout([(ctypes.addressof(MEMORY), PART_BYTES, PART_BYTES)], 4)


class Tensor:
    """As much of a torch tensor as is asked for."""

    device = type("Device", (), {"type": "cpu"})
    shape = (4, 1)
    dim = data_ptr = None


def paged_kv(ns, **options):
    return kavern.PagedKv(ns, [LAYOUT], tensors=MEMORY, **options)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda ns: ns.match([KEY, SHORT]), "keys[1]: got 15 bytes, expected 16"),
        (lambda ns: ns.store([KEY], [bytes(PART_BYTES)], parent=SHORT), "parent: got 15 bytes, expected 16"),
        (lambda ns: ns.begin_store([KEY], parent=SHORT), "parent: got 15 bytes, expected 16"),
        (lambda ns: ns.update_conversation("chat", SHORT, 4), "leaf: got 15 bytes, expected 16"),
        (lambda ns: ns.update_conversation("chat", KEY, 4, ttl=-1), "ttl: got -1, expected None or seconds above 0"),
        (lambda ns: ns.store([KEY], []), "buffers: got 0 entries, expected 1, one for every key"),
        (lambda ns: ns.store([KEY] * 2, [b"x", [b"x", b"y"]]), "buffers[1]: got 2 pieces, expected 1"),
        (lambda ns: ns.fetch([KEY], deadline=0), "deadline: got 0, expected seconds above 0"),
        (lambda ns: ns.spec.layout.part_bytes(3), "group: got 3, expected less than 1"),
        (lambda ns: ns.report_prefill(0, 100, seconds=0), "1000 * seconds: got 0, expected 0.0001 to"),
        (lambda ns: kavern.BlockKeyChain(b"x", 4), "fingerprint: got 1 bytes, expected 16"),
        (lambda ns: kavern.BlockKeyChain(KEY, 0), "tokens_per_block: got 0, expected at least 1"),
        (lambda ns: ns.chain().append([-1]), "tokens[0]: got -1, expected 0 to 4294967295"),
        (lambda ns: ns.chain().append([1, 2**32]), "tokens[1]: got 4294967296, expected 0 to 4294967295"),
        (lambda ns: ns.chain().append([1, "a"]), "tokens[1]: got 'a', expected 0 to 4294967295"),
        (lambda ns: tensor_layout([np.zeros((4, 8))], 4), "tensors[0]: got a ndarray, expected a torch tensor"),
        (lambda ns: tensor_layout([Tensor()], 0), "block_count: got 0, expected at least 1"),
        (lambda ns: paged_kv(ns, copy_threads=0), "copy_threads: got 0, expected at least 1"),
        (lambda ns: paged_kv(ns, load_threads=-1), "load_threads: got -1, expected at least 1"),
        (lambda ns: paged_kv(ns, load_deadline=0), "load_deadline: got 0, expected seconds above 0"),
        (lambda ns: paged_kv(ns, store_deadline=-1), "store_deadline: got -1, expected seconds above 0"),
        (lambda ns: paged_kv(ns).begin_store([KEY], [[0]], parent=SHORT), "parent: got 15 bytes, expected 16"),
        (lambda ns: paged_kv(ns).gather(-1), "patience: got -1, expected seconds, 0 or more"),
        (lambda ns: paged_kv(ns).gather(float("nan")), "patience: got nan, expected seconds, 0 or more"),
        (lambda ns: paged_kv(ns).take_results(-1), "patience: got -1, expected seconds, 0 or more"),
        (lambda ns: paged_kv(ns).gather(1, ids=[777]), "ids[0]: got 777, expected the number of a store that was begun"),
        (lambda ns: paged_kv(ns).give_up(ids=[777]), "ids[0]: got 777, expected the number of a store that was begun"),
        (lambda ns: kavern.Client(f"unix:///{'x' * 120}"), "address: got a path of 121 bytes, expected at most 100"),
    ],
)
def test_what_is_wrong_is_named(ns, call, words):
    with pytest.raises(kavern.InvalidArgumentError, match=re.escape(words)):
        call(ns)


@pytest.mark.parametrize("tokens", [range(1, 5), (1, 2, 3, 4), np.arange(1, 5), np.arange(1, 5, dtype=np.uint32)])
def test_token_ids_come_in_any_sequence(ns, tokens):
    chain = ns.chain()
    chain.append(tokens)
    assert chain.keys == keys_of(ns, 1, 1)


def test_a_store_that_has_ended_may_be_named_again(ns):
    paged = paged_kv(ns)
    (key,) = keys_of(ns, 1, 1)
    ctypes.memmove(MEMORY, payload(key), PART_BYTES)
    number = paged.begin_store([key], [[0]])
    paged.gather(10.0, [number])
    paged.give_up([number])
    assert [(result.id, result.error) for result in paged.take_results(10.0)] == [(number, None)]
