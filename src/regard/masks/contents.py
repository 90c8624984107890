"""Masks that hold what is seen: marked keys, a dense tensor, a function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regard import checks
from regard.masks.algebra import EMPTY, FULL, MIXED, Box, Held, Ints, Kinds, Mask


@dataclass(frozen=True, repr=False)
class Keep(Mask):
    """The keys that are marked True."""

    keep: Held

    def _rows(self) -> Tensor:
        return self.keep.tensor if self.keep.tensor.ndim == 2 else self.keep.tensor[None]

    def _allows(self, batch: Tensor, head: Tensor, query: Tensor, key: Tensor, position: Tensor) -> Tensor:
        rows = self._rows()
        return rows[batch if len(rows) != 1 else torch.zeros_like(key), key]

    def box(self, box: Box) -> Kinds:
        rows = self._rows().cpu().numpy()
        seen = rows[np.asarray(box.batch)] if len(rows) > 1 else rows
        return _count_kinds(np.any(seen, 0), np.all(seen, 0), box.key_low, box.key_high)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.keep.tensor,)

    def misfits(self, batch: int | None, heads: int | None, queries: int, keys: int) -> list[str]:
        rows, count = self._rows().shape
        return [
            f"padding(keep) has {size} {name} and the matrix {wanted}"
            for size, name, wanted, fits in ((rows, "rows", batch, (1, batch)), (count, "keys", keys, (keys,)))
            if wanted is not None and size not in fits
        ]

    @property
    def expression(self) -> str:
        return f"padding(keep of shape {tuple(self.keep.tensor.shape)})"

    @property
    def extent(self) -> tuple[int, int]:
        size = self.keep.tensor.shape[-1]
        return size, size


def _count_kinds(some: NDArray[np.bool_], every: NDArray[np.bool_], low: Ints, high: Ints) -> Kinds:
    """The kind of each run low … high of a line of keys, given which keys some and which every batch row sees."""
    some_before, every_before = (np.concatenate([[0], np.cumsum(line)]) for line in (some, every))
    empty = some_before[high + 1] == some_before[low]
    full = every_before[high + 1] - every_before[low] == high + 1 - low
    return np.where(full, FULL, np.where(empty, EMPTY, MIXED)).astype(np.int8)


@dataclass(frozen=True, repr=False)
class Dense(Mask):
    """A boolean tensor, broadcastable to (batch, heads, queries, keys)."""

    tensor: Held

    def _shape(self) -> tuple[int, ...]:
        shape = self.tensor.tensor.shape
        return (1,) * (4 - len(shape)) + tuple(shape)

    def _allows(self, batch: Tensor, head: Tensor, query: Tensor, key: Tensor, position: Tensor) -> Tensor:
        tensor = self.tensor.tensor
        zero = torch.zeros((), dtype=torch.int64, device=tensor.device)
        index = (x if n > 1 else zero for x, n in zip((batch, head, query, key), self._shape(), strict=True))
        return tensor[tuple(index)[4 - tensor.ndim :]]

    @property
    def opaque(self) -> bool:
        return True

    def box(self, box: Box) -> Kinds:
        return np.full(box.key_low.shape, box.opaque, np.int8)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.tensor.tensor,)

    def misfits(self, batch: int | None, heads: int | None, queries: int, keys: int) -> list[str]:
        shape = self._shape()
        wanted = tuple(n if w is None else w for n, w in zip(shape, (batch, heads, queries, keys), strict=True))
        if all(n in (1, w) for n, w in zip(shape, wanted, strict=True)):
            return []
        return [f"dense mask of shape {tuple(self.tensor.tensor.shape)} does not broadcast to {wanted}"]

    @property
    def expression(self) -> str:
        return f"dense({'×'.join(map(str, self.tensor.tensor.shape))})"

    @property
    def extent(self) -> tuple[int, int]:
        queries, keys = self._shape()[-2:]
        return (queries if queries != 1 else 8), (keys if keys != 1 else 8)


@dataclass(frozen=True, repr=False, eq=False)
class Where(Mask):
    """fn(batch, head, query, key) on broadcastable integer tensors."""

    fn: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Where) and self.fn is other.fn

    def __hash__(self) -> int:
        return hash((Where, id(self.fn)))

    def _allows(self, batch: Tensor, head: Tensor, query: Tensor, key: Tensor, position: Tensor) -> Tensor:
        wanted = torch.broadcast_shapes(batch.shape, head.shape, query.shape, key.shape)
        return checks.where_result(self.fn(batch, head, query, key), wanted, self.expression)

    @property
    def opaque(self) -> bool:
        return True

    def box(self, box: Box) -> Kinds:
        return np.full(box.key_low.shape, box.opaque, np.int8)

    @property
    def expression(self) -> str:
        return f"where({getattr(self.fn, '__name__', type(self.fn).__name__)})"
