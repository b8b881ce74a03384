"""Kavern for vLLM: conversations' KV caches outlive the engine.

    vllm serve MODEL --kv-transfer-config '{"kv_connector": "KavernConnector", "kv_connector_module_path": "kavern.vllm",
      "kv_role": "kv_both", "kv_load_failure_policy": "recompute",
      "kv_connector_extra_config": {"kavern.address": "unix:///run/kavern/kavern.sock"}}'

Settings: kavern.vllm.settings. Whatever happens to the daemon, the worst outcome is a recompute.
"""

try:
    from kavern.vllm.connector import KavernConnector
except ImportError as error:
    from vllm import __version__
    from kavern.vllm.settings import TRIED_VERSIONS

    raise ImportError(
        f"vLLM {__version__} has another connector interface than Kavern's connector needs; "
        f"it was tried with {', '.join(TRIED_VERSIONS)}: {error}"
    ) from error

__all__ = ["KavernConnector"]
