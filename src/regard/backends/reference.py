"""The specification: dense, eager, differentiable, in any precision. Optimised code never imports it.

    S_ij = scale · q_i · k_j                       for the pairs that the mask allows, -inf for the others;
                                                   a pair whose score is -inf is hidden too
    lse_i = ln Σ_j exp S_ij                        -inf where a query may see no key
    A_ij = exp(S_ij - lse_i)                       0 for the hidden pairs

Query head h meets key head h // (heads // kv_heads). Every readout says in `dense` what it means on A.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from regard.backends.base import Backend
from regard.call import Call
from regard.readouts.base import Dense, Parts, Readout


@dataclass(frozen=True)
class Reference(Backend):
    """The dense matrix, built and looked at. n² memory: for tests and for reading."""

    name: ClassVar[str] = "reference"
    about: ClassVar[str] = "the specification: dense, n² memory"
    chosen: ClassVar[bool] = False

    def why_not(self, call: Call, readout: Readout | None = None) -> list[str]:
        return []

    def read(self, call: Call, readouts: Sequence[Readout], log_sum: Tensor | None) -> tuple[list[Parts], Tensor]:
        with torch.autocast(call.device.type, enabled=False):
            matrix = dense(call, log_sum)
            return [readout.dense(matrix) for readout in readouts], matrix.log_sum


def dense(call: Call, log_sum: Tensor | None) -> Dense:
    """The matrix as it is defined."""
    batch, heads, queries, keys = call.shape
    query, key = call.query.to(call.dtype), call.key.to(call.dtype)
    key = key.repeat_interleave(heads // max(key.shape[1], 1), dim=1)
    seen = call.allowed().expand(batch, heads, queries, keys)
    scores = (call.scale * (query @ key.mT)).masked_fill(~seen, float("-inf"))
    seen = seen & (scores != float("-inf"))
    if log_sum is None:
        log_sum = _log_sum(scores, seen)
    finite = log_sum.masked_fill(log_sum == float("-inf"), 0)
    weights = (scores - finite[..., None]).exp().masked_fill(~seen, 0)
    return Dense(call, scores, weights, log_sum, seen)


def _log_sum(scores: Tensor, seen: Tensor) -> Tensor:
    if not scores.shape[-1]:
        return scores.new_full(scores.shape[:-1], float("-inf"))
    empty = ~seen.any(-1)
    peak = scores.detach().amax(-1).masked_fill(empty, 0)
    total = (scores - peak[..., None]).exp().masked_fill(~seen, 0).sum(-1)
    return (peak + total.masked_fill(empty, 1).log()).masked_fill(empty, float("-inf"))
