"""How much attention each key received."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from regard.call import Call
from regard.readouts.base import Dense, Finished, FinishedReadout, Parts, columns_of, zeros


@dataclass(frozen=True)
class Received(FinishedReadout):
    """Σ_i A_ij, (batch, heads, keys): the column sums, H2O's score for keeping a key (Zhang et al. 2023).

    >>> S.read(Received()).received
    tensor([1.3750, 1.1250, 0.5000])
    """

    def size(self, call: Call) -> int:
        return columns_of(call)

    def dense(self, matrix: Dense) -> Parts:
        return (matrix.weights.sum(-2),)

    def start(self, call: Call) -> Tensor:
        return zeros(call, call.shape[3])

    def add(self, state: Tensor, tile: Finished) -> None:
        tile.of_columns(state).add_(tile.weights.sum(-2))

    def pull(self, tile: Finished, parts: Parts, grads: Parts) -> Tensor:
        return tile.of_columns(grads[0])[..., None, :].to(tile.weights.dtype).expand_as(tile.weights)
