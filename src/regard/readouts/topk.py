"""The strongest keys of each query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from regard import checks
from regard.call import Call
from regard.readouts.base import Dense, Finished, OnlineReadout, Parts, Place, Scored, Swept, rows_of
from regard.selection import largest


class Strongest(NamedTuple):
    """Weights, descending, and the keys they belong to; -1 where there is no further visible key.

    >>> values, indices = S.read(TopK(1)).topk
    >>> indices[:, 0]
    tensor([0, 1, 2])
    """

    values: Tensor
    indices: Tensor


@dataclass(frozen=True)
class TopK(OnlineReadout):
    """The k largest weights of each row and their keys, (batch, heads, queries, k), descending.

    Where a row sees fewer keys, the rest is weight 0 and key -1. Keys count within the matrix (or the part) that was asked.
    Raises TooLarge above 1 GiB for more than there are keys.

    >>> S.read(TopK(2)).topk.indices
    tensor([[ 0, -1],
            [ 1,  0],
            [ 2,  1]])
    """

    k: int

    answer = Strongest
    differentiable = (True, False)

    def __post_init__(self) -> None:
        checks.whole_number("topk", "k", self.k, least=1)

    def size(self, call: Call) -> int:
        return 2 * rows_of(call) * self.k

    def dense(self, matrix: Dense) -> Parts:
        self._check(matrix.call)
        weights = matrix.weights.masked_fill(~matrix.seen, -1)  # hidden keys come after the visible ones of weight 0
        missing = max(0, self.k - weights.shape[-1])
        values, indices = torch.nn.functional.pad(weights, (0, missing), value=-1).topk(self.k)
        return values.clamp_min(0), indices.masked_fill(values < 0, -1)

    def start(self, place: Place) -> Parts:
        self._check(place.call)
        query = place.of_rows(place.call.query)
        shape = (*query.shape[:3], self.k)
        best = query.new_full(shape, float("-inf"), dtype=place.call.dtype)
        return best, query.new_full(shape, -1, dtype=torch.int64)

    def merge(self, state: Parts, tile: Scored) -> Parts:
        k = min(self.k, tile.scores.shape[-1])
        # Where a row's sum is not finite there may be NaN, which torch.topk takes to be the largest.
        known = tile.scores.is_cpu and bool(torch.isfinite(tile.total).all())
        scores, keys = largest(tile.scores, k) if known else tile.scores.topk(k)
        scores, place = torch.cat((state[0], scores), -1).topk(self.k)
        return scores, torch.cat((state[1], keys + tile.columns.start), -1).gather(-1, place)

    def finish(self, state: Parts, end: Swept) -> Parts:
        scores, keys = state
        gone = scores == float("-inf")
        lse = end.log_sum.masked_fill(end.log_sum == float("-inf"), 0)
        return (scores - lse[..., None]).exp(), keys.masked_fill(gone, -1)

    def pull(self, tile: Finished, parts: Parts, grads: Parts) -> Tensor:
        first, width = tile.columns.start, tile.weights.shape[-1]
        keys = tile.of_rows(parts[1]) - first
        here = (keys >= 0) & (keys < width) & (tile.of_rows(parts[1]) >= 0)
        grad = tile.of_rows(grads[0]).masked_fill(~here, 0).to(tile.weights.dtype)  # not a product: 0 · inf
        return torch.zeros_like(tile.weights).scatter_add_(-1, keys.clamp(0, max(width - 1, 0)), grad)

    def delta(self, call: Call, parts: Parts, grads: Parts) -> Tensor:
        return (parts[0] * grads[0].masked_fill(parts[1] < 0, 0)).sum(-1)

    def _check(self, call: Call) -> None:
        each = call.dtype.itemsize + torch.int64.itemsize
        checks.fits_answer("topk", "k", self.k, call.shape, each, f"ask for k = {call.shape[3]} at most")
