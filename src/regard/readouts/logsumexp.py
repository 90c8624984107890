"""The normaliser of each row."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from regard.call import Call
from regard.readouts.base import Dense, Finished, OnlineReadout, Parts, Place, Scored, State, Swept, rows_of


@dataclass(frozen=True)
class LogSumExp(OnlineReadout):
    """ln Σ_j exp(score_ij) over the visible keys, natural log, (batch, heads, queries); -inf in an empty row.

    A part of the keys keeps its parent's: weights are exp(score - log-sum-exp), always.

    >>> S.read(LogSumExp()).logsumexp.exp().round()
    tensor([1., 4., 8.])
    """

    def size(self, call: Call) -> int:
        return rows_of(call)

    def dense(self, matrix: Dense) -> Parts:
        return (matrix.log_sum,)

    def start(self, place: Place) -> State:
        return None

    def merge(self, state: State, tile: Scored) -> State:
        return None

    def finish(self, state: State, end: Swept) -> Parts:
        return (end.log_sum.clone(),)

    def pull(self, tile: Finished, parts: Parts, grads: Parts) -> float:
        return 0.0

    def delta(self, call: Call, parts: Parts, grads: Parts) -> Tensor:
        return -grads[0]  # dL/dscore = A ∘ (dL/dA - δ): a gradient of the log-sum-exp is a δ of its own
