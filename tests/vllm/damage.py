"""Damages what a daemon holds, as a co-tenant that scribbles over shared memory would."""

from __future__ import annotations

import os
import pathlib


def _regions(daemon_pid: int) -> list[pathlib.Path]:
    """The memory files of the RAM tier, in the order in which they are given out."""
    found = {}
    for fd in pathlib.Path(f"/proc/{daemon_pid}/fd").iterdir():
        try:
            name = os.readlink(fd)
            if "memfd:kavern-region-" in name:
                found[int(name.split("-")[-1].split()[0])] = fd
        except OSError:
            continue
    return [found[number] for number in sorted(found)]


def flip_signs(
    daemon_pid: int, slot_bytes: int, slot: int, first: int, length: int, item_bytes: int = 4, regions_max: int = 1 << 30
) -> int:
    """Flips the sign of every number in bytes [first, first + length) of one slot, in the first `regions_max` regions
    where that slot holds something. Returns the number of regions damaged."""
    damaged = 0
    for path in _regions(daemon_pid):
        fd = os.open(path, os.O_RDWR)
        try:
            offset = slot * slot_bytes + first
            piece = bytearray(os.pread(fd, length, offset))
            if any(piece) and damaged < regions_max:
                last = item_bytes - 1
                piece[last::item_bytes] = bytes(byte ^ 0x80 for byte in piece[last::item_bytes])
                os.pwrite(fd, piece, offset)
                damaged += 1
        finally:
            os.close(fd)
    return damaged
