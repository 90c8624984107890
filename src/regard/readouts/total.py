"""Weights added up over heads and batch rows: a stored matrix, but never one for each head."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.call import Call
from regard.readouts.base import Dense, Finished, FinishedReadout, Parts


@dataclass(frozen=True)
class Total(FinishedReadout):
    """Weights added up over batch rows, heads or both: (totals, heads or 1, queries, keys). Asked as A.sum(1) or A.mean(0).

    Tiles are added up as they come, so that neither the answer nor its backward ever holds every head.
    """

    groups: tuple[int, ...]  # to which of the totals each batch row is added
    totals: int
    over_heads: bool

    def size(self, call: Call) -> int:
        return self.totals * math.prod(call.shape[2:]) * (1 if self.over_heads else call.shape[1])

    def dense(self, matrix: Dense) -> Parts:
        weights = matrix.weights.sum(1, keepdim=True) if self.over_heads else matrix.weights
        return (weights.new_zeros(self.totals, *weights.shape[1:]).index_add(0, self._groups(weights), weights),)

    def start(self, call: Call) -> Tensor:
        _, heads, queries, keys = call.shape
        return call.query.new_zeros((self.totals, 1 if self.over_heads else heads, queries, keys), dtype=call.dtype)

    def add(self, state: Tensor, tile: Finished) -> None:
        weights = tile.weights.sum(1, keepdim=True) if self.over_heads else tile.weights
        state[:, :, tile.rows, tile.columns].index_add_(0, self._groups(weights, tile.batch), weights)

    def pull(self, tile: Finished, parts: Parts, grads: Parts) -> Tensor:
        grad = grads[0][:, :, tile.rows, tile.columns]
        return grad.index_select(0, self._groups(grad, tile.batch)).expand_as(tile.weights)

    def _groups(self, near: Tensor, batch: slice = slice(None)) -> Tensor:
        return torch.tensor(self.groups[batch], dtype=torch.int64, device=near.device)
