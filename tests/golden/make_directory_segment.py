#!/usr/bin/env python3
"""Writes directory_segment.bin and .json: a directory segment that every implementation must agree with.

Written from the section "Directory segment" of docs/PROTOCOL.md alone; shares no code with the C++
library: where the two agree, both follow the page. The JSON lists the changes that made the image, in
order, and what a reader finds in it.

Usage: make_directory_segment.py           rewrites both files beside this script
       make_directory_segment.py --check   exit 1 when a committed file differs
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import struct
import sys

BUCKETS = 16
PROBES = 8
SLOTS = 3
BUCKETS_OFFSET = 4096
HBM, RAM, NVME = 1, 2, 4


@dataclasses.dataclass
class Bucket:
    sequence: int = 0
    tiers: list[int] = dataclasses.field(default_factory=lambda: [0] * SLOTS)
    passed: int = 0
    keys: list[bytes] = dataclasses.field(default_factory=lambda: [bytes(16)] * SLOTS)

    def change(self) -> None:
        self.sequence = (self.sequence + 2) % 2**32

    def packed(self) -> bytes:
        return struct.pack("<I3BxQ", self.sequence, *self.tiers, self.passed) + b"".join(self.keys)


class Segment:
    def __init__(self, fingerprint: bytes, generation: int) -> None:
        self.fingerprint = fingerprint
        self.generation = generation
        self.retired = 0
        self.buckets = [Bucket() for _ in range(BUCKETS)]

    def probes(self, key: bytes) -> list[Bucket]:
        home = int.from_bytes(key[:8], "little") % BUCKETS
        return [self.buckets[(home + probe) % BUCKETS] for probe in range(PROBES)]

    def find(self, key: bytes) -> tuple[int, int] | None:
        for probe, bucket in enumerate(self.probes(key)):
            for slot in range(SLOTS):
                if bucket.tiers[slot] != 0 and bucket.keys[slot] == key:
                    return probe, slot
            if bucket.passed == 0:
                return None
        return None

    def tiers_of(self, key: bytes) -> int:
        place = self.find(key)
        return 0 if place is None else self.probes(key)[place[0]].tiers[place[1]]

    def set(self, key: bytes, tiers: int) -> None:
        probes = self.probes(key)
        place = self.find(key)
        if place is not None:
            bucket = probes[place[0]]
            bucket.tiers[place[1]] = tiers
            bucket.change()
            return
        for probe, bucket in enumerate(probes):
            if 0 not in bucket.tiers:
                continue
            slot = bucket.tiers.index(0)
            bucket.keys[slot] = key
            bucket.tiers[slot] = tiers
            bucket.change()
            self.pass_by(probes[:probe], 1)
            return

    def erase(self, key: bytes) -> None:
        place = self.find(key)
        if place is None:
            return
        probes = self.probes(key)
        probes[place[0]].tiers[place[1]] = 0
        probes[place[0]].change()
        self.pass_by(probes[:place[0]], -1)

    @staticmethod
    def pass_by(buckets: list[Bucket], difference: int) -> None:
        for bucket in buckets:
            bucket.passed += difference
            bucket.change()

    def packed(self) -> bytes:
        present = sum(tiers != 0 for bucket in self.buckets for tiers in bucket.tiers)
        header = b"\0KAVDIR1" + struct.pack("<II", 1, BUCKETS) + self.fingerprint + struct.pack(
            "<QIIQQ", self.generation, self.retired, 0, present, 0)
        assert len(header) == 64
        return header.ljust(BUCKETS_OFFSET, b"\0") + b"".join(b.packed() for b in self.buckets)


def key_at(home: int, number: int) -> bytes:
    """A key whose home is bucket `home`; high bits are set, so that reducing modulo B matters."""
    return struct.pack("<QQ", home + BUCKETS * (0x0102030405 + number), 0xf0e0d0c0b0a09080 + number)


def changes() -> list[tuple[str, bytes, int]]:
    made = [("set", key_at(3, i), RAM) for i in range(2)]  # a bucket with room
    made += [("set", key_at(15, i), RAM) for i in range(8)]  # overflows twice, around the end
    made += [("set", key_at(0, i), RAM | NVME) for i in range(3)]  # its home is full of others
    made += [
        ("set", key_at(3, 0), HBM | RAM),  # the slot stays, the tiers change
        ("erase", key_at(15, 1), 0),  # out of its home
        ("erase", key_at(15, 4), 0),  # out of a later bucket
        ("set", key_at(15, 20), NVME),  # takes the slot that is free again
        ("erase", key_at(9, 0), 0),  # was never there
        ("erase", key_at(0, 2), 0),
    ]
    return made


def build() -> tuple[bytes, dict]:
    fingerprint = bytes(range(0x10, 0x20))
    segment = Segment(fingerprint, generation=7)
    for action, key, tiers in changes():
        if action == "set":
            segment.set(key, tiers)
        else:
            segment.erase(key)
    segment.retired = 1
    asked = dict.fromkeys([key for _, key, _ in changes()] + [key_at(15, 99), key_at(6, 0)])
    return segment.packed(), {
        "fingerprint": fingerprint.hex(),
        "generation": segment.generation,
        "buckets": BUCKETS,
        "changes": [{"action": action, "key": key.hex(), "tiers": tiers}
                    for action, key, tiers in changes()],
        "retired_at_the_end": True,
        "lookups": [{"key": key.hex(), "tiers": segment.tiers_of(key)} for key in asked],
    }


def main() -> int:
    image, description = build()
    files = {"directory_segment.bin": image,
             "directory_segment.json": (json.dumps(description, indent=1) + "\n").encode()}
    folder = pathlib.Path(__file__).parent
    different = [name for name, content in files.items()
                 if not (folder / name).exists() or (folder / name).read_bytes() != content]
    if "--check" in sys.argv[1:]:
        for name in different:
            print(f"{name} differs from what docs/PROTOCOL.md says", file=sys.stderr)
        return 1 if different else 0
    for name in different:
        (folder / name).write_bytes(files[name])
    return 0


if __name__ == "__main__":
    sys.exit(main())
