"""A small picture of a large matrix."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from regard import checks
from regard.call import Call
from regard.readouts.base import Dense, Finished, FinishedReadout, Parts, zeros


@dataclass(frozen=True)
class Pool(FinishedReadout):
    """The matrix in rows × columns bins, (batch, heads, rows, columns), each the mean, sum or max of its cells.

    Bin a holds matrix rows ⌊a·queries/rows⌋ … ⌊(a+1)·queries/rows⌋ - 1, columns likewise: every cell is in one bin. Hidden
    cells count as 0; bins without a cell are 0. The gradient of a maximum goes to one of its cells.

    bins: a tuple of two integers from 1 on; reduce: 'mean', 'sum' or 'max'. Raises TypeError or ValueError for others.

    >>> S.read(Pool((1, 3), "max")).pool
    tensor([[1.0000, 0.7500, 0.5000]])
    >>> A.read(Pool((3, 2))).pool.shape
    torch.Size([2, 4, 3, 2])
    """

    bins: tuple[int, int]
    reduce: str = "mean"

    def __post_init__(self) -> None:
        if not isinstance(self.bins, tuple) or len(self.bins) != 2:
            raise TypeError(f"pool: bins must be a tuple of two integers, (rows, columns); got {self.bins!r}.")
        for name, number in zip(("rows", "columns"), self.bins, strict=True):
            checks.whole_number("pool", name, number, least=1)
        checks.choice("pool", "reduce", self.reduce, ("mean", "max", "sum"))

    @property
    def differentiable(self) -> tuple[bool, ...]:  # type: ignore[override]  # the other readouts have one for the class
        """The picture; with 'max' also where each maximum lies, j · queries + i, -1 where it is 0: for the gradient only."""
        return (True, False) if self.reduce == "max" else (True,)

    def size(self, call: Call) -> int:
        return call.shape[0] * call.shape[1] * self.bins[0] * self.bins[1]

    def dense(self, matrix: Dense) -> Parts:
        weights, queries = matrix.weights, matrix.call.shape[2]
        tops, lefts = ([a * n // bins for a in range(bins + 1)] for n, bins in zip(weights.shape[-2:], self.bins, strict=True))
        picture, places = [], []
        for top, bottom in pairwise(tops):
            for left, right in pairwise(lefts):
                cells = weights[..., top:bottom, left:right].mT.flatten(-2)  # column by column: of equal ones the first
                if not cells.shape[-1]:
                    cells = weights.new_zeros((*weights.shape[:2], 1))
                if self.reduce == "max":
                    value, place = cells.max(-1)
                    height = max(bottom - top, 1)
                    place = (left + place // height) * queries + top + place % height
                    places.append(place.masked_fill(value == 0, -1))
                else:
                    value = cells.mean(-1) if self.reduce == "mean" else cells.sum(-1)
                picture.append(value)
        return tuple(torch.stack(part, -1).unflatten(-1, self.bins) for part in (picture, places) if part)

    def start(self, call: Call) -> Parts:
        checks.fits_picture(self.bins, call.shape, call.dtype.itemsize)
        picture = zeros(call, *self.bins)
        return (picture, torch.full_like(picture, -1, dtype=torch.int64)) if self.reduce == "max" else (picture,)

    def add(self, state: Parts, tile: Finished) -> None:
        corner, row, column = self._met(state, tile)
        if self.reduce == "max":
            _raise_to(corner, tile, row, column)
        else:  # rows first: whole rows are added at the speed of memory, and leave little for the columns
            by_row = tile.weights.new_zeros((*tile.weights.shape[:2], corner[0].shape[-2], tile.weights.shape[-1]))
            corner[0].index_add_(-1, column, by_row.index_add_(-2, row, tile.weights))

    def finish(self, state: Parts, call: Call) -> Parts:
        return (state[0] / self._counts(call),) if self.reduce == "mean" else state

    def public(self, parts: Parts) -> Tensor:
        return parts[0]

    def pull(self, tile: Finished, parts: Parts, grads: Parts) -> Tensor:
        if self.reduce == "max":
            (grad, place), _, _ = self._met((grads[0], parts[1]), tile)
            return _at_maxima(tile, grad, place)
        (grad,), row, column = self._met((grads[0] / self._counts(tile.call) if self.reduce == "mean" else grads[0],), tile)
        return grad.index_select(-1, column).index_select(-2, row)

    def delta(self, call: Call, parts: Parts, grads: Parts) -> Tensor | None:
        if self.reduce != "max":
            return None
        rows = max(call.shape[2], 1)
        share = (parts[0] * grads[0]).masked_fill(parts[1] < 0, 0)
        return zeros(call, rows).scatter_add_(-1, (parts[1] % rows).flatten(-2), share.flatten(-2))[..., : call.shape[2]]

    def _met(self, parts: Parts, tile: Finished) -> tuple[Parts, Tensor, Tensor]:
        """The bins that a tile meets, of each part, and the bin among them of each of its rows and columns."""
        row, column = self._bins(tile.call, 0, tile.rows), self._bins(tile.call, 1, tile.columns)
        top, left = self._bin(tile.call, 0, tile.rows.start), self._bin(tile.call, 1, tile.columns.start)
        bottom, right = self._bin(tile.call, 0, tile.rows.stop - 1), self._bin(tile.call, 1, tile.columns.stop - 1)
        corners = tuple(part[tile.batch, :, top : bottom + 1, left : right + 1] for part in parts)
        return corners, row - top, column - left

    def _bin(self, call: Call, axis: int, index: int) -> int:
        """The bin of a row or column."""
        return ((index + 1) * self.bins[axis] - 1) // call.shape[2 + axis]

    def _bins(self, call: Call, axis: int, part: slice) -> Tensor:
        """The bin of each of a run of rows or columns."""
        index = torch.arange(part.start, part.stop, device=call.device)
        return ((index + 1) * self.bins[axis] - 1) // call.shape[2 + axis]

    def _counts(self, call: Call) -> Tensor:
        """How many cells each bin has, at least 1."""
        sizes = []
        for count, bins in zip(call.shape[2:], self.bins, strict=True):
            bounds = torch.arange(bins + 1, device=call.device) * count // bins
            sizes.append(bounds.diff())
        return (sizes[0][:, None] * sizes[1]).clamp_min(1).to(call.dtype)


def _raise_to(corner: Parts, tile: Finished, row: Tensor, column: Tensor) -> None:
    """Raises bins to the greatest weight of the tile in them, in place, and notes where it lies.

    Of equal ones the least j · queries + i counts, in whatever order the tiles come. Maxima alone are ten times as fast as
    maxima with their places, so the place of a row is looked for only in the one column that holds the maximum.
    """
    rows, of_row = _members(row)
    columns, of_column = _members(column)
    runs = _grouped(tile.weights, -2, of_row)  # (b, h, bins, rows, c)
    value, which = _grouped(runs.amax(-2), -1, of_column).max(-1)
    j = of_column.expand((*value.shape, -1)).gather(-1, which[..., None])[..., 0]
    within = runs.gather(-1, j[..., None, :].expand((*runs.shape[:-1], j.shape[-1]))).max(-2).indices
    i = of_row[:, None].expand((*value.shape, -1)).gather(-1, within[..., None])[..., 0]
    place = (j + tile.columns.start) * tile.call.shape[2] + i + tile.rows.start
    best, places = (part[:, :, rows[:, None], columns] for part in corner)
    first = (value > best) | ((value == best) & (value > 0) & (place < places))
    corner[0][:, :, rows[:, None], columns] = torch.maximum(best, value)  # NaN stays NaN
    corner[1][:, :, rows[:, None], columns] = torch.where(first, place, places)


def _members(bins: Tensor) -> tuple[Tensor, Tensor]:
    """The bins that a run meets, and the places in the run of each one's members, the last repeated up to the longest."""
    met, sizes = bins.unique_consecutive(return_counts=True)
    stop = sizes.cumsum(0)
    places = (stop - sizes)[:, None] + torch.arange(int(sizes.max()), device=bins.device)
    return met, torch.minimum(places, stop[:, None] - 1)


def _grouped(tile: Tensor, axis: int, members: Tensor) -> Tensor:
    """The tile with an axis cut into (bins, members): a view where all bins are of one length."""
    even = members.numel() == tile.shape[axis]
    return (tile if even else tile.index_select(axis, members.flatten())).unflatten(axis, members.shape)


def _at_maxima(tile: Finished, grad: Tensor, place: Tensor) -> Tensor:
    """The gradient of each bin on the one cell that it goes to, where that lies in the tile."""
    height, width = tile.weights.shape[-2:]
    i = place % tile.call.shape[2] - tile.rows.start
    j = place // tile.call.shape[2] - tile.columns.start
    away = (place < 0) | (i < 0) | (i >= height) | (j < 0) | (j >= width)
    cell = (i * width + j).masked_fill(away, 0).flatten(-2)
    flat = grad.new_zeros((*grad.shape[:2], height * width))
    return flat.scatter_add_(-1, cell, grad.masked_fill(away, 0).flatten(-2)).unflatten(-1, (height, width))
