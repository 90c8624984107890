"""The specification: dense, eager, differentiable, in any precision. Optimised code never imports it.

    x_ij = scale · q_i · k_j                       or scale · Σ_m v_m tanh(q_im + k_jm), with `combine` v
    S_ij = c · tanh(x_ij / c) + bias_ij            for the pairs that the mask allows, -inf for the others;
                                                   a pair whose score is -inf is hidden too
    lse_i = ln (Σ_j exp S_ij + exp sink_h)         -inf where a query may see no key, and there is no sink
    A_ij = exp(S_ij - lse_i)                       0 for the hidden pairs

Without a softcap S = x, without a bias it is 0, without sinks theirs is the exp of -inf.

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
            matrix = dense(call, None if call.whole is None else log_sum)
            return [readout.dense(matrix) for readout in readouts], matrix.log_sum


def dense(call: Call, log_sum: Tensor | None) -> Dense:
    """The matrix as it is defined."""
    batch, heads, queries, keys = call.shape
    query, key = call.query.to(call.dtype), call.key.to(call.dtype)
    key = key.repeat_interleave(heads // max(key.shape[1], 1), dim=1)
    seen = call.allowed().expand(batch, heads, queries, keys)
    scores = call.scale * (query @ key.mT if call.combine is None else _additive(query, key, call.combine.to(call.dtype)))
    if call.softcap is not None:
        scores = call.softcap * (scores / call.softcap).tanh()
    if call.bias is not None:
        scores = scores + call.bias.adds(*call.pairs()).to(call.dtype)
    scores = scores.masked_fill(~seen, float("-inf"))
    seen = seen & (scores != float("-inf"))
    if log_sum is None:
        log_sum = _log_sum(scores, seen)
        if call.sinks is not None:
            log_sum = _with_sinks(log_sum, call.sinks[:, None].to(call.dtype))
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


def _additive(query: Tensor, key: Tensor, v: Tensor) -> Tensor:
    """Σ_m v_m tanh(q_im + k_jm)."""
    return ((query[..., :, None, :] + key[..., None, :, :]).tanh() * v[:, None, None, :]).sum(-1)


def _with_sinks(log_sum: Tensor, sinks: Tensor) -> Tensor:
    """ln (exp lse + exp sink), whose derivatives are those of the finite ones of the two."""
    sinks = sinks.expand_as(log_sum)
    neither = (log_sum == float("-inf")) & (sinks == float("-inf"))
    only_sink, only_keys = log_sum == float("-inf"), sinks == float("-inf")
    both = torch.logaddexp(log_sum.masked_fill(only_sink, 0), sinks.masked_fill(only_keys, 0))
    return torch.where(neither, log_sum, torch.where(only_sink, sinks, torch.where(only_keys, log_sum, both)))
