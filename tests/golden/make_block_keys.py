#!/usr/bin/env python3
"""Writes block_keys.json: vectors that every implementation of docs/PROTOCOL.md must match.

Written from the text of that page alone, with hashlib; shares no code with the C++ library: where
the two agree, both follow the page. The token ids come from a formula that the file states too.

Usage: make_block_keys.py           rewrites block_keys.json beside this script
       make_block_keys.py --check   exit 1 when the committed file differs
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import struct
import sys

DTYPES = ["float32", "float16", "bfloat16", "float8_e4m3", "float8_e5m2", "int8"]
KINDS = ["full_attention", "sliding_window", "latent", "recurrent_state"]


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def truncate(message: bytes) -> bytes:
    digest = hashlib.sha256(message).digest()
    return digest[:16] if any(digest[:16]) else digest[16:]


def block_key(parent: bytes, tokens: list[int], extra_keys: list[bytes]) -> bytes:
    message = parent + u32(len(tokens)) + u32(len(extra_keys))
    message += b"".join(u32(token) for token in tokens)
    message += b"".join(u32(len(extra)) + extra for extra in extra_keys)
    return truncate(message)


@dataclasses.dataclass
class Group:
    kind: str
    layer_count: int
    kv_heads: int = 0
    head_dim: int = 0
    window_tokens: int = 0
    latent_dim: int = 0
    state_bytes: int = 0

    def record(self) -> bytes:
        shape = (self.layer_count, self.kv_heads, self.head_dim, self.window_tokens,
                 self.latent_dim)
        numbers = b"".join(u32(n) for n in shape) + u64(self.state_bytes)
        return bytes([KINDS.index(self.kind)]) + numbers


@dataclasses.dataclass
class Namespace:
    tenant: str
    model: str
    weights_revision: str = ""
    adapter: str = ""
    quantization: str = ""
    rope: str = ""
    engine_layout: str = ""
    epoch: int = 0
    dtype: str = "bfloat16"
    tokens_per_block: int = 16
    shard_count: int = 1
    groups: list[Group] = dataclasses.field(default_factory=list)

    def message(self) -> bytes:
        texts = (self.tenant, self.model, self.weights_revision, self.adapter, self.quantization,
                 self.rope, self.engine_layout)
        values = [text.encode() for text in texts]
        values += [u64(self.epoch), bytes([DTYPES.index(self.dtype)]), u32(self.tokens_per_block),
                   u32(self.shard_count)]
        fields = [(tag, value) for tag, value in enumerate(values, 1)]
        fields += [(12, group.record()) for group in self.groups]
        return b"kavern.namespace.v1\0" + b"".join(
            bytes([tag]) + u32(len(value)) + value for tag, value in fields)

    def fingerprint(self) -> bytes:
        return truncate(self.message())


LLAMA = Namespace(
    "default", "meta-llama/Meta-Llama-3-8B",
    weights_revision="8cde5ca8380496c9a6cc7ef3a8b46a0372a1d920", rope="theta=500000",
    engine_layout="vllm/flash/avx512",
    groups=[Group("full_attention", 32, kv_heads=8, head_dim=128)])
NAMESPACES = [
    # The worked example of docs/PROTOCOL.md.
    Namespace("default", "tiny", tokens_per_block=4,
              groups=[Group("full_attention", 1, kv_heads=1, head_dim=8)]),
    LLAMA,
    dataclasses.replace(LLAMA, tenant="tenant-b"),
    dataclasses.replace(
        LLAMA, adapter="sha256:5f70bf18", quantization="fp8", epoch=2**40 + 7, dtype="float8_e4m3",
        tokens_per_block=512, shard_count=8,
        groups=[Group("full_attention", 32, kv_heads=1, head_dim=128)]),
    Namespace("tenänt", "模型", dtype="float32", tokens_per_block=1, shard_count=2, groups=[
        Group("full_attention", 4, kv_heads=4, head_dim=256),
        Group("sliding_window", 20, kv_heads=4, head_dim=256, window_tokens=1024),
        Group("latent", 61, latent_dim=576),
        Group("recurrent_state", 1, state_bytes=2**31),
    ]),
]


def token_at(position: int, seed: int) -> int:
    return (position * 2654435761 + seed) % 2**32


@dataclasses.dataclass
class Case:
    name: str
    namespace: int
    tokens_per_block: int  # of the chain: a key depends on the tokens it gets, not on the layout
    token_count: int
    seed: int
    extra_keys: dict[int, list[bytes]] = dataclasses.field(default_factory=dict)


CASES = [
    Case("one token a block", 4, 1, 5, 0),
    Case("sixteen tokens a block", 0, 16, 64, 1),
    Case("sixteen tokens a block, the last block incomplete", 1, 16, 63, 1),
    Case("the same tokens of another tenant", 2, 16, 63, 1),
    Case("512 tokens a block", 3, 512, 2048, 7),
    Case("around the first 64 bytes of the message", 0, 10, 40, 3),
    Case("one token past the first 64 bytes of the message", 0, 11, 44, 3),
    Case("extra keys in the second block", 1, 16, 64, 1, {1: [b"image:0123456789abcdef"]}),
    Case("two extra keys that join to the same bytes", 1, 16, 64, 1,
         {1: [b"image:01234567", b"89abcdef"]}),
    Case("an empty extra key and one with every byte", 1, 16, 64, 1,
         {0: [b""], 2: [bytes(range(256))]}),
    Case("extra keys longer than a hash block", 3, 512, 1024, 7, {0: [b"x" * 1000, b"y" * 65]}),
]


def chain(case: Case) -> list[bytes]:
    parent = NAMESPACES[case.namespace].fingerprint()
    size = case.tokens_per_block
    tokens = [token_at(i, case.seed) for i in range(case.token_count)]
    keys = []
    for index in range(case.token_count // size):
        block = tokens[index * size:(index + 1) * size]
        parent = block_key(parent, block, case.extra_keys.get(index, []))
        keys.append(parent)
    return keys


def document() -> str:
    vectors = {
        "specification": "docs/PROTOCOL.md, sections Block keys and Namespace fingerprint",
        "token_ids": "token i of a chain is (i * 2654435761 + seed) mod 2^32",
        "namespaces": [
            dataclasses.asdict(n) | {"fingerprint": n.fingerprint().hex()} for n in NAMESPACES
        ],
        "chains": [
            {
                "name": c.name,
                "namespace": c.namespace,
                "tokens_per_block": c.tokens_per_block,
                "token_count": c.token_count,
                "seed": c.seed,
                "extra_keys": [{"block": block, "hex": [extra.hex() for extra in extras]}
                               for block, extras in c.extra_keys.items()],
                "keys": [key.hex() for key in chain(c)],
            }
            for c in CASES
        ],
    }
    return json.dumps(vectors, indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    path = pathlib.Path(__file__).with_name("block_keys.json")
    if sys.argv[1:] == ["--check"]:
        if path.read_text(encoding="utf-8") != document():
            print(f"{path} is not what this script writes")
            return 1
        return 0
    path.write_text(document(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
