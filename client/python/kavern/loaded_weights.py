"""What a torch model computes with, as it is in memory: every byte of its parameters and buffers."""

from __future__ import annotations

import concurrent.futures
import hashlib

from kavern.errors import UnimplementedError

_THREADS = 4
# Bytes of a tensor that one thread hashes at a time: large tensors are shared among threads.
_PIECE = 8 << 20


def loaded_weights_digest(model) -> str:
    """A digest of all parameters and buffers: names, shapes, dtypes and every byte.

    Hashes all weights once, with SHA-256 in up to 4 threads: seconds for a large model. Tensors on the CPU are not copied; of
    those on a device one at a time is. Raises UnimplementedError for tensors without bytes of their own.
    """
    whole = hashlib.sha256()
    known: dict[tuple, bytes] = {}  # tied tensors are hashed once
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for kind in (model.named_parameters, model.named_buffers):
            for name, tensor in kind(remove_duplicate=False):
                try:
                    place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
                    if place not in known or not tensor.data_ptr():
                        known[place] = _tensor_digest(tensor, pool)
                except (RuntimeError, TypeError, NotImplementedError) as error:
                    why = "its bytes cannot be read, as of weights that are offloaded"
                    raise UnimplementedError(f"{name}: {why}: {error}") from error
                whole.update(f"{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\0".encode() + known[place])
    return whole.hexdigest()


def _tensor_digest(tensor, pool: concurrent.futures.Executor) -> bytes:
    import torch

    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    whole = hashlib.sha256()
    for digest in pool.map(_sha256, (data[at : at + _PIECE] for at in range(0, data.size, _PIECE))):
        whole.update(digest)
    return whole.digest()


def _sha256(piece) -> bytes:
    return hashlib.sha256(piece).digest()
