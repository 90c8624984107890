"""A.mT @ r: what every key received of r."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from regard.call import Call
from regard.dropout import Dropout
from regard.products import average, collect
from regard.readouts.base import Dense, Finished, FinishedReadout, Parts, Readout, columns_of, zeros


@dataclass(frozen=True, eq=False)
class Transposed(FinishedReadout):
    """Σ_i A_ij r_i, (batch, heads, keys, r_dim). Asked as A.mT @ r; with r = dL/dY it is a layer's dL/dV."""

    r: Float[Tensor, "batch r_heads queries r_dim"]
    drop: Dropout | None = None

    @property
    def operands(self) -> tuple[Tensor, ...]:
        return (self.r,)

    def with_operands(self, *operands: Tensor) -> Readout:
        (r,) = operands
        return Transposed(r, self.drop)

    def ready(self, call: Call) -> Readout:
        return Transposed(self.r.to(call.dtype).contiguous(), self.drop)

    def size(self, call: Call) -> int:
        return columns_of(call) * self.r.shape[-1]

    def dense(self, matrix: Dense) -> Parts:
        weights = matrix.dropped(self.drop)
        r = self.r.to(weights.dtype)
        bad = ~torch.isfinite(r)
        clean = weights.mT @ r.masked_fill(bad, 0)
        reached = matrix.seen.mT.to(clean.dtype) @ bad.to(clean.dtype) > 0
        return (clean.masked_fill(reached, float("nan")),)

    def start(self, call: Call) -> Tensor:
        return zeros(call, call.shape[3], self.r.shape[-1])

    def add(self, state: Tensor, tile: Finished) -> None:
        r = tile.of_rows(self.r).to(tile.weights.dtype)
        tile.of_columns(state).add_(collect(tile.dropped(self.drop, tile.weights), r, tile.hidden, tile.weights.shape[1]))

    def pull(self, tile: Finished, parts: Parts, grads: Parts) -> Tensor:
        grad = tile.of_rows(self.r).to(tile.weights.dtype) @ tile.of_columns(grads[0]).to(tile.weights.dtype).mT
        return tile.dropped(self.drop, grad)

    def pull_operands(self, tile: Finished, parts: Parts, grads: Parts, gradients: Parts) -> None:
        share = average(tile.dropped(self.drop, tile.weights), tile.of_columns(grads[0]).to(tile.weights.dtype), tile.hidden)
        tile.of_rows(gradients[0]).add_(share if self.r.shape[1] == share.shape[1] else share.sum(1, keepdim=True))
