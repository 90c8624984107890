"""Hugging Face models whose ``outputs.attentions`` are lazy matrices.

Importing this module registers ``attn_implementation="regard"``. With it and ``output_attentions=True`` every element
of ``outputs.attentions`` (and of encoder, decoder and cross attentions, and of ``generate(...).attentions[step]``) is a
`regard.Attention`, and neither the weights nor the mask are ever stored.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers import masking_utils as theirs

import regard
from regard import biases, masks
from regard.checks import Unsupported
from regard.masks.algebra import version

__all__ = ["NAME", "require"]

NAME = "regard"

# What a model may hand over that changes the weights, and that would silently be lost if it were ignored.
REFUSED = {
    "indices": "a choice of keys per query",
    "block_indices": "a choice of blocks of keys per query",
    "cache": "a paged cache",
}


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: LazyMask | Tensor | None,
    dropout: float = 0.0,  # stays the sixth: some callers pass it by position
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, regard.Attention]:
    """The layer's output, (batch, queries, heads, value_dim), and its attention matrix.

    query is (batch, heads, queries, dim); key and value have kv_heads heads, which may be fewer.
    """
    _refuse_arguments(type(module).__name__, kwargs)
    mask, bias, offset = _read_mask(module, attention_mask, query.shape[-2], is_causal)
    if (added := kwargs.get("position_bias")) is not None:
        bias = biases.dense(added) if bias is None else bias + biases.dense(added)
    sinks = kwargs.get("s_aux")
    if query.shape[0] == 1 < key.shape[0]:  # learned queries, shared by every row
        query = query.expand(key.shape[0], -1, -1, -1)
    if not key.requires_grad and key._version:  # changed in place before: a static cache, which will change it again
        key = key.clone()
    weights = regard.attention(
        query,
        key,
        mask=mask,
        bias=bias,
        scale=scaling,
        softcap=kwargs.get("softcap"),
        sinks=kwargs.get("sinks") if sinks is None else sinks,
        offset=offset,
    )
    if dropout > 0:
        weights = weights.dropout(dropout, int(torch.randint(2**60, ())))
    output: Tensor = weights @ value
    return output.transpose(1, 2).contiguous(), weights


def mask_forward(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Tensor] = theirs.causal_mask_function,
    attention_mask: LazyMask | Tensor | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    config: Any = None,
    **kwargs: Any,
) -> LazyMask:
    """The mask that transformers describes by an index function, as a `regard.masks.Mask`: never a tensor of n x n."""
    if isinstance(attention_mask, LazyMask):  # generate() prepares masks, and the model asks for them again
        return attention_mask
    shift = int(q_offset)  # static caches count in a tensor
    mask = _translate(mask_function, shift, kv_offset, use_vmap)
    padding = theirs.prepare_padding_mask(attention_mask, kv_length, kv_offset)
    if padding is not None:
        keep = padding[:, kv_offset : kv_offset + kv_length].bool()
        mask = mask if bool(keep.all()) else mask & masks.padding(keep=keep)
    model_type = getattr(config, "model_type", None) or "of this model"
    shape = torch.Size((batch_size, 1, q_length, kv_length))
    return LazyMask(mask, shift - kv_offset, shape, torch.device(device), model_type)


def require(model: PreTrainedModel) -> None:
    """Raise `regard.checks.Unsupported` unless every attention layer of the model goes through regard."""
    for part in (m for m in model.modules() if isinstance(m, PreTrainedModel)):
        _refuse_outsider(type(part), part.config.model_type)
        used = part.config._attn_implementation
        if used != NAME:
            raise Unsupported(
                f'regard.transformers: {type(part).__name__} uses attn_implementation="{used}"; load it with '
                f'attn_implementation="{NAME}" or call model.set_attn_implementation("{NAME}").'
            )


class _MaskTouched(Unsupported, AttributeError):
    """Also an AttributeError, so that hasattr(mask, ...) answers False."""


@dataclass(frozen=True, eq=False)
class LazyMask:
    """What a model carries from transformers' mask functions to its attention layers: a mask, and no tensor.

    It can be carried, and nothing else: a model that computes with it does its attention by itself, and is told so.
    """

    mask: masks.Mask
    offset: int
    shape: torch.Size
    device: torch.device
    model_type: str

    ndim = 4

    def contiguous(self) -> LazyMask:
        """Itself: generate() asks for this before it passes a prepared mask on."""
        return self

    def _touched(self, what: str) -> Unsupported:
        return _MaskTouched(
            f"regard.transformers: {self.model_type} models compute with their attention mask ({what}) outside "
            'transformers\' AttentionInterface, so their weights cannot be lazy; use attn_implementation="eager".'
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by copy, pickle and inspection: an ordinary absence
            raise AttributeError(name)
        raise self._touched(f"mask.{name}")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        mask = next(a for a in (*args, *(kwargs or {}).values()) if isinstance(a, cls))
        raise mask._touched(getattr(func, "__name__", "a torch function"))


def _forbid(name: str) -> Callable[..., Any]:
    def operator(self: LazyMask, *_: Any) -> Any:
        raise self._touched(name)

    return operator


# Python looks operators up on the class, past __getattr__.
_OPERATORS = """getitem len iter bool invert neg and rand or ror eq ne lt le gt ge
    add radd sub rsub mul rmul truediv rtruediv"""
for _name in _OPERATORS.split():
    setattr(LazyMask, f"__{_name}__", _forbid(_name))


def _read_mask(
    module: nn.Module, mask: LazyMask | Tensor | None, queries: int, is_causal: bool | None
) -> tuple[masks.Mask | None, biases.Bias | None, int | None]:
    """The mask, the bias and the offset that belong to what the layer was given."""
    if isinstance(mask, LazyMask):
        return mask.mask, None, mask.offset
    if mask is not None:
        return *_from_tensor(mask), None
    # No mask means what it means to transformers' own fused attention: the module says whether it is causal, a single
    # query sees everything, and several queries are the first positions (they prefill a longer, still empty cache).
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    return (masks.causal, None, 0) if causal and queries > 1 else (None, None, None)


_read_before = WeakTensorKeyDictionary()  # one tensor serves every layer: reading it once lets them share a plan


def _from_tensor(mask: Tensor) -> tuple[masks.Mask | None, biases.Bias | None]:
    """A user's own four-dimensional mask: booleans, or numbers to add, which are a mask where they only hide."""
    if mask.dtype == torch.bool:
        return masks.dense(mask), None
    changes = version(mask)
    known: tuple[int, Any] | None = _read_before.get(mask)
    if known is not None and known[0] == changes >= 0:  # without a count, a change would go unnoticed
        return known[1]
    if not mask.is_floating_point():
        raise Unsupported(
            f"regard.transformers: an attention mask of {mask.dtype} does not say what its numbers mean; use booleans, "
            "True = may attend."
        )
    hidden = mask <= torch.finfo(mask.dtype).min / 2
    only_hides = bool((hidden | (mask == 0)).all())
    read = (masks.dense(~hidden), None) if only_hides else (None, biases.dense(mask.masked_fill(hidden, -torch.inf)))
    _read_before[mask] = (changes, read)
    return read


