"""What the kernels are told of a mask: causal from which key on, and which keys everyone of a batch row and head sees."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from regard import checks
from regard.call import Call
from regard.masks import Mask
from regard.masks.algebra import EMPTY, FULL, And, Box
from regard.masks.contents import Dense, Keep
from regard.masks.intervals import Causal, CausalFrom, Lengths, Prefix


class Shape(NamedTuple):
    """What of a mask a kernel is told: causal from which key on (None = not at all), and masks of keys alone."""

    causal: int | None
    of_keys: tuple[Mask, ...]


def shape_of(call: Call) -> Shape | str:
    """The mask as a kernel takes it, or why it cannot."""
    axes, offset = call.axes, call.offset
    queries, keys = axes.queries, axes.keys
    if not isinstance(queries, range) or queries.step != 1 < len(queries):
        return "the queries are no run"
    if not isinstance(keys, range) or keys.step != 1 < len(keys):
        return "the keys are no run"
    if not isinstance(offset, int):
        if len({offset[b] for b in axes.batch}) > 1:
            return "each batch row has its own offset"
        offset = offset[axes.batch[0]]
    shift = queries.start - keys.start
    causal: int | None = None
    of_keys = []
    for part in call.mask.masks if isinstance(call.mask, And) else (call.mask,):
        if isinstance(part, (Causal, CausalFrom)):
            start = shift + (part.start if isinstance(part, CausalFrom) else offset)
            causal = start if causal is None else min(causal, start)
        elif _of_keys(part):
            of_keys.append(part)
        elif _kind(call, part, offset) != FULL:
            return f"PyTorch's kernel knows causal masks and masks of keys, and not {part}"
    if causal is not None and causal >= len(keys) - 1:
        causal = None
    return Shape(causal, tuple(of_keys))


def told(call: Call) -> Shape:
    """The mask of a call that a kernel takes."""
    shape = shape_of(call)
    if isinstance(shape, str):
        raise checks.Unsupported(f"backend 'fused' cannot answer: {shape}.")
    return shape


def _of_keys(mask: Mask) -> bool:
    """Whether every query of a batch row and head sees the same keys."""
    if isinstance(mask, Keep | Lengths | Prefix):
        return True
    if isinstance(mask, Dense):
        shape = mask.tensor.tensor.shape
        return len(shape) == 1 or shape[-2] == 1
    return bool(mask.parts()) and all(map(_of_keys, mask.parts()))


def _kind(call: Call, mask: Mask, offset: int) -> int:
    """EMPTY, MIXED or FULL over the whole matrix."""
    axes = call.axes
    if not all(call.shape):
        return EMPTY
    top, bottom, left, right = (np.array([n]) for axis in (axes.queries, axes.keys) for n in (axis[0], axis[-1]))
    return int(mask.box(Box(axes.batch, axes.heads, top, bottom, left, right, offset, offset))[0])


def kept(call: Call, shape: Shape) -> Tensor:
    """The keys that all masks of keys let see, (batch or 1, heads or 1, 1, keys)."""
    pairs = call.pairs(rows=slice(0, 1))
    seen = torch.ones((), dtype=torch.bool, device=call.device)
    for mask in shape.of_keys:
        seen = seen & mask._allows(*pairs)
    return seen.reshape((1,) * (4 - seen.ndim) + seen.shape)[..., :1, :]


class Block(NamedTuple):
    """One call of a kernel: keys begin … end - 1, rows from first on."""

    begin: int
    end: int
    first: int
    causal: bool

    def square(self, queries: int) -> bool:
        """Whether it is causal with as many of the queries as keys, or not causal."""
        return not self.causal or self.end - self.begin == queries - self.first

    def of(
        self, query: Tensor, key: Tensor, value: Tensor, added: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Its part of everything."""
        if self.first:
            query = query[..., self.first :, :]
        if (self.begin, self.end) != (0, key.shape[2]):
            columns = slice(self.begin, self.end)
            key, value = key[..., columns, :], value[..., columns, :]
            added = None if added is None else added[..., columns]
        return query, key, value, added


def blocks(shape: Shape, queries: int, keys: int) -> list[Block]:
    """The calls whose parts make the whole; keys that no row sees are left out."""
    causal = shape.causal
    if causal is None:
        return [Block(0, keys, 0, False)]
    if causal <= -queries:
        return []
    below = Block(max(causal, 0), min(keys, queries + causal), max(-causal, 0), True)
    return [below] if causal <= 0 else [Block(0, causal, 0, False), below]
