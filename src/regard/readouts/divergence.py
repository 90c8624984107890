"""How far one matrix is from another, row by row, in O(n) memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regard import checks
from regard.call import Call
from regard.readouts.base import LEAST, Dense, Finished, FinishedReadout, Parts, Readout, rows_of, zeros
from regard.scoring import HIDDEN, Gradients, Tile, of, pull, rows, scored

if TYPE_CHECKING:
    from regard.attention import Attention


@dataclass(frozen=True, eq=False)
class KL(FinishedReadout):
    """Σ_j A_ij (ln A_ij - ln B_ij) in nats, (batch, heads, queries); +inf where B hides what A gives weight.

    mixed: against (A + B) / 2 in B's place, which is never +inf and at most ln 2. The sums go over the keys: a sink has no part
    in them, and where it takes weight from the rows the sum may be below 0. Rows that are +inf have no gradient. Asked as
    A.kl(B), and twice by A.js(B). Source: Kullback and Leibler 1951; Lin 1991.
    """

    other: Call
    log_sum: Tensor
    mixed: bool = False

    @staticmethod
    def to(B: Attention, mixed: bool = False) -> KL:
        """The question about a matrix that compares it with B."""
        from regard.readouts.logsumexp import LogSumExp

        ((log_sum,),) = B._ask((LogSumExp(),))
        return KL(B.call, log_sum, mixed)

    @property
    def operands(self) -> tuple[Tensor, ...]:
        return (*self.other.tensors, self.log_sum)

    def without_operands(self) -> Readout:
        return KL(self.other.without_tensors(), torch.empty_like(self.log_sum, device="meta"), self.mixed)

    def check_unchanged(self) -> None:
        self.other.check_unchanged()

    def with_operands(self, *operands: Tensor) -> Readout:
        *tensors, log_sum = operands
        return KL(self.other.with_tensors(*tensors), log_sum, self.mixed)

    def size(self, call: Call) -> int:
        return rows_of(call)

    def dense(self, matrix: Dense) -> Parts:
        from regard.backends.reference import dense

        other = dense(self.other, self.log_sum)
        a, b = matrix.weights, other.weights.to(matrix.weights.dtype)
        if self.mixed:
            return (_to_mixture(a, b).sum(-1),)
        shared = matrix.seen & other.seen
        logs = matrix.scores - matrix.log_sum[..., None] - (other.scores - other.log_sum[..., None]).to(a.dtype)
        lost = (matrix.seen & ~other.seen).any(-1)
        return ((a * logs.masked_fill(~shared, 0)).sum(-1).masked_fill(lost, float("inf")),)

    def start(self, call: Call) -> Tensor:
        return zeros(call, call.shape[2])

    def add(self, state: Tensor, tile: Finished) -> None:
        _, there, logs = self._other(tile)
        if self.mixed:
            terms = _to_mixture(tile.weights, logs.exp())
        else:  # by logarithms, which do not underflow as weights do
            terms = tile.weights * (tile.log_weights - logs).masked_fill(tile.weights == 0, 0)
            if there.hidden is not None:
                lost = there.hidden if tile.hidden is None else there.hidden & ~tile.hidden
                terms = terms.masked_fill(lost, float("inf"))
        tile.of_rows(state).add_(terms.sum(-1))

    def pull(self, tile: Finished, parts: Parts, grads: Parts) -> Tensor:
        logs = self._other(tile)[2]
        grad = _where_finite(tile, parts, grads)
        if self.mixed:
            a, b = tile.weights, logs.exp()
            both = (a + b).masked_fill((a == 0) & (b == 0), 1)
            return grad * ((2 * a / both).masked_fill(a == 0, 1).log() + b / both)
        return grad * (tile.log_weights - logs.masked_fill(logs == HIDDEN, LEAST) + 1)

    def delta(self, call: Call, parts: Parts, grads: Parts) -> Tensor | None:
        if self.mixed or not call.rows_sum_to_one:
            return None
        return (grads[0] * (parts[0] + 1)).masked_fill(~parts[0].isfinite(), 0)

    def pull_operands(self, tile: Finished, parts: Parts, grads: Parts, gradients: Parts) -> None:
        query, there, logs = self._other(tile)
        by_logs = -_where_finite(tile, parts, grads) * tile.weights
        if self.mixed:
            b = logs.exp()
            by_logs = by_logs * b / (tile.weights + b).masked_fill(b == 0, 1)
        if there.hidden is not None:
            by_logs = by_logs.masked_fill(there.hidden, 0)
        by_logs = by_logs.to(self.other.dtype)
        of_query, of_key, *of_parameters, of_log_sum = gradients
        key = there.of_columns(self.other.key).to(self.other.dtype)
        pull(by_logs, query, key, there, there.slope, Gradients(of_query, of_key, tuple(of_parameters)))
        tile.of_rows(of_log_sum).sub_(by_logs.sum(-1))

    def _other(self, tile: Finished) -> tuple[Tensor, Tile, Tensor]:
        """The ready queries, the tile and its log-weights, -inf where hidden, of the other matrix."""
        call = self.other
        query = rows(call, tile.batch, tile.rows)
        there = scored(query, tile.of_columns(call.key).to(call.dtype), of(call, tile))
        log_sum = tile.of_rows(self.log_sum)
        logs = there.scores - log_sum.masked_fill(log_sum == HIDDEN, 0)[..., None]
        return query, there, logs.to(tile.weights.dtype)


def alike(operation: str, A: Attention, B: Attention) -> tuple[Attention, Attention]:
    """Both matrices, computed in one dtype: the wider one of the two."""
    checks.comparable(operation, A, B)
    return (A, B) if A.call.dtype == B.call.dtype else (A.double(), B.double())


def _where_finite(tile: Finished, parts: Parts, grads: Parts) -> Tensor:
    """The gradient of each row, 0 where the row is +inf."""
    return tile.of_rows(grads[0].masked_fill(~parts[0].isfinite(), 0))[..., None].to(tile.weights.dtype)


def _to_mixture(a: Tensor, b: Tensor) -> Tensor:
    """a ln (2a / (a + b)), 0 where a is."""
    both = (a + b).masked_fill(a == 0, 2)
    return a * (2 * a.masked_fill(a == 0, 1) / both).log()
