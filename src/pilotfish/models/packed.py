"""Causal language models for passes of few tokens on a CPU, where weights are read faster than they are used."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["is_packed", "multiplies_bfloat16", "new_cache", "packed", "takes_trees"]

_ATTENTION = "pilotfish_grouped"
_FEW = 32
"""Tokens of a pass up to which queries that share keys are put beside each other, and keys are not repeated."""
_LARGE = 2**14
"""Weights of a layer from which on packing pays."""


def packed(network: Any) -> Any:
    """The same model for reading only: weights in the order in which products of few rows read them.

    Torch multiplies a few rows by ways that reach half of the speed at which the memory gives the weights. Those of
    float32 are multiplied by :class:`pilotfish.models.products.PackedMatrix` where the machine has the instructions,
    others by oneDNN's prepacked products. The large linear layers are replaced in a copy that shares everything else. A
    model that is not on a CPU, or in another type than float32 or a bfloat16 that the CPU multiplies itself, is given
    back as it is.
    """
    import torch

    if (
        network.dtype not in (torch.float32, torch.bfloat16)
        or (network.dtype == torch.bfloat16 and not multiplies_bfloat16())
        or network.device.type != "cpu"
        or not torch.backends.mkldnn.is_available()
        or getattr(network.config, "_attn_implementation", None) != "sdpa"
    ):
        return network
    _register()
    config = copy.copy(network.config)
    config._attn_implementation = _ATTENTION
    return _twin(network, network.config, config)


def multiplies_bfloat16() -> bool:
    """Whether this machine's CPU has instructions for bfloat16; others take six times as long as for float32."""
    import torch

    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def is_packed(network: Any) -> bool:
    """Whether a model was made by :func:`packed`."""
    return bool(getattr(network.config, "_attn_implementation", None) == _ATTENTION)


def new_cache(network: Any) -> Any:
    """An empty key-value cache that is written in place, where transformers would copy all of it for every token."""
    import transformers

    cache = transformers.DynamicCache(config=network.config)
    for i, layer in enumerate(cache.layers):
        if type(layer) is transformers.cache_utils.DynamicLayer:
            cache.layers[i] = _growing()()
        elif hasattr(layer, "activate_past_recording"):
            layer.activate_past_recording()
    return cache


def takes_trees(network: Any, cache: Any) -> bool:
    """Whether a pass may read tokens side by side: all layers see all of the text, by a mask that a caller gives."""
    masked = getattr(network.config, "_attn_implementation", None) in ("sdpa", _ATTENTION)
    return masked and all(type(layer) is _growing() for layer in cache.layers)


def _twin(module: Any, config: Any, new_config: Any) -> Any:
    import torch

    twin = copy.copy(module)
    if getattr(module, "config", None) is config:
        twin.config = new_config
    if type(module) is torch.nn.Linear and module.weight.numel() >= _LARGE:
        twin._parameters = {}
        twin.added = None if module.bias is None else module.bias.detach()
        twin.matrix, twin.forward = _product(module.weight.detach(), twin.added)
        return twin
    # A shallow copy of a module shares the table of its parts.
    twin._modules = {
        name: None if part is None else _twin(part, config, new_config) for name, part in module._modules.items()
    }
    return twin


def _product(weight: Any, bias: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Packed weights and what a linear layer does with them, by the fastest way for this matrix on this machine."""
    import torch

    from pilotfish.models.products import PackedMatrix, multiplies

    if not multiplies(weight):
        prepacked = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        return prepacked, lambda rows: torch.ops.mkldnn._linear_pointwise(rows, prepacked, bias, "none", [], "")
    matrix = PackedMatrix(weight)
    return matrix, matrix.product if bias is None else lambda rows: matrix.product(rows).add_(bias)


@functools.cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def grouped(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **how: Any) -> tuple[Any, None]:
        import torch

        from pilotfish.models.attention import attend

        n_batch, n_heads, n, width = query.shape
        if key.stride(2) == 1 and _is_usual(module, attention_mask, how):  # keys lie in a room of ours
            seen = None if attention_mask is None else attention_mask.expand(n_batch, 1, n, -1)[:, 0]
            return attend(query, key, value, seen, how.get("scaling")), None
        n_groups = n_heads // key.shape[1]
        shared = n_groups > 1 and n <= _FEW and attention_mask is not None and attention_mask.shape[1] == 1
        if not shared or how.get("position_bias") is not None:
            made: tuple[Any, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **how)
            return made
        mask = getattr(attention_mask, "_grouped", None)  # all layers of a kind are given the same mask
        if mask is None:
            mask = attention_mask.repeat(1, 1, n_groups, 1)
            if mask.dtype == torch.bool:
                mask = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)
            attention_mask._grouped = mask
        seen = torch.nn.functional.scaled_dot_product_attention(
            query.reshape(n_batch, -1, n_groups * n, width), key, value, attn_mask=mask, scale=how.get("scaling")
        )
        return seen.reshape(n_batch, n_heads, n, -1).transpose(1, 2).contiguous(), None

    AttentionInterface.register(_ATTENTION, grouped)
    AttentionMaskInterface.register(_ATTENTION, sdpa_mask)


def _is_usual(module: Any, mask: Any, how: dict[str, Any]) -> bool:
    """Attention without anything beside a scale and a mask that all heads share."""
    import torch

    more = ("position_bias", "s_aux", "softcap", "dropout")
    if any(how.get(name) for name in more):
        return False
    if mask is None:
        return bool(getattr(module, "is_causal", True)) and how.get("is_causal") is not False
    return bool(mask.dtype == torch.bool and mask.shape[1] == 1)


@functools.cache
def _growing() -> Any:
    from transformers.cache_utils import DynamicLayer

    from pilotfish.models.attention import attends, new_room

    class GrowingLayer(DynamicLayer):  # type: ignore[misc]
        """Keys and values are the filled part of a longer tensor; copies share it until one of them writes."""

        keys: Any
        values: Any
        room: Any = None
        shared = False

        def __copy__(self) -> GrowingLayer:
            twin = GrowingLayer()
            self.shared = True
            twin.__dict__.update(self.__dict__)
            return twin

        def keep(self, n: int, places: Sequence[int]) -> None:
            """Of the last ``n`` places keep these, in their order; a pass has just written them."""
            start = self.get_seq_length() - n
            end = start + len(places)
            for whole in self.room:
                whole[..., start:end, :] = whole[..., [start + place for place in places], :]
            self.keys, self.values = (whole[..., :end, :] for whole in self.room)

        def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            n = self.get_seq_length()
            end = n + key_states.shape[-2]
            if self.room is None or self.shared or end > self.room[0].shape[-2]:
                size = max(128, end + end // 2)
                old = (self.keys, self.values)
                if attends(key_states, value_states):
                    n_batch, n_shared, _, width = key_states.shape
                    self.room = new_room(n_batch, n_shared, (width, value_states.shape[3]), size)
                else:
                    self.room = tuple(
                        new.new_empty((*new.shape[:-2], size, new.shape[-1])) for new in (key_states, value_states)
                    )
                self.shared = False
                if n:
                    for new, before in zip(self.room, old, strict=True):
                        new[..., :n, :] = before
            for whole, new in zip(self.room, (key_states, value_states), strict=True):
                whole[..., n:end, :] = new
            self.keys, self.values = (whole[..., :end, :] for whole in self.room)
            return self.keys, self.values

    return GrowingLayer
