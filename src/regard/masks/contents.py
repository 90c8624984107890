"""Masks that hold what is seen: marked keys, a dense tensor, a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from regard import checks
from regard.masks.algebra import EMPTY, FULL, MIXED, Box, Held, Ints, Kinds, Mask, prepared


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
        some, every = prepared(self, box.batch, lambda: self._counts(box.batch))
        low, stop = box.key_low, box.key_high + 1
        kinds = np.where(some[stop] == some[low], EMPTY, MIXED)
        kinds[every[stop] - every[low] == stop - low] = FULL
        return kinds.astype(np.int8)

    def _counts(self, batch: Sequence[int]) -> tuple[Ints, Ints]:
        """How many keys before each one some and how many every batch row sees."""
        rows = self._rows().cpu().numpy()
        seen = rows[np.asarray(batch)] if len(rows) > 1 else rows
        some, every = (np.append(0, np.cumsum(line)) for line in (seen.any(0), seen.all(0)))
        return some, every

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.keep.tensor,)

    def misfits(self, batch: int | None, heads: int | None, queries: int, keys: int) -> list[str]:
        rows, count = self._rows().shape
        return [
            f"padding(keep) has {size} {name} and the matrix {wanted}"
            for size, name, wanted, fits in ((rows, "rows", batch, (1, batch)), (count, "keys", keys, (keys,)))
            if wanted is not None and not checks.one_of(size, *fits)
        ]

    @property
    def expression(self) -> str:
        return f"padding(keep of shape {tuple(self.keep.tensor.shape)})"

    @property
    def extent(self) -> tuple[int, int]:
        size = self.keep.tensor.shape[-1]
        return size, size


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
        rows, heads, queries, keys = shape = self._shape()
        answer = box.opaque
        if queries == keys == 1:  # a switch per batch row and head
            picked = (np.asarray(of) if n > 1 else [0] for of, n in ((box.batch, rows), (box.heads, heads)))
            on = self.tensor.tensor.cpu().numpy().reshape(shape)[np.ix_(*picked)]
            answer = FULL if on.all() else box.opaque if on.any() else EMPTY
        return np.full(box.key_low.shape, answer, np.int8)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.tensor.tensor,)

    def misfits(self, batch: int | None, heads: int | None, queries: int, keys: int) -> list[str]:
        shape = self._shape()
        wanted = tuple(n if w is None else w for n, w in zip(shape, (batch, heads, queries, keys), strict=True))
        if all(checks.one_of(n, 1, w) for n, w in zip(shape, wanted, strict=True)):
            return []
        return [f"dense mask of shape {checks.listed(self.tensor.tensor.shape)} does not broadcast to {checks.listed(wanted)}"]

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
        try:
            found = self.fn(batch, head, query, key)
        except RuntimeError as error:
            checks.where_failed(error, key.device, self.expression)
        return checks.where_result(found, wanted, key.device, self.expression)

    @property
    def opaque(self) -> bool:
        return True

    def box(self, box: Box) -> Kinds:
        return np.full(box.key_low.shape, box.opaque, np.int8)

    @property
    def expression(self) -> str:
        return f"where({getattr(self.fn, '__name__', type(self.fn).__name__)})"
