"""Chosen rows of the matrix, or all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from regard import checks
from regard.call import Call
from regard.readouts.base import Dense, Finished, FinishedReadout, Parts, columns_of, zeros


@dataclass(frozen=True)
class Lines(FinishedReadout):
    """What chosen rows and chosen columns have in common."""

    indices: tuple[int, ...]

    axis: ClassVar[int]  # of the matrix, counted from the end
    of: ClassVar[str]  # what is counted along it

    def __post_init__(self) -> None:
        if not isinstance(self.indices, tuple):
            raise TypeError(f"{self.name}: indices must be a tuple of integers; got {self.indices!r}.")
        for index in self.indices:
            checks.whole_number(self.name, "an index", index)

    def size(self, call: Call) -> int:
        return math.prod(self._shape(call))

    def dense(self, matrix: Dense) -> Parts:
        self._check(matrix.call)
        return (matrix.weights.index_select(self.axis, _tensor(self.indices, matrix.weights)),)

    def start(self, call: Call) -> Tensor:
        self._check(call)
        return zeros(call, *self._shape(call)[2:])

    def touches(self, call: Call, rows: slice, columns: slice) -> bool:
        part = (rows, columns)[self.axis]
        return any(part.start <= i < part.stop for i in self.indices)

    def add(self, state: Tensor, tile: Finished) -> None:
        places, lines = self._inside(tile)
        self._along(state, tile).index_copy_(self.axis, places, tile.weights.index_select(self.axis, lines))

    def pull(self, tile: Finished, parts: Parts, grads: Parts) -> Tensor:
        places, lines = self._inside(tile)  # a line may be chosen twice
        grad = self._along(grads[0], tile).index_select(self.axis, places)
        return torch.zeros_like(tile.weights).index_add_(self.axis, lines, grad)

    def _inside(self, tile: Finished) -> tuple[Tensor, Tensor]:
        """The place in the answer, and in the tile, of each chosen line that meets it."""
        part = (tile.rows, tile.columns)[self.axis]
        places = [n for n, i in enumerate(self.indices) if part.start <= i < part.stop]
        return _tensor(places, tile.weights), _tensor([self.indices[n] - part.start for n in places], tile.weights)

    def _along(self, answer: Tensor, tile: Finished) -> Tensor:
        """The part of the answer that a tile meets, with all chosen lines."""
        return answer[tile.batch, :, :, tile.columns] if self.axis == -2 else tile.of_rows(answer)

    def _shape(self, call: Call) -> list[int]:
        shape = list(call.shape)
        shape[self.axis] = len(self.indices)
        return shape

    def _check(self, call: Call) -> None:
        count = call.shape[self.axis]
        if any(i >= count for i in self.indices):
            raise IndexError(f"{self.name}: indices must be below the {count} {self.of}; got {max(self.indices)}.")


def _tensor(indices: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(indices, dtype=torch.int64, device=like.device)


@dataclass(frozen=True)
class Rows(Lines):
    """The weights of chosen queries, (batch, heads, chosen, keys); 0 where a key is hidden.

    indices: a tuple of integers from 0 to queries - 1. A[…, indices, :] asks the same for less work; this rides the sweep
    of other questions. Raises TypeError, ValueError, IndexError for indices that are none.

    >>> S.read(Rows((2,))).rows
    tensor([[0.1250, 0.3750, 0.5000]])
    """

    axis: ClassVar[int] = -2
    of: ClassVar[str] = "queries"


@dataclass(frozen=True)
class Weights(FinishedReadout):
    """The dense matrix, (batch, heads, queries, keys). Asked as A.to_dense(), which guards its size."""

    def size(self, call: Call) -> int:
        return columns_of(call) * call.shape[2]

    def dense(self, matrix: Dense) -> Parts:
        return (matrix.weights,)

    def start(self, call: Call) -> Tensor:
        return zeros(call, *call.shape[2:])

    def add(self, state: Tensor, tile: Finished) -> None:
        state[tile.batch, :, tile.rows, tile.columns] = tile.weights

    def pull(self, tile: Finished, parts: Parts, grads: Parts) -> Tensor:
        return grads[0][tile.batch, :, tile.rows, tile.columns]
