"""The connector with a witness beside it: an independent record of what was saved, and a check of every load.

The record is made from the engine's tensors with torch before Kavern copies, and checked against the engine's tensors
after Kavern has copied back; saves were then copied in part, layer by layer. Beside the record it counts: layers told of
within a forward pass, loads begun and reported, and requests that ended in between ("aborted"). A key may have several
right contents: engines that split a prefill otherwise compute other bytes, and the first to commit wins.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import time

import kavern
from kavern.vllm import KavernConnector
from kavern.vllm.identity import group_tensors
from kavern.vllm.messages import Load

DIRECTORY = pathlib.Path(os.environ.get("KAVERN_RECORD_DIRECTORY", "/nonexistent"))


class RecordingConnector(KavernConnector):
    def __init__(self, vllm_config, role, kv_cache_config):
        super().__init__(vllm_config, role, kv_cache_config)
        self._loads: dict[str, Load] = {}  # worker's: begun and not reported
        self._loading: set[str] = set()  # scheduler's: planned and not reported

    def register_kv_caches(self, kv_caches) -> None:
        super().register_kv_caches(kv_caches)
        self._tensors = [group.tensors for group in group_tensors(self._kv_cache_config, kv_caches)]

    def bind_connector_metadata(self, connector_metadata) -> None:
        self._saves = list(connector_metadata.saves)
        for load in connector_metadata.loads:
            self._loads[load.request_id] = load
            note("begun")
        if connector_metadata.loads and (DIRECTORY / "evict").exists():
            # Matched already, not yet loaded.
            (DIRECTORY / "evict").unlink()
            evict(self._worker, connector_metadata.loads)
        super().bind_connector_metadata(connector_metadata)

    def _layer_written(self, layer_name: str) -> None:
        super()._layer_written(layer_name)
        if layer_name in self._worker._layers:
            note("layers")

    def wait_for_save(self) -> None:
        for save in self._saves:
            for group, pages in enumerate(save.pages):
                for key, page in zip(save.keys, pages):
                    with open(DIRECTORY / f"{key.hex()}.{group}", "a") as record:
                        record.write(self._digest(group, page) + "\n")
        self._saves = []
        super().wait_for_save()

    def get_transfer_results(self, finished_req_ids):
        results = super().get_transfer_results(finished_req_ids)
        for request_id in results.finished_recving:
            load = self._loads.pop(request_id)
            note("reported")
            if request_id in results.failed_recving:
                continue
            for group, (keys, pages) in enumerate(load.groups):
                for key, page in zip(keys, pages):
                    if page in self._failed_pages:
                        break
                    record = (DIRECTORY / f"{key.hex()}.{group}").read_text().split()
                    note("verified" if self._digest(group, page) in record else "wrong")
        return results

    def update_state_after_alloc(self, request, blocks, num_external_tokens: int) -> None:
        super().update_state_after_alloc(request, blocks, num_external_tokens)
        if num_external_tokens > 0:
            self._loading.add(request.request_id)

    def update_connector_output(self, connector_output) -> None:
        super().update_connector_output(connector_output)
        self._loading -= connector_output.finished_recving or set()

    def request_finished_all_groups(self, request, block_ids):
        if request.request_id in self._loading:
            note("aborted")
        return super().request_finished_all_groups(request, block_ids)

    def _digest(self, group: int, page: int) -> str:
        import torch

        digest = hashlib.sha256()
        for tensor in self._tensors[group]:
            digest.update(tensor[page].contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def note(what: str) -> None:
    with open(DIRECTORY / what, "a") as file:
        file.write(".")


def noted(directory: pathlib.Path, what: str) -> int:
    path = directory / what
    return path.stat().st_size if path.exists() else 0


def evict(worker, loads: list[Load]) -> None:
    """Stores rubbish until the daemon has none of the blocks that are about to be loaded."""
    first_keys = [keys[:1] for load in loads for keys, _ in load.groups if keys]
    part = 1 << 20
    group = kavern.LayerGroup(1, kv_heads=2, head_dim=part // 2 // 2 // 4)
    give_up = time.monotonic() + 60
    with kavern.Client(worker._settings.address) as client:
        client.wait_until_attached()
        spec = kavern.NamespaceSpec(f"rubbish {time.time_ns()}", kavern.KvLayout(4, [group], dtype="int8"))
        namespace = client.open_namespace(spec)
        number = 0
        while any(worker._link.namespace().match(keys) for keys in first_keys):
            assert time.monotonic() < give_up, "the blocks are not evicted"
            chain = namespace.chain()  # each a chain of its own: what is evicted is nobody's ancestor
            chain.append([number] * 4)
            # Declined while memory moves from one namespace to the other.
            namespace.store(chain.keys, [bytes(part)])
            number += 1
