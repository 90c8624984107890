"""A small picture of a large matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regard import checks
from regard.call import Call
from regard.readouts.base import Dense, Finished, FinishedReadout, Parts, zeros


@dataclass(frozen=True)
class Pool(FinishedReadout):
    """The matrix in rows × columns bins, (batch, heads, rows, columns), each the mean, sum or max of its cells.

    Bin a holds matrix rows ⌊a·queries/rows⌋ … ⌊(a+1)·queries/rows⌋ - 1, columns likewise: every cell is in one bin. Hidden
    cells count as 0; bins without a cell are 0. The maximum has no gradient.
    """

    bins: tuple[int, int]
    reduce: str = "mean"

    def __post_init__(self) -> None:
        if not isinstance(self.bins, tuple) or len(self.bins) != 2:
            raise TypeError(f"pool: bins must be a tuple of two integers, (rows, columns); got {self.bins!r}.")
        for name, number in zip(("rows", "columns"), self.bins, strict=True):
            checks.whole_number("pool", name, number, least=1)
        checks.choice("pool", "reduce", self.reduce, ("mean", "max", "sum"))

    def size(self, call: Call) -> int:
        return call.shape[0] * call.shape[1] * self.bins[0] * self.bins[1]

    def dense(self, matrix: Dense) -> Parts:
        weights, (rows, columns) = matrix.weights, self.bins
        bounds = [[a * n // bins for a in range(bins + 1)] for n, bins in zip(weights.shape[-2:], self.bins, strict=True)]
        picture = []
        for a in range(rows):
            for b in range(columns):
                cell = weights[..., bounds[0][a] : bounds[0][a + 1], bounds[1][b] : bounds[1][b + 1]].flatten(-2)
                empty = weights.new_zeros(weights.shape[:2])
                picture.append(getattr(cell, self.reduce.replace("max", "amax"))(-1) if cell.shape[-1] else empty)
        return (torch.stack(picture, -1).unflatten(-1, self.bins),)

    def start(self, call: Call) -> Tensor:
        return zeros(call, *self.bins)

    def add(self, state: Tensor, tile: Finished) -> None:
        top, row = self._bins(tile.call, 0, tile.rows)
        left, column = self._bins(tile.call, 1, tile.columns)
        corner = state[tile.batch, :, top : top + int(row[-1]) + 1, left : left + int(column[-1]) + 1]
        by_column = _reduced(tile.weights, column, corner.shape[-1], -1, self.reduce)
        pooled = _reduced(by_column, row, corner.shape[-2], -2, self.reduce)
        if self.reduce == "max":
            torch.maximum(corner, pooled, out=corner)
        else:
            corner.add_(pooled)

    def finish(self, state: Tensor, call: Call) -> Parts:
        return (state / self._counts(call) if self.reduce == "mean" else state,)

    def pull(self, tile: Finished, parts: Parts, grads: Parts) -> Tensor:
        if self.reduce == "max":
            raise checks.Unsupported("pool: the maximum has no gradient; use reduce='mean' or 'sum', or A.amax(-1).")
        grad = grads[0] / self._counts(tile.call) if self.reduce == "mean" else grads[0]
        (top, row), (left, column) = self._bins(tile.call, 0, tile.rows), self._bins(tile.call, 1, tile.columns)
        return grad[tile.batch].index_select(-2, row + top).index_select(-1, column + left)

    def _bins(self, call: Call, axis: int, part: slice) -> tuple[int, Tensor]:
        """The first bin of a run of rows or columns, and the bin of each of them counted from it."""
        count, bins = call.shape[2 + axis], self.bins[axis]
        index = torch.arange(part.start, part.stop, device=call.device)
        bin_of = ((index + 1) * bins - 1) // count
        first = ((part.start + 1) * bins - 1) // count
        return first, bin_of - first

    def _counts(self, call: Call) -> Tensor:
        """How many cells each bin has, at least 1."""
        sizes = []
        for count, bins in zip(call.shape[2:], self.bins, strict=True):
            bounds = torch.arange(bins + 1, device=call.device) * count // bins
            sizes.append(bounds.diff())
        return (sizes[0][:, None] * sizes[1]).clamp_min(1).to(call.dtype)


def _reduced(tile: Tensor, bins: Tensor, count: int, axis: int, reduce: str) -> Tensor:
    shape = list(tile.shape)
    shape[axis] = count
    how = "amax" if reduce == "max" else "sum"
    index = (bins if axis == -1 else bins[:, None]).expand_as(tile)
    return tile.new_zeros(shape).scatter_reduce_(axis, index, tile, how)  # weights are ≥ 0, so 0 starts a maximum too
