"""What transformers says about who may attend to whom, as masks and biases of regard: index functions, never n x n."""

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
from transformers import masking_utils as theirs

from regard import biases, masks
from regard.checks import Unsupported
from regard.masks.algebra import And, version
from regard.transformers.lazymask import LazyMask

NOTHING = masks.prefix(0)


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
        behind = kv_length - (shift - kv_offset + q_length)  # of the last query: the empty end of a static cache
        if behind > 0 and not torch.compiler.is_compiling() and _looks_back(mask):
            keep = torch.nn.functional.pad(keep[:, :-behind], (0, behind), value=True)
        mask = mask & _kept(keep, q_length)
    shape = torch.Size((batch_size, 1, q_length, kv_length))
    model_type = getattr(config, "model_type", None) or "of this model"
    # An indexer scores every pair by itself to choose keys, and asks for the mask as a tensor.
    indexed = getattr(config, "index_topk", None) is not None
    return LazyMask(mask, shift - kv_offset, shape, torch.device(device), model_type, kv_offset, indexed)


def _looks_back(mask: masks.Mask) -> bool:
    """Whether it hides every key behind the query, kept or not."""
    return mask is masks.causal or (isinstance(mask, And) and any(map(_looks_back, mask.parts())))


def _kept(keep: Tensor, queries: int) -> masks.Mask:
    """The mask of the keys that are no padding.

    At a step of decoding, where every step has its own, as the first and last real key of each row: memory without keys.
    """
    if torch.compiler.is_compiling():  # a graph has no values to look at
        return masks.padding(keep=keep)
    if bool(keep.all()):
        return masks.full
    if queries == 1:
        counts, first = keep.sum(-1), keep.int().argmax(-1)
        last = keep.shape[-1] - keep.flip(-1).int().argmax(-1)
        if bool((last - first == counts).all()):
            inner = masks.padding(last.tolist()) if bool((last < keep.shape[-1]).any()) else masks.full
            return inner & ~masks.padding(first.tolist()) if bool(first.any()) else inner
    return masks.padding(keep=keep)


def read_mask(
    module: nn.Module, mask: LazyMask | Tensor | None, queries: int, is_causal: bool | None
) -> tuple[masks.Mask | None, biases.Bias | None, int | None]:
    """The mask, the bias and the offset that belong to what the layer was given."""
    if isinstance(mask, LazyMask):
        return mask.mask, None, mask.offset
    if mask is not None:
        return *from_tensor(mask), None
    # No mask means what it means to transformers' own fused attention: the module says whether it is causal, a single
    # query sees everything, and several queries are the first positions (they prefill a longer, still empty cache).
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    return (masks.causal, None, 0) if causal and queries > 1 else (None, None, None)


_read_before = WeakTensorKeyDictionary()  # one tensor serves every layer: reading it once lets them share a plan


def from_tensor(mask: Tensor) -> tuple[masks.Mask | None, biases.Bias | None]:
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
        if code is _SLIDING:  # a window of 0 keys belongs to configurations whose layers do not slide
            return masks.window(size - 1, sys.maxsize) if size > 0 else NOTHING
        return masks.window(size)
    return masks.where(_IndexFunction(function, q_offset, kv_offset, one_by_one))
