"""Paged KV tensors of inference engines, described for kavern.PagedKv."""

from __future__ import annotations

from collections.abc import Sequence

from kavern._kavern import TensorLayout
from kavern.errors import InvalidArgumentError


def tensor_layout(tensors: Sequence, block_count: int, *, blocks_per_part: int = 1) -> TensorLayout:
    """The layout of one layer group's tensors.

    tensors: per layer a torch tensor of this machine's memory, shape (block_count * n, ...): the pages of a layer, each
    made of n kernel blocks. A page must be one stretch of memory; distances between pages are free.

    Raises InvalidArgumentError for other tensors.
    """
    if block_count < 1:
        raise InvalidArgumentError(f"block_count: got {block_count}, expected at least 1")
    return TensorLayout([_pages(i, tensor, block_count) for i, tensor in enumerate(tensors)], block_count, blocks_per_part)


def _pages(index: int, tensor, block_count: int) -> tuple[int, int, int]:
    """Address, stride and length of a layer's pages, in bytes."""
    where = f"tensors[{index}]"
    if not hasattr(tensor, "data_ptr"):
        raise InvalidArgumentError(f"{where}: got a {type(tensor).__name__}, expected a torch tensor")
    if tensor.device.type != "cpu":
        raise InvalidArgumentError(f"{where}: on {tensor.device}, expected memory of this machine")
    return tensor.data_ptr(), *page_geometry(where, tensor, block_count)


def page_geometry(where: str, tensor, block_count: int) -> tuple[int, int]:
    """Distance and length of a tensor's pages, in bytes; of any device. Raises InvalidArgumentError, which says `where`."""
    if tensor.dim() < 1 or tensor.shape[0] == 0 or tensor.shape[0] % block_count != 0:
        raise InvalidArgumentError(f"{where}: shape {tuple(tensor.shape)}, expected {block_count} pages in front")
    if tensor.shape[0] != block_count:
        tensor = tensor.unflatten(0, (block_count, -1))
    # Dense: in the order of their strides, every dimension begins where the one inside it ends.
    expected = 1
    for stride, size in sorted((tensor.stride(i), tensor.shape[i]) for i in range(1, tensor.dim()) if tensor.shape[i] != 1):
        if stride != expected:
            raise InvalidArgumentError(f"{where}: strides {tensor.stride()} leave gaps inside a page")
        expected *= size
    itemsize = tensor.element_size()
    return (tensor.stride(0) if block_count > 1 else expected) * itemsize, expected * itemsize
