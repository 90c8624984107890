"""A @ v: the new embedding of every query, a weighted average of the values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from regard.call import Call
from regard.dropout import Dropout
from regard.products import average, collect, dots
from regard.readouts.base import Dense, Finished, OnlineReadout, Parts, Place, Readout, Scored, Swept, rows_of


@dataclass(frozen=True, eq=False)
class Output(OnlineReadout):
    """Σ_j A_ij v_j, (batch, heads, queries, value_dim), in the value's dtype. Asked as A @ v or A.read(…, value=v)."""

    value: Float[Tensor, "batch value_heads keys value_dim"]
    drop: Dropout | None = None

    @property
    def operands(self) -> tuple[Tensor, ...]:
        return (self.value,)

    def with_operands(self, *operands: Tensor) -> Readout:
        (value,) = operands
        return Output(value, self.drop)

    def ready(self, call: Call) -> Readout:
        return Output(self.value.to(call.dtype).contiguous(), self.drop)

    def size(self, call: Call) -> int:
        return rows_of(call) * self.value.shape[-1]

    def dense(self, matrix: Dense) -> Parts:
        weights = matrix.dropped(self.drop)
        value = self.value.to(weights.dtype)
        value = value.repeat_interleave(matrix.weights.shape[1] // max(value.shape[1], 1), dim=1)
        bad = ~torch.isfinite(value)
        clean = weights @ value.masked_fill(bad, 0)
        reached = matrix.seen.to(clean.dtype) @ bad.to(clean.dtype) > 0
        return (clean.masked_fill(reached, float("nan")).to(self.value.dtype),)

    def start(self, place: Place) -> Tensor:
        rows = place.of_rows(place.call.query).shape[:3]
        return place.call.query.new_zeros((*rows, self.value.shape[-1]), dtype=place.call.dtype)

    def merge(self, state: Tensor, tile: Scored) -> Tensor:
        value = tile.of_columns(self.value).to(tile.weights.dtype)
        return state.mul_(tile.rescale[..., None]).add_(average(tile.dropped(self.drop, tile.weights), value, tile.hidden))

    def finish(self, state: Tensor, end: Swept) -> Parts:
        return (state.mul_(end.factor[..., None]).to(self.value.dtype),)

    def pull(self, tile: Finished, parts: Parts, grads: Parts) -> Tensor:
        grad = tile.of_rows(grads[0]).to(tile.weights.dtype)
        value = tile.of_columns(self.value).to(tile.weights.dtype)
        return tile.dropped(self.drop, dots(grad, value))

    def delta(self, call: Call, parts: Parts, grads: Parts) -> Tensor | None:
        if torch.finfo(parts[0].dtype).bits < torch.finfo(call.dtype).bits:
            return None  # the output was rounded, and the differences dL/dA - δ would feel it
        return (parts[0].to(call.dtype) * grads[0].to(call.dtype)).sum(-1)

    def pull_operands(self, tile: Finished, parts: Parts, grads: Parts, gradients: Parts) -> None:
        grad = tile.of_rows(grads[0]).to(tile.weights.dtype)
        tile.of_columns(gradients[0]).add_(
            collect(tile.dropped(self.drop, tile.weights), grad, tile.hidden, self.value.shape[1])
        )
