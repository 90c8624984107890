"""How spread out each row is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from regard.call import Call
from regard.readouts.base import LEAST, Dense, Finished, OnlineReadout, Parts, Place, Scored, Swept, rows_of


@dataclass(frozen=True)
class Entropy(OnlineReadout):
    """-Σ_j A_ij ln A_ij in nats, (batch, heads, queries); 0 in an empty row.

    Sinks are no keys: their weight has no part in it.

    Summed as Σ A (peak - score) + (lse - peak) Σ A, whose terms are all ≥ 0: nothing cancels, however large the scores.

    >>> S.read(Entropy()).entropy
    tensor([0.0000, 0.5623, 0.9743])
    """

    def size(self, call: Call) -> int:
        return rows_of(call)

    def dense(self, matrix: Dense) -> Parts:
        surprise = (matrix.log_sum[..., None] - matrix.scores).masked_fill(~matrix.seen, 0)
        return ((matrix.weights * surprise).sum(-1),)

    def start(self, place: Place) -> tuple[Tensor, Tensor]:
        nothing = place.of_rows(place.call.query)[..., 0].new_zeros((), dtype=place.call.dtype)
        shape = place.of_rows(place.call.query).shape[:3]
        return nothing.expand(shape), nothing.expand(shape)

    def merge(self, state: tuple[Tensor, Tensor], tile: Scored) -> tuple[Tensor, Tensor]:
        below, total = state
        here = (tile.weights * tile.centred.clamp_min(LEAST)).sum(-1)
        return tile.rescale * (below + total * tile.rise) - here, tile.rescale * total + tile.total

    def finish(self, state: tuple[Tensor, Tensor], end: Swept) -> Parts:
        below, total = state
        return (end.factor * (below + end.gap * total),)

    def pull(self, tile: Finished, parts: Parts, grads: Parts) -> Tensor:
        return tile.of_rows(grads[0])[..., None] * (-1 - tile.log_weights)

    def delta(self, call: Call, parts: Parts, grads: Parts) -> Tensor | None:
        return grads[0] * (parts[0] - 1) if call.rows_sum_to_one else None
