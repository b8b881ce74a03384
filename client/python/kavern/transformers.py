"""Hugging Face transformers: a conversation's KV cache outlives `generate`, the process, and the machine's model server.

    keeper = kavern.transformers.CacheKeeper(client, model)
    cache = keeper.load(input_ids)                                   # what is stored of it, maybe nothing
    output = model.generate(input_ids, past_key_values=cache, return_dict_in_generate=True)
    keeper.save(output.sequences, output.past_key_values)

For any decoder of text whose layers are full or sliding-window attention, with DynamicCache or StaticCache; one sequence
at a time. Where the daemon is away the model computes, and nothing is kept. Full-attention layers are kept in blocks,
shared by all conversations that begin alike. What sliding-window layers hold at a save is kept beside them, so such a
conversation goes on where it was saved.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import dataclass

import kavern
import kavern.weights
from kavern.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    KavernError,
    UnavailableError,
    UnimplementedError,
)
from kavern.loaded_weights import loaded_weights_digest
from kavern.weights import weights_revision

logger = logging.getLogger("kavern.transformers")

# How long the first use waits for the daemon.
_ATTACH_S = 2.0

_LAYERS = ("DynamicLayer", "DynamicSlidingWindowLayer", "StaticLayer", "StaticSlidingWindowLayer")
# torch's name of a dtype: kavern's.
_DTYPES = {"torch.bfloat16": "bfloat16", "torch.float16": "float16", "torch.float32": "float32"}


@dataclass(frozen=True)
class _Shape:
    """What one layer keeps of a token: K and V of `heads` heads. window: tokens it looks back, 0 for all."""

    heads: int
    key_dim: int
    value_dim: int
    window: int

    @property
    def elements(self) -> int:
        return self.heads * (self.key_dim + self.value_dim)


class _Left:
    """Seconds left of a deadline for several calls; None where there is none."""

    def __init__(self, deadline: float | None):
        if deadline is not None and not deadline > 0:
            raise InvalidArgumentError(f"deadline: got {deadline}, expected seconds above 0")
        self._end = None if deadline is None else time.monotonic() + deadline

    def __call__(self, at_most: float | None = None) -> float | None:
        """Raises DeadlineExceededError once there is nothing left."""
        if self._end is None:
            return at_most
        left = self._end - time.monotonic()
        if left <= 0:
            raise DeadlineExceededError("the daemon did not answer in time")
        return left if at_most is None else min(left, at_most)


class CacheKeeper:
    """Keeps caches of one model. Not thread-safe."""

    def __init__(self, client: kavern.Client, model, *, tokens_per_block: int = 64, revision: str = ""):
        """revision: names the weights; left out, they are told by the content of the folder that the model was loaded
        from. In either case every byte of every parameter and buffer, as they are here and now, is part of the identity, and
        so is the configuration: weights that change in place want a new CacheKeeper. It hashes all weights, once, with
        SHA-256 in up to 4 threads: seconds for a large model. What is on a device is copied to the host for that, a tensor at
        a time.

        Raises InvalidArgumentError where there is no folder, and UnimplementedError for caches of other kinds, adapters
        that are not merged, forward hooks, weights that are offloaded, RoPE that depends on the sequence's length, and models
        whose KV depends on more than token ids. Does not need the daemon."""
        import torch
        import transformers

        _check_model(model)
        self._client = client
        self._model = model
        self._block = tokens_per_block
        probe = transformers.DynamicCache(config=model.config)
        with torch.no_grad():
            model(torch.zeros((1, 1), dtype=torch.long, device=model.device), past_key_values=probe, use_cache=True)
        self._shapes = [_shape_of(i, layer) for i, layer in enumerate(probe.layers)]
        self._full = [i for i, shape in enumerate(self._shapes) if shape.window == 0]
        self._sliding = [i for i, shape in enumerate(self._shapes) if shape.window > 0]
        kinds = {(shape.heads, shape.key_dim, shape.value_dim) for i, shape in enumerate(self._shapes) if i in self._full}
        if len(kinds) > 1:
            raise UnimplementedError(f"full-attention layers of different shapes: {sorted(kinds)}")
        self._dtype = probe.layers[0].keys.dtype
        if str(self._dtype) not in _DTYPES:
            raise UnimplementedError(f"a cache of {self._dtype}; known: {', '.join(_DTYPES)}")

        config = model.config
        commit = getattr(config, "_commit_hash", None)  # of a model from the hub
        revision = revision or weights_revision(config._name_or_path, commit, "auto", 0)
        packing = {
            "transformers": transformers.__version__,
            "attention": config._attn_implementation,
            "dtype": str(model.dtype),
            "shapes": str(self._shapes),
            "config": _digest(_without_names(config.to_dict())),  # rotary scaling and quantization, too
            "weights": loaded_weights_digest(model),
        }
        names = {
            "weights_revision": revision,
            "engine_layout": kavern.weights.short_name(json.dumps(packing, separators=(",", ":"))),
        }
        model_type = f"{config.model_type} {type(model).__name__}"
        self._blocks_spec = self._tails_spec = None
        self._blocks = self._tails = None  # namespaces, once the daemon has been there
        self._waited = self._warned = self._padding_told = False
        if self._full:
            shape = self._shapes[self._full[0]]
            group = kavern.LayerGroup(
                len(self._full),
                kind=kavern.LayerGroupKind.RECURRENT_STATE,
                state_bytes=shape.elements * tokens_per_block * self._dtype.itemsize,
            )
            layout = kavern.KvLayout(tokens_per_block, [group], dtype=_DTYPES[str(self._dtype)])
            self._blocks_spec = kavern.NamespaceSpec(model_type, layout, **names)
        if self._sliding:
            # The end of a sequence of any length, under the key of all of its tokens.
            group = kavern.LayerGroup(
                1, kind=kavern.LayerGroupKind.RECURRENT_STATE, state_bytes=self._tail_elements() * self._dtype.itemsize
            )
            layout = kavern.KvLayout(1, [group], dtype=_DTYPES[str(self._dtype)])
            self._tails_spec = kavern.NamespaceSpec(model_type + ", tails", layout, **names)

    def _open(self, left: _Left) -> None:
        """Raises KavernError."""
        if not self._waited:
            self._waited = True
            self._client.wait_until_attached(deadline=left(_ATTACH_S))
        if self._blocks_spec is not None and self._blocks is None:
            self._blocks = self._client.open_namespace(self._blocks_spec, deadline=left())
        if self._tails_spec is not None and self._tails is None:
            self._tails = self._client.open_namespace(self._tails_spec, deadline=left())

    def _warn(self, error: KavernError) -> None:
        if not self._warned:
            logger.warning("Kavern is away, going on without it: %s", error)
        self._warned = True

    def _hides_tokens(self, tokens: list[int], mask) -> bool:
        """Whether a mask is given, or to be expected, under which KV depends on more than the tokens. Logged once."""
        why = None
        if mask is not None and not bool((mask == 1).all()):
            why = "the attention mask hides tokens"
        elif _padded(self._model, tokens):
            why = "there are pad tokens, as of padding"
        if why is not None and not self._padding_told:
            logger.warning("Not cached: %s, and KV is kept by its token ids alone", why)
            self._padding_told = True
        return why is not None

    # ---- Loading ----

    def load(self, input_ids, into=None, *, attention_mask=None, deadline: float | None = None):
        """The stored beginning of input_ids, shape (1, tokens), as a cache for `generate`; at least its last token is
        left to compute.

        attention_mask: what `generate` will be given. Nothing is loaded or saved under a mask that is not all ones, for ids
        with pad tokens of which `generate` makes such a mask, and for ids that begin with one which is not the bos token.
        into: an empty StaticCache or DynamicCache to fill, and to return; left out, a new DynamicCache. Whatever is not
        there, not right, or not here after `deadline` seconds (None: the client's, for each of its calls) is left to the
        model: this raises no KavernError.
        """
        import transformers

        left = _Left(deadline)
        cache = into if into is not None else transformers.DynamicCache(config=self._model.config)
        if cache.get_seq_length() != 0:
            raise InvalidArgumentError("into: expected an empty cache")
        for i, layer in enumerate(cache.layers):
            if layer.is_initialized and layer.keys.numel() > 0:
                self._check_tensors(i, layer.keys, layer.values)
        tokens = _tokens_of(input_ids)
        _check_model(self._model)
        if self._hides_tokens(tokens, attention_mask):
            return cache
        try:
            self._open(left)
            layers = self._fetch(tokens[:-1], left)
        except KavernError as error:
            self._warn(error)
            layers = None
        if layers is not None:
            length, states = layers
            for layer, (keys, values) in zip(cache.layers, states):
                _fill(layer, keys.to(self._model.device), values.to(self._model.device), length)
        return cache

    def _fetch(self, tokens: list[int], left: _Left):
        """Length, and K and V of every layer; None: nothing stored."""
        import torch

        blocks = self._match(tokens, left)
        if self._tails is None:
            if blocks == 0:
                return None
            fetched = self._fetch_blocks(tokens, blocks, left)
            return (fetched[0][0].shape[2], fetched) if fetched else None

        length, key = self._longest_tail(tokens, blocks, left)
        if key is None:
            return None
        whole = length // self._block if self._full else 0
        full = self._fetch_blocks(tokens, whole, left) if whole else None
        tail = torch.empty(self._tail_elements(), dtype=self._dtype)
        if whole and full is None:
            return None
        if not self._tails.fetch_into([key], [_bytes(tail)], deadline=left()).all_ok:
            return None
        states, pieces = [], self._split_tail(tail)
        for i, shape in enumerate(self._shapes):
            keys, values = pieces[i]
            if shape.window:
                kept = min(length, shape.window - 1)
                states.append((keys[:, :, :kept], values[:, :, :kept]))
            else:
                rest = length - whole * self._block
                keys, values = keys[:, :, :rest], values[:, :, :rest]
                if whole:
                    before = full[self._full.index(i)]
                    keys, values = torch.cat((before[0], keys), 2), torch.cat((before[1], values), 2)
                states.append((keys, values))
        return length, states

    def _match(self, tokens: list[int], left: _Left) -> int:
        if self._blocks is None:
            return 0
        return self._blocks.match(self._chain(self._blocks, tokens).keys, deadline=left())

    def _longest_tail(self, tokens: list[int], blocks: int, left: _Left):
        keys = self._chain(self._tails, tokens).keys
        for length in range(len(keys), 0, -1):
            if self._full and length // self._block > blocks:
                continue
            if self._tails.match([keys[length - 1]], deadline=left()) == 1:
                return length, keys[length - 1]
        return 0, None

    def _fetch_blocks(self, tokens: list[int], count: int, left: _Left):
        """K and V of the full-attention layers, of as many of `count` blocks as are right."""
        import torch

        shape = self._shapes[self._full[0]]
        parts = torch.empty((count, len(self._full), shape.elements * self._block), dtype=self._dtype)
        keys = self._chain(self._blocks, tokens).keys_between(0, count)
        errors = self._blocks.fetch_into(keys, [_bytes(part) for part in parts], deadline=left()).errors
        good = next((i for i, error in enumerate(errors) if error is not None), count)
        if good == 0 or (self._tails is not None and good < count):
            return None
        states = []
        split = shape.heads * shape.key_dim * self._block
        for layer in range(len(self._full)):
            keys_of = parts[:good, layer, :split].reshape(good, shape.heads, self._block, shape.key_dim)
            values_of = parts[:good, layer, split:].reshape(good, shape.heads, self._block, shape.value_dim)
            states.append(tuple(x.transpose(0, 1).reshape(1, shape.heads, good * self._block, -1) for x in (keys_of, values_of)))
        return states

    # ---- Saving ----

    def save(self, token_ids, cache, *, attention_mask=None, deadline: float | None = None) -> int:
        """Keeps what `cache` holds of the sequence token_ids, shape (1, tokens). Returns the tokens that are stored from
        its beginning on: 0 where tokens are hidden (attention_mask: as for `load`), and where the daemon is away or does
        not answer within `deadline` seconds (None: the client's, for each of its calls); both are logged once. Other errors
        are raised."""
        left = _Left(deadline)
        _check_model(self._model)
        tokens = _tokens_of(token_ids)
        if self._hides_tokens(tokens, attention_mask):
            return 0
        length = min(cache.get_seq_length(), len(tokens))
        if length < cache.get_seq_length():
            raise InvalidArgumentError(f"token_ids: got {len(tokens)}, expected the {cache.get_seq_length()} of the cache")
        if len(cache.layers) != len(self._shapes):
            raise InvalidArgumentError(f"a cache of {len(cache.layers)} layers, expected the model's {len(self._shapes)}")
        states = [_kept(i, layer, self._shapes[i]) for i, layer in enumerate(cache.layers)]
        for i, (keys, values) in enumerate(states):
            self._check_tensors(i, keys, values)
            kept = min(length, self._shapes[i].window - 1) if self._shapes[i].window else length
            if keys.shape[2] != kept or values.shape[2] != kept:
                raise InvalidArgumentError(f"layer {i} of the cache: {keys.shape[2]} tokens, expected {kept}")
        try:
            self._open(left)
            return self._save(tokens[:length], states, left)
        except (UnavailableError, DeadlineExceededError) as error:
            self._warn(error)
            return 0

    def _check_tensors(self, index: int, keys, values) -> None:
        """Refuses K and V that are not of this model: nothing is cast, neither here nor in a cache to fill."""
        shape, device = self._shapes[index], self._model.device.type
        for name, x, dim in (("K", keys, shape.key_dim), ("V", values, shape.value_dim)):
            got = (x.dtype, x.shape[1], x.shape[3], x.device.type)
            expected = (self._dtype, shape.heads, dim, device)
            if got != expected:
                told = ["{}, {} heads of {}, on {}".format(*facts) for facts in (got, expected)]
                raise InvalidArgumentError(f"{name} of layer {index} of the cache: {told[0]}; expected {told[1]}")

    def _save(self, tokens: list[int], states: list, left: _Left) -> int:
        length = len(tokens)
        stored = self._save_blocks(tokens, states, left) if self._blocks is not None else 0
        if self._tails is None:
            return stored
        if self._full and stored < length // self._block * self._block:
            return 0  # without its blocks a tail is of no use
        key = self._chain(self._tails, tokens).keys[-1]
        if self._tails.match([key], deadline=left()) == 0:
            result = self._tails.store([key], [_bytes(self._pack_tail(states, length))], deadline=left())
            if kavern.StoreOutcome.DECLINED in result.outcomes:
                return 0
        return length

    def _save_blocks(self, tokens: list[int], states: list, left: _Left) -> int:
        import torch

        keys = self._chain(self._blocks, tokens).keys
        first = self._blocks.match(keys, deadline=left())
        parts = []
        for block in range(first, len(keys)):
            here = slice(block * self._block, (block + 1) * self._block)
            pieces = [x[0, :, here].reshape(-1) for i in self._full for x in states[i]]
            parts.append(_bytes(torch.cat(pieces).cpu()))
        if parts:
            parent = keys[first - 1] if first else None
            outcomes = self._blocks.store(keys[first:], parts, parent=parent, deadline=left()).outcomes
            kept = next((i for i, o in enumerate(outcomes) if o == kavern.StoreOutcome.DECLINED), len(outcomes))
            return (first + kept) * self._block
        return first * self._block

    # ---- Tails: of sliding layers the window, of full ones what is no whole block ----

    def _tail_tokens(self, shape: _Shape) -> int:
        return shape.window - 1 if shape.window else self._block

    def _tail_elements(self) -> int:
        return sum(shape.elements * self._tail_tokens(shape) for shape in self._shapes)

    def _split_tail(self, tail) -> list:
        """K and V of every layer, shape (1, heads, tokens, dim), as views of the tail."""
        pieces, at = [], 0
        for shape in self._shapes:
            both = []
            for dim in (shape.key_dim, shape.value_dim):
                size = shape.heads * self._tail_tokens(shape) * dim
                both.append(tail[at : at + size].view(1, shape.heads, self._tail_tokens(shape), dim))
                at += size
            pieces.append(tuple(both))
        return pieces

    def _pack_tail(self, states: list, length: int):
        import torch

        tail = torch.zeros(self._tail_elements(), dtype=self._dtype)
        begin = length // self._block * self._block
        for shape, targets, sources in zip(self._shapes, self._split_tail(tail), states):
            for target, source in zip(targets, sources):
                piece = source if shape.window else source[:, :, begin:length]
                target[:, :, : piece.shape[2]] = piece
        return tail

    @staticmethod
    def _chain(namespace: kavern.Namespace, tokens: list[int]) -> kavern.BlockKeyChain:
        chain = namespace.chain()
        chain.append(tokens)
        return chain


def _check_model(model) -> None:
    """Refuses models whose KV is not told by their weights and the token ids."""
    if getattr(model, "_hf_peft_config_loaded", False) or hasattr(model, "peft_config"):
        raise UnimplementedError("adapters: KV depends on which is in use; merge them (merge_and_unload)")
    config = model.config
    if config.get_text_config() is not config or getattr(config, "is_encoder_decoder", False):
        raise UnimplementedError(f"{type(model).__name__}: KV of a model of more than text depends on more than token ids")
    for kind in _rope_types(model):
        if "dynamic" in kind or kind == "longrope":
            raise UnimplementedError(f"RoPE of type {kind}: KV of a prefix depends on the length of what it was computed with")
    if any(_hooks_of(module) for module in model.modules()):
        raise UnimplementedError("forward hooks: KV depends on what they do; remove them")


def _hooks_of(module) -> list:
    """Those that may change something: transformers' own, which capture outputs, stay once outputs were asked for."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return [hook for hook in hooks if getattr(hook, "__module__", "") != "transformers.utils.output_capturing"]


def _rope_types(model) -> set:
    """What the configuration says, for all layers or for each type of layers, and what the modules do."""
    rope = getattr(model.config, "rope_parameters", None) or {}
    settings = [rope, *(of_type for of_type in rope.values() if isinstance(of_type, dict))]
    types = {of_layers.get(name) for of_layers in settings for name in ("rope_type", "type")}
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        types.update(kind.values() if isinstance(kind, dict) else (kind,))
    return {kind for kind in types if isinstance(kind, str)}


def _padded(model, tokens: list[int]) -> bool:
    """Whether generate() infers a mask from pad tokens, or the caller has padded on the left and gives one."""
    config = getattr(model, "generation_config", None)
    pad, bos, eos = (getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos"))
    ends = eos if isinstance(eos, (list, tuple)) else [] if eos is None else [eos]
    if pad is None and ends:
        pad = ends[0]  # as generate() has it
    if pad is None or pad not in tokens:
        return False
    return pad not in ends or (tokens[0] == pad and pad != bos)


def _without_names(config: dict) -> dict:
    """What a configuration says of the model, and not of where it was read."""
    return {key: value for key, value in config.items() if key not in ("_name_or_path", "_commit_hash")}


def _digest(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _tokens_of(ids) -> list[int]:
    if ids.dim() != 2 or ids.shape[0] != 1:
        raise InvalidArgumentError(f"token ids: shape {tuple(ids.shape)}, expected (1, tokens): one sequence at a time")
    return ids[0].tolist()


def _bytes(tensor):
    """The memory of a contiguous tensor, as bytes: not every dtype is known to the buffer protocol."""
    import torch

    return tensor.view(torch.uint8)


def _shape_of(index: int, layer) -> _Shape:
    name = type(layer).__name__
    if name not in _LAYERS:
        raise UnimplementedError(f"layer {index} of the cache is a {name}; known: {', '.join(_LAYERS)}")
    window = layer.sliding_window if layer.is_sliding else 0
    return _Shape(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3], window)


def _kept(index: int, layer, shape: _Shape) -> tuple:
    """K and V that a layer holds, oldest token first; of a sliding window the last window - 1 tokens."""
    name = type(layer).__name__
    if name not in _LAYERS or layer.keys.shape[0] != 1:
        raise UnimplementedError(f"layer {index} of the cache: {name} of {layer.keys.shape[0]} sequences")
    length = int(layer.get_seq_length())
    keys, values = layer.keys, layer.values
    if name == "StaticLayer" or (name == "StaticSlidingWindowLayer" and length < layer.max_cache_len):
        keys, values = keys[:, :, :length], values[:, :, :length]
    if shape.window:
        kept = min(length, shape.window - 1)
        keys, values = keys[:, :, keys.shape[2] - kept :], values[:, :, values.shape[2] - kept :]
    return keys, values


def _fill(layer, keys, values, length: int) -> None:
    """Puts K and V, the last of `length` tokens, into an empty layer."""
    name = type(layer).__name__
    if name == "StaticSlidingWindowLayer" and length >= layer.max_cache_len:
        # Full: tokens lie at the end, and the one before the window is never looked at.
        layer.lazy_initialization(keys, values)
        kept = min(keys.shape[2], layer.max_cache_len)
        layer.keys[:, :, -kept:] = keys[:, :, -kept:]
        layer.values[:, :, -kept:] = values[:, :, -kept:]
        layer.cumulative_length_int = length
        layer.cumulative_length.fill_(layer.max_cache_len)
        return
    layer.update(keys, values)
    if name == "DynamicSlidingWindowLayer":
        layer.cumulative_length = length
