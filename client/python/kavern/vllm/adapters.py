"""LoRA adapters by their content, where it is certain which content the engine has."""

from __future__ import annotations

import hashlib
import pathlib
import time

from kavern.weights import file_sha256, last_change_ns

_WEIGHTS = (".safetensors", ".bin", ".pt")


class Adapters:
    """The engine reads an adapter's files when it pleases, and no hook says when. What does not change once the engine
    runs is known all the same: adapters that were there before it, unless it may be told to read others in their place.
    """

    def __init__(self, options: str = "", may_be_replaced: bool | None = None, since_ns: int | None = None):
        """options: a digest of how the engine applies adapters. may_be_replaced: left out, what vLLM's environment says.
        since_ns: left out, now: the engine, which is being made, has read no adapter yet."""
        if may_be_replaced is None:
            from vllm import envs

            may_be_replaced = envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING
        self._may_be_replaced = may_be_replaced
        self._since_ns = time.time_ns() if since_ns is None else since_ns
        self._options = options
        self._keys: dict[str, bytes] = {}  # by path
        self._ids: dict[int, bytes | None] = {}  # the engine's: what was first asked for by it; None: not known

    def why_not(self, lora) -> str:
        """Why KV of the request's adapter is not cached; empty: it is. Asked again before every save."""
        if self._may_be_replaced:
            return "adapters may be replaced while they are in use (VLLM_ALLOW_RUNTIME_LORA_UPDATING)"
        if lora.load_inplace:
            self._ids[lora.lora_int_id] = None
        try:
            if last_change(lora.lora_path) > self._since_ns:
                return "the adapter's files are newer than the engine, which may have read others"
            key = self.key(lora)
        except OSError as error:
            return f"the adapter's files cannot be read: {error}"
        # The engine goes by the number, and keeps what it first read for it.
        if self._ids.setdefault(lora.lora_int_id, key) != key:
            self._ids[lora.lora_int_id] = None
            return (
                f"two adapters have the number {lora.lora_int_id}, or one was read anew (load_inplace): which of them the engine "
                f"has is not known"
            )
        return ""

    def key(self, lora) -> bytes:
        """Of what the files of the adapter's folder hold, and how the engine applies them. Raises OSError."""
        path = lora.lora_path
        if path not in self._keys:
            digest = hashlib.sha256()
            for file in _files(path):
                digest.update(f"{file.name}\0{file_sha256(file)}\0".encode())
            self._keys[path] = b"lora\0" + digest.digest()
        layout = f"\0{self._options}\0{lora.is_3d_lora_weight}"
        return self._keys[path] + hashlib.sha256(layout.encode()).digest()


def last_change(path: str) -> int:
    """Of the adapter's files and folder; reads none of them. Nanoseconds, as time.time_ns(). Raises OSError."""
    return max(map(last_change_ns, [pathlib.Path(path), *_files(path)]))


def _files(path: str) -> list[pathlib.Path]:
    files = sorted(f for f in pathlib.Path(path).iterdir() if f.is_file() and f.suffix in (".json", *_WEIGHTS))
    if not any(file.suffix in _WEIGHTS for file in files):
        raise FileNotFoundError(f"{path} has no {', '.join(_WEIGHTS)}")  # adapters without content would all be one
    return files
