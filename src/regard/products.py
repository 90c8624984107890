"""Products of a tile of weights with rows of numbers, which hidden pairs never take part in.

Heads may share what they are multiplied with: with `kv` groups of rows, heads h·kv/heads of them meet group h. A number
that is not finite reaches the result (as NaN) only through pairs that are seen; 0 · NaN never happens to a hidden one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def average(
    weights: Float[Tensor, "b h r c"], value: Float[Tensor, "b kv c d"], hidden: Bool[Tensor, "#b #h #r #c"] | None
) -> Float[Tensor, "b h r d"]:
    """Σ_c weights · value, row by row."""
    return _guarded(_rows, weights, value, hidden)


def collect(
    weights: Float[Tensor, "b h r c"],
    rows: Float[Tensor, "b hr r d"],
    hidden: Bool[Tensor, "#b #h #r #c"] | None,
    kv: int,
) -> Float[Tensor, "b kv c d"]:
    """Σ_r weightsᵀ · rows, column by column, summed over the heads of each of kv groups."""

    def columns(w: Tensor, x: Tensor) -> Tensor:
        b, h, r, c = w.shape
        x = x.expand(b, h, r, x.shape[-1])
        folded = w.reshape(b, kv, h // kv * r, c) if kv else w
        return folded.mT @ x.reshape(b, kv, h // kv * r, x.shape[-1]) if kv else w.mT @ x

    return _guarded(columns, weights, rows, hidden)


def _rows(w: Tensor, x: Tensor) -> Tensor:
    b, h, r, c = w.shape
    kv = x.shape[1]
    if kv in (h, 0):
        return w @ x
    return (w.reshape(b, kv, h // kv * r, c) @ x).reshape(b, h, r, x.shape[-1])


def dots(rows: Float[Tensor, "b h r d"], columns: Float[Tensor, "b kv c d"]) -> Float[Tensor, "b h r c"]:
    """rows · columnsᵀ, each head with its group's columns."""
    return _rows(rows, columns.mT)


def _guarded(product: Callable[[Tensor, Tensor], Tensor], weights: Tensor, x: Tensor, hidden: Tensor | None) -> Tensor:
    if bool(torch.isfinite(x.sum())):  # a sum that overflows only takes the careful way
        return product(weights, x)
    bad = ~torch.isfinite(x)
    clean = product(weights, x.masked_fill(bad, 0))
    seen = torch.ones_like(weights) if hidden is None else (~hidden).to(weights.dtype).expand(weights.shape)
    return clean.masked_fill(product(seen, bad.to(weights.dtype)) > 0, float("nan"))
