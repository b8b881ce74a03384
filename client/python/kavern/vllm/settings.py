"""What `kv_connector_extra_config` may say. Keys begin with `kavern.`; others belong to others."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from typing import Any

_PREFIX = "kavern."

# Releases that deploy/vllm/try_versions.sh has passed with.
TRIED_VERSIONS = ("0.32.0",)


@dataclass(frozen=True)
class Settings:
    """One field per key, of which the prefix is left out; its default tells its type."""

    address: str = "unix:///run/kavern/kavern.sock"
    tenant: str = ""  # empty: the first that this process's credentials map to
    # Threads that copy one load or store.
    copy_threads: int = 2
    # A load that took longer has failed, and its tokens are recomputed.
    load_timeout_s: float = 2.0
    # How long a step waits for the daemon to grant memory for what it computed; then that is not stored.
    save_patience_s: float = 0.05
    # Load what the plan of the turn recommends: this machine was measured, and the rest is quicker to compute. Off: all
    # that is stored.
    follow_plan: bool = False
    # Compare what is loaded with its checksum. Off is for measuring what it costs.
    verify_checksums: bool = True
    # No client of this engine names images, videos or sounds by itself (`uuid`): names are hashes, and blocks behind them are
    # shared with other engines and with this one's next life.
    trust_media_names: bool = False
    # How long the engine's start waits for the daemon, before it serves without it.
    attach_timeout_s: float = 2.0
    # KV caches on a GPU: saves on their way to memory of this machine, of each worker. What is beyond is offered later.
    inflight_save_bytes_max: int = 1 << 30
    # The same of loads; what is beyond is recomputed.
    inflight_load_bytes_max: int = 8 << 30
    # Copy by way of memory of this machine, as it is done with KV caches on a GPU; for tests on processors.
    bounce: bool = False
    # Start with a release of vLLM that this connector was not tried with.
    untried_version: bool = False


def parse(extra_config: dict[str, Any] | None) -> Settings:
    """Raises ValueError, which names the key and what was expected."""
    known = {_PREFIX + field.name: field for field in fields(Settings)}
    values = {}
    for key, value in (extra_config or {}).items():
        if key.startswith("kavern_") or _PREFIX + key in known:
            raise ValueError(f"kv_connector_extra_config: {key} is no key of Kavern's: they begin with {_PREFIX}")
        if not key.startswith(_PREFIX):
            continue
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
            raise ValueError(f"kv_connector_extra_config: unknown key {key}{hint}")
        kind = type(known[key].default)
        fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
        if not fits or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{key}: got {value!r}, expected {kind.__name__}")
        if kind in (int, float) and not value > 0:
            raise ValueError(f"{key}: got {value!r}, expected a number above 0")
        values[known[key].name] = kind(value)
    settings = Settings(**values)
    if not settings.address.startswith("unix:"):
        raise ValueError(
            f"{_PREFIX}address: got {settings.address!r}, expected unix:///path: KV goes through shared memory, to a daemon "
            f"of this machine"
        )
    return settings
