"""Which weights an engine has loaded, by their content."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import pathlib
import tempfile
import time

from kavern.errors import InvalidArgumentError

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npz")
_CONFIGURATION = (".json", ".py")  # models may bring their own code


def weights_revision(
    model: str,
    revision: str | None,
    load_format: str,
    seed: int,
    *,
    cache_dir: str | None = None,
    loaded_since_ns: int | None = None,
) -> str:
    """A digest of the model's configuration, code and weight files.

    model: a folder, a file, or the name of a repository in the local Hugging Face cache, of which `revision` is taken.
    cache_dir: that cache, where it is not the usual one.
    loaded_since_ns: when loading began at the earliest, in nanoseconds of time.time_ns(). Of a folder whose files changed
    after that nobody knows what was loaded: InvalidArgumentError. (What the Hugging Face cache has under the name of a
    commit does not change.)
    """
    if load_format == "dummy":
        return f"dummy weights, seed {seed}"
    path = pathlib.Path(model)
    is_cached = not path.exists()
    if is_cached:
        path = cached_snapshot("model", model, revision, cache_dir)
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in _WEIGHTS + _CONFIGURATION)
    if not any(file.suffix in _WEIGHTS for file in files):
        raise InvalidArgumentError(f"model: {path} has no weight files ({', '.join(_WEIGHTS)})")
    if loaded_since_ns is not None and not is_cached:
        changed = [file for file in files if last_change_ns(file) > loaded_since_ns]
        if changed:
            raise InvalidArgumentError(f"model: {changed[0]} changed while it was being loaded; start the engine again")
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


def last_change_ns(path: os.PathLike) -> int:
    """When the file or folder was last written, replaced or renamed, or a link on the way to it: of its change times the
    last."""
    newest, todo, seen = os.stat(path).st_ctime_ns, [os.path.abspath(path)], set()
    while todo:
        here = pathlib.Path(todo.pop())
        for step in (here, *here.parents):
            if step not in seen and step.is_symlink():
                newest = max(newest, step.lstat().st_ctime_ns)
                todo.append(os.path.join(step.parent, os.readlink(step)))
            seen.add(step)
    return newest


def process_start_ns() -> int:
    """When this process began, on the clock of time.time_ns(), rounded up to a tick of the kernel's (10 ms)."""
    began_ticks = int(pathlib.Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]) + 1
    uptime_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return time.time_ns() - uptime_ns + began_ticks * (10**9 // os.sysconf("SC_CLK_TCK"))


def cached_snapshot(
    argument: str, repository: str, revision: str | None = None, cache_dir: str | None = None
) -> pathlib.Path:
    """The folder of a repository in the local Hugging Face cache. Raises InvalidArgumentError where it is not there, which
    begins with `argument`."""
    try:
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(repository, "config.json", revision=revision, cache_dir=cache_dir)
    except (ImportError, ValueError):  # not installed; no name that a repository may have
        config = None
    if not isinstance(config, str):
        raise InvalidArgumentError(
            f"{argument}: no folder {repository}, and no repository of that name in the local Hugging Face cache"
        )
    return pathlib.Path(config).parent


def _file_digest(file: pathlib.Path) -> str:
    """SHA-256 of a file. Large ones are read once: the digest is remembered until the file changes."""
    # The Hugging Face cache names large files by their SHA-256, which is what they were when they came.
    real = file.resolve()
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
