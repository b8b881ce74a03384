"""KV caches on a device: pages go through memory of this machine that has their shape.

What PagedKv copies is the machine's own memory, in threads that know no device. A page that is saved is brought there
first, a page that was loaded is taken from there; both on the engine's own stream, so that they come after what was
launched before, and before what is launched later.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

from kavern.paged import page_geometry


class Bounce:
    """One rank's tensors by KV cache group, of any device. For the engine's thread."""

    def __init__(self, tensors: Sequence[Sequence], pages: int):
        """Raises InvalidArgumentError for tensors whose pages are no stretches of memory."""
        self._there = [[_pages_as_bytes(f"tensors[{i}]", t, pages) for i, t in enumerate(group)] for group in tensors]
        self._here = [[_Memory(*flat.shape) for flat in group] for group in self._there]
        self.tensors = [[memory.tensor for memory in group] for group in self._here]

    def bring(self, group: int, pages: Sequence[int]) -> None:
        """From the device. Returns when the bytes are here: the engine may overwrite the pages then."""
        self._copy(pages, self._there[group], self.tensors[group])

    def take(self, group: int, pages: Sequence[int]) -> None:
        """To the device."""
        self._copy(pages, self.tensors[group], self._there[group])

    def drop(self, group: int, pages: Sequence[int]) -> None:
        """Gives back the memory that pages have here."""
        for memory in self._here[group]:
            memory.drop(pages)

    @staticmethod
    def _copy(pages: Sequence[int], sources: Sequence, targets: Sequence) -> None:
        import torch

        if not pages:
            return
        index = torch.tensor(pages, dtype=torch.long)
        for source, target in zip(sources, targets):
            rows = source.index_select(0, index.to(source.device))
            target.index_copy_(0, index.to(target.device), rows.to(target.device))


class _Memory:
    """One layer's pages here: as large as on the device, but only what is in use takes memory."""

    def __init__(self, pages: int, length: int):
        import torch

        self._length = length
        self._map = mmap.mmap(-1, pages * length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.tensor = torch.frombuffer(self._map, dtype=torch.uint8).view(pages, length)

    def drop(self, pages: Sequence[int]) -> None:
        for page in pages:
            begin = -(-page * self._length // mmap.PAGESIZE) * mmap.PAGESIZE
            end = (page + 1) * self._length // mmap.PAGESIZE * mmap.PAGESIZE
            if begin < end:
                self._map.madvise(mmap.MADV_DONTNEED, begin, end - begin)


def _pages_as_bytes(where: str, tensor, pages: int):
    """Shape (pages, bytes of a page), of the tensor's own memory."""
    import torch

    stride, length = page_geometry(where, tensor, pages)
    size = tensor.element_size()
    flat = torch.as_strided(tensor, (pages, length // size), (stride // size, 1), tensor.storage_offset())
    return flat.view(torch.uint8)