def _refuse_arguments(layer: str, arguments: dict[str, Any]) -> None:
    """Stop where leaving an argument out would change the weights."""
    for name, meaning in REFUSED.items():
        if arguments.get(name) is not None:
            raise Unsupported(
                f"regard.transformers: {layer} passes {name} ({meaning}), which is not supported yet; "
                'use attn_implementation="eager".'
            )


@dataclass(frozen=True)
class _IndexFunction:
    """A mask function of transformers on regard's indices, which count from the first query and the first key."""

    function: Callable[..., Tensor]
    q_offset: int
    kv_offset: int
    one_by_one: bool  # a user's function may only work on scalars, and is then mapped over the tile

    def __call__(self, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        indices = (batch, head, query + self.q_offset, key + self.kv_offset)
        if not self.one_by_one:
            return self.function(*indices)
        indices = torch.broadcast_tensors(*indices)
        with theirs.TransformGetItemToIndex():
            allowed: Tensor = torch.vmap(self.function)(*(x.flatten() for x in indices))
        return allowed.view(indices[0].shape)

    @property
    def __name__(self) -> str:
        return getattr(self.function, "__qualname__", "function").split(".")[0]


# transformers makes its mask functions by closures. Those whose code is the same as these are known by their variables.
_AND = theirs.and_masks(theirs.causal_mask_function).__code__
_SLIDING = theirs.sliding_window_overlay(1).__code__
_SLIDING_BOTH_WAYS = theirs.sliding_window_bidirectional_overlay(1).__code__


def _translate(function: Callable[..., Tensor], q_offset: int, kv_offset: int, one_by_one: bool) -> masks.Mask:
    """The mask of a mask function: by name where it is known, so that tiles can be skipped, else tile by tile."""
    if function is theirs.causal_mask_function:
        return masks.causal
    if function is theirs.bidirectional_mask_function:
        return masks.full
    code = getattr(function, "__code__", None)
    if code in (_AND, _SLIDING, _SLIDING_BOTH_WAYS):
        held = inspect.getclosurevars(function).nonlocals
        if code is _AND:
            parts = [_translate(f, q_offset, kv_offset, one_by_one) for f in held["mask_functions"]]
            return functools.reduce(lambda a, b: a & b, parts)
        size = held["sliding_window"]
        return masks.window(size - 1, sys.maxsize) if code is _SLIDING else masks.window(size)
    return masks.where(_IndexFunction(function, q_offset, kv_offset, one_by_one))


def _refuse_outsider(model: type[PreTrainedModel], model_type: str) -> None:
    """Stop at a class whose attention layers transformers does not let anyone replace."""
    try:
        inspect.getsource(sys.modules[model.__module__])
    except (KeyError, OSError, TypeError):
        return  # transformers looks at the source; without one the answer is unknown, and the mask will tell
    if not model._can_set_attn_implementation():
        raise Unsupported(
            f"regard.transformers: {model.__name__} (model type {model_type}) does its attention outside transformers' "
            'AttentionInterface, so its weights cannot be lazy; use attn_implementation="eager".'
        )


def _watch_requests() -> None:
    """Let every request for "regard" be checked against the class that it is made of.

    transformers asks a class about flash and sdpa only. Any other name it accepts, and some classes then ignore it:
    that would end in dense weights without a word.
    """
    choose, switch = PreTrainedModel.get_correct_attn_implementation, PreTrainedModel.set_attn_implementation

    @functools.wraps(choose)
    def checked_choice(self: PreTrainedModel, requested_attention: str | None, *args: Any, **kwargs: Any) -> Any:
        if requested_attention == NAME:
            _refuse_outsider(type(self), self.config.model_type)
        return choose(self, requested_attention, *args, **kwargs)

    @functools.wraps(switch)
    def checked_switch(self: PreTrainedModel, attn_implementation: Any, *args: Any, **kwargs: Any) -> Any:
        if attn_implementation == NAME:
            for part in (m for m in self.modules() if isinstance(m, PreTrainedModel)):
                _refuse_outsider(type(part), part.config.model_type)
        return switch(self, attn_implementation, *args, **kwargs)

    PreTrainedModel.get_correct_attn_implementation = checked_choice
    PreTrainedModel.set_attn_implementation = checked_switch


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, mask_forward)
_watch_requests()
