"""How much each query attends to the key at a fixed distance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regard import checks
from regard.call import Call
from regard.readouts.base import Dense, Finished, FinishedReadout, Parts, Place, rows_of, zeros


@dataclass(frozen=True)
class Diagonal(FinishedReadout):
    """A[i, p_i + offset], p_i the position of query i among the keys, (batch, heads, queries); 0 outside the matrix.

    0 is the token itself, -1 the previous token, 1 the next (the positional heads of Clark et al. 2019).

    >>> S.read(Diagonal(-1)).diagonal
    tensor([0.0000, 0.2500, 0.3750])
    """

    offset: int = 0

    def __post_init__(self) -> None:
        checks.whole_number("diagonal", "offset", self.offset, least=-checks.FARTHEST)

    def size(self, call: Call) -> int:
        return rows_of(call)

    def dense(self, matrix: Dense) -> Parts:
        place = Place(matrix.call, slice(None), slice(None), slice(None), None)
        return (matrix.weights.masked_fill(~self._on(place), 0).sum(-1),)

    def start(self, call: Call) -> Tensor:
        return zeros(call, call.shape[2])

    def touches(self, call: Call, rows: slice, columns: slice) -> bool:
        positions, keys = call.positions(rows=rows) + self.offset, call.columns(columns)
        return bool(positions.numel() and keys.numel() and positions.max() >= keys.min() and positions.min() <= keys.max())

    def add(self, state: Tensor, tile: Finished) -> None:
        tile.of_rows(state).add_(tile.weights.masked_fill(~self._on(tile), 0).sum(-1))

    def pull(self, tile: Finished, parts: Parts, grads: Parts) -> Tensor:
        on = self._on(tile)
        return tile.of_rows(grads[0])[..., None].masked_fill(~on, 0)  # not a product: 0 · inf

    def _on(self, place: Place) -> Tensor:
        """Which pairs lie on the diagonal, (b or 1, 1, r, c)."""
        positions = place.call.positions(place.batch, place.rows) + self.offset
        return torch.eq(positions[..., None], place.call.columns(place.columns))
