"""The strongest key of each query."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from regard.call import Call
from regard.readouts.base import Dense, Finished, OnlineReadout, Parts, Place, Scored, Swept, rows_of
from regard.readouts.topk import Strongest, TopK

ONE = TopK(1)


@dataclass(frozen=True)
class Max(OnlineReadout):
    """The largest weight of each row and its key, (batch, heads, queries); 0 and -1 in an empty row: TopK(1), squeezed.

    >>> S.read(Max()).max.values
    tensor([1.0000, 0.7500, 0.5000])
    >>> S.read(Max()).max.indices
    tensor([0, 1, 2])
    """

    answer = Strongest
    differentiable = (True, False)

    def size(self, call: Call) -> int:
        return 2 * rows_of(call)

    def dense(self, matrix: Dense) -> Parts:
        return _squeezed(ONE.dense(matrix))

    def start(self, place: Place) -> Parts:
        return ONE.start(place)

    def merge(self, state: Parts, tile: Scored) -> Parts:
        return ONE.merge(state, tile)

    def finish(self, state: Parts, end: Swept) -> Parts:
        return _squeezed(ONE.finish(state, end))

    def pull(self, tile: Finished, parts: Parts, grads: Parts) -> Tensor:
        return ONE.pull(tile, (parts[0][..., None], parts[1][..., None]), (grads[0][..., None],))

    def delta(self, call: Call, parts: Parts, grads: Parts) -> Tensor:
        return parts[0] * grads[0].masked_fill(parts[1] < 0, 0)


def _squeezed(parts: Parts) -> Parts:
    return parts[0][..., 0], parts[1][..., 0]
