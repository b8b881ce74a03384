"""Which weights an engine has loaded, by their content."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import pathlib
import tempfile

from kavern.errors import InvalidArgumentError

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npz")
_CONFIGURATION = (".json", ".py")  # models may bring their own code


def weights_revision(model: str, revision: str | None, load_format: str, seed: int) -> str:
    """A digest of the model's configuration, code and weight files.

    model: a folder, a file, or the name of a repository in the local Hugging Face cache, of which `revision` is taken.
    """
    if load_format == "dummy":
        return f"dummy weights, seed {seed}"
    path = pathlib.Path(model)
    if not path.exists():
        path = _cached_snapshot(model, revision)
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in _WEIGHTS + _CONFIGURATION)
    if not any(file.suffix in _WEIGHTS for file in files):
        raise InvalidArgumentError(f"model: {path} has no weight files ({', '.join(_WEIGHTS)})")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        digests = list(pool.map(_file_digest, files))
    whole = hashlib.sha256()
    for file, digest in zip(files, digests):
        whole.update(f"{file.name}\0{digest}\0".encode())
    return f"sha256:{whole.hexdigest()}"


def file_sha256(path: os.PathLike) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def _cached_snapshot(repository: str, revision: str | None) -> pathlib.Path:
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repository, "config.json", revision=revision)
    if not isinstance(config, str):
        raise InvalidArgumentError(f"model: neither a folder nor in the local Hugging Face cache: {repository}")
    return pathlib.Path(config).parent


def _file_digest(file: pathlib.Path) -> str:
    """SHA-256 of a file. Large ones are read once: the digest is remembered until the file changes."""
    real = file.resolve()
    # The Hugging Face cache names large files by their SHA-256.
    if len(real.name) == 64 and set(real.name) <= set("0123456789abcdef"):
        return real.name
    stat = real.stat()
    key = f"{real}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}\0{stat.st_ino}"
    remembered = _memory() / hashlib.sha256(key.encode()).hexdigest()
    try:
        entry = json.loads(remembered.read_text())
        if entry["key"] == key:
            return entry["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    digest = file_sha256(real)
    _remember(remembered, {"key": key, "sha256": digest})
    return digest


def _memory() -> pathlib.Path:
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "kavern" / "digests"


def _remember(path: pathlib.Path, entry: dict[str, str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(entry, file)
        os.replace(file.name, path)
    except OSError:
        pass  # the next start reads the weights again


def short_name(name: str, limit: int = 512) -> str:
    """Names of namespaces are limited; a longer one is cut and told apart by its digest."""
    if len(name.encode()) <= limit:
        return name
    return f"{name[: limit // 4]}... {hashlib.sha256(name.encode()).hexdigest()}"
