"""Pages by way of host memory: whole, in their order, whatever the tensor's strides. Tensors of processors stand for a
device's: what only a GPU can show, its streams, is not shown here."""

import pytest
import torch
from kavern import InvalidArgumentError
from kavern.vllm.bounce import Bounce

PAGES = 6


def cache(layout: str) -> torch.Tensor:
    """Pages in front, then heads, tokens and channels: laid out as vLLM does, all layers in one storage or not."""
    numbers = torch.arange(3 * PAGES * 2 * 4 * 8, dtype=torch.float32).to(torch.bfloat16)
    if layout == "layers first":
        return numbers.view(3, PAGES, 2, 4, 8)[1]
    if layout == "pages first":
        return numbers.view(PAGES, 3, 2, 4, 8)[:, 1]
    if layout == "tokens before heads":
        return numbers.view(3, PAGES, 4, 2, 8)[1].transpose(1, 2)
    raise ValueError(layout)


@pytest.mark.parametrize("layout", ["layers first", "pages first", "tokens before heads"])
def test_pages_go_there_and_back(layout):
    tensor, other = cache(layout), cache("layers first")
    before = tensor.clone()
    bounce = Bounce([[tensor], [other]], PAGES)
    bounce.bring(0, [4, 1])
    for page in (4, 1):
        # A page is one stretch of memory: its bytes in the order in which they lie.
        in_memory = torch.as_strided(tensor, (64,), (1,), tensor[page].storage_offset())
        assert torch.equal(bounce.tensors[0][0][page].view(torch.bfloat16), in_memory)
    tensor.zero_()
    bounce.take(0, [4])
    assert torch.equal(tensor[4], before[4])
    assert not tensor[[0, 1, 2, 3, 5]].any()
    bounce.take(0, [])
    assert torch.equal(other, cache("layers first"))


def test_memory_of_pages_that_are_done_is_given_back():
    tensor = torch.ones(4, 3 * 4096, dtype=torch.uint8)
    bounce = Bounce([[tensor]], 4)
    bounce.bring(0, [0, 1, 2])
    bounce.drop(0, [1])
    here = bounce.tensors[0][0]
    assert here[[0, 2]].all()
    assert not here[[1, 3]].any()  # the kernel's zeros: no memory behind them
    # Where pages share a page of the machine's memory, what is a neighbour's stays.
    small = Bounce([[torch.ones(4, 6000, dtype=torch.uint8)]], 4)
    small.bring(0, [0, 1, 2])
    small.drop(0, [1])
    assert small.tensors[0][0][[0, 2]].all()


def test_pages_of_several_kernel_blocks_are_one():
    tensor = torch.arange(PAGES * 2 * 16, dtype=torch.int16).view(PAGES * 2, 16)
    bounce = Bounce([[tensor]], PAGES)
    bounce.bring(0, [2])
    assert torch.equal(bounce.tensors[0][0][2].view(torch.int16), tensor[4:6].reshape(-1))


def test_pages_that_are_no_stretch_of_memory_are_refused():
    heads_first = torch.zeros(2, PAGES, 4, 8).transpose(0, 1)
    with pytest.raises(InvalidArgumentError, match="leave gaps inside a page"):
        Bounce([[heads_first]], PAGES)
