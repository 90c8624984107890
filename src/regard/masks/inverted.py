"""Masks in the convention of torch.nn.MultiheadAttention, where True hides."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from regard import checks
from regard.masks.algebra import Held, Mask, full
from regard.masks.contents import Dense, Keep
from regard.masks.intervals import CausalFrom


def from_torch(attn_mask: Tensor | None = None, key_padding_mask: Tensor | None = None, *, heads: int | None = None) -> Mask:
    """The boolean masks of torch.nn.MultiheadAttention and torch.nn.Transformer, in which True = may not attend.

    Pair (i, j) of batch row b and head h may meet if neither attn_mask[i, j] nor key_padding_mask[b, j] is True.

    Args:
        attn_mask: (queries, keys), or (batch · heads, queries, keys) together with heads. Outside of CUDA and compiled graphs
            it is looked at once: what hides exactly the keys after each query becomes ``causal_from(0)``, which is faster.
        key_padding_mask: (keys,) or (batch, keys), True for padding.
        heads: how many heads a three-dimensional attn_mask holds for each batch row; (heads, queries, keys) without a batch.

    The inverse of each tensor is taken here: a later change of the tensor in place does not reach the mask. Floats that
    PyTorch adds to the scores are a bias, ``regard.biases.dense(tensor)``, and are refused here. The boolean attn_mask of
    torch.nn.functional.scaled_dot_product_attention is not inverted: that one is ``masks.dense(attn_mask)``.

    Raises:
        TypeError: a mask that is not boolean. ShapeError: dimensions that are none of these, or a first one that heads does
            not divide.

    >>> from_torch(key_padding_mask=torch.tensor([False, False, True])).to_dense(1, 3)
    tensor([[[[ True,  True, False]]]])
    """
    mask = full
    if attn_mask is not None:
        mask = _of_pairs(_boolean("attn_mask", attn_mask, most=3), heads)
    if key_padding_mask is not None:
        mask = mask & Keep(Held(~_boolean("key_padding_mask", key_padding_mask, most=2)))
    return mask


def _of_pairs(hidden: Tensor, heads: int | None) -> Mask:
    if hidden.ndim == 1:
        raise checks.ShapeError(
            f"from_torch: attn_mask must be (queries, keys) or (batch · heads, queries, keys); got shape "
            f"{checks.listed(hidden.shape)}. "
            "Keys that nobody may see are key_padding_mask=tensor."
        )
    if hidden.ndim == 2:
        return CausalFrom(0) if hides_what_comes_later(hidden) else Dense(Held(~hidden))
    if heads is None:
        raise checks.ShapeError(
            f"from_torch: an attn_mask of shape {checks.listed(hidden.shape)} is (batch · heads, queries, keys): give heads=… "
            "as well."
        )
    heads = checks.whole_number("from_torch", "heads", heads, least=1)
    if hidden.shape[0] % heads:
        raise checks.ShapeError(
            f"from_torch: heads must divide the first dimension of attn_mask, batch · heads; got heads {heads} and shape "
            f"{checks.listed(hidden.shape)}."
        )
    return Dense(Held(~hidden.unflatten(0, (hidden.shape[0] // heads, heads))))


def hides_what_comes_later(hidden: Tensor) -> bool:
    """Whether True stands exactly where key > query; False where looking would wait for a device or end a graph."""
    if torch.compiler.is_compiling() or hidden.device.type == "cuda" or not hidden.numel():
        return False
    if bool(hidden[-1, 0]) or (hidden.shape[1] > 1 and not bool(hidden[0, -1])):
        return False
    return torch.equal(hidden, torch.ones_like(hidden).triu_(1))


def _boolean(name: str, mask: object, most: int) -> Tensor:
    if isinstance(mask, Tensor) and mask.dtype != torch.bool:
        _refuse(name, mask)
    return checks.boolean_mask(f"from_torch({name})", mask, most)


def _refuse(name: str, mask: Tensor) -> NoReturn:
    if mask.is_floating_point():
        hint = "Numbers that are added to the scores are a bias: regard.biases.dense(tensor), whose -inf hides a pair."
    else:
        hint = "If 1 means may not attend, give tensor.bool()."
    raise TypeError(
        f"from_torch: {name} must be boolean, True = may not attend; got {mask.dtype} of shape {checks.listed(mask.shape)}. "
        f"{hint}"
    )
