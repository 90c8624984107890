"""How far each query looks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from regard.call import Call
from regard.readouts.base import Dense, Finished, FinishedReadout, Parts, Place, rows_of, zeros


@dataclass(frozen=True)
class Distance(FinishedReadout):
    """Σ_j A_ij |p_i - j|, p_i the position of query i among the keys, (batch, heads, queries), in tokens; 0 in an empty row.

    >>> S.read(Distance()).distance
    tensor([0.0000, 0.2500, 0.6250])
    """

    def size(self, call: Call) -> int:
        return rows_of(call)

    def dense(self, matrix: Dense) -> Parts:
        place = Place(matrix.call, slice(None), slice(None), slice(None), None)
        return ((matrix.weights * _distances(place)).sum(-1),)

    def start(self, call: Call) -> Tensor:
        return zeros(call, call.shape[2])

    def add(self, state: Tensor, tile: Finished) -> None:
        tile.of_rows(state).add_((tile.weights * _distances(tile)).sum(-1))

    def pull(self, tile: Finished, parts: Parts, grads: Parts) -> Tensor:
        return tile.of_rows(grads[0])[..., None] * _distances(tile)


def _distances(place: Place) -> Tensor:
    """|p_i - j| on a tile, (b or 1, 1, r, c)."""
    positions = place.call.positions(place.batch, place.rows)[..., None]
    return (positions - place.call.columns(place.columns)).abs().to(place.call.dtype)
