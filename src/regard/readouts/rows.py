"""Chosen rows of the matrix, or all of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from regard import checks
from regard.call import Call
from regard.readouts.base import Dense, Finished, FinishedReadout, Parts, columns_of, zeros


@dataclass(frozen=True)
class Rows(FinishedReadout):
    """The weights of chosen queries, (batch, heads, chosen, keys). A[…, indices, :] asks the same for less work."""

    indices: tuple[int, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.indices, tuple):
            raise TypeError(f"rows: indices must be a tuple of integers; got {self.indices!r}.")
        for index in self.indices:
            checks.whole_number("rows", "an index", index)

    def size(self, call: Call) -> int:
        return columns_of(call) * len(self.indices)

    def dense(self, matrix: Dense) -> Parts:
        self._check(matrix.call)
        return (matrix.weights[..., list(self.indices), :],)

    def start(self, call: Call) -> Tensor:
        self._check(call)
        return zeros(call, len(self.indices), call.shape[3])

    def touches(self, call: Call, rows: slice, columns: slice) -> bool:
        return any(rows.start <= i < rows.stop for i in self.indices)

    def add(self, state: Tensor, tile: Finished) -> None:
        for place, row in self._inside(tile):
            state[tile.batch, :, place, tile.columns] = tile.weights[:, :, row]

    def pull(self, tile: Finished, parts: Parts, grads: Parts) -> Tensor:
        grad = tile.weights.new_zeros(tile.weights.shape)
        for place, row in self._inside(tile):
            grad[:, :, row] += grads[0][tile.batch, :, place, tile.columns]
        return grad

    def _inside(self, tile: Finished) -> list[tuple[int, int]]:
        """(place in the answer, row of the tile) of each chosen query in the tile."""
        rows = tile.rows
        return [(n, i - rows.start) for n, i in enumerate(self.indices) if rows.start <= i < rows.stop]

    def _check(self, call: Call) -> None:
        if any(i >= call.shape[2] for i in self.indices):
            raise IndexError(f"rows: indices must be below the {call.shape[2]} queries; got {max(self.indices)}.")


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
