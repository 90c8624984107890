"""The one backward of all readouts.

Each puts G = dL/dA on a tile; with δ_i = Σ_j A_ij G_ij,

    dL/dS = A ∘ (G - δ),        dL/dsink_h = -Σ_i exp(sink_h - lse_i) δ_i.

Where the log-sum-exp was given, it is a variable of its own: dL/dS = A ∘ G and dL/dlse = -δ.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regard.backends.tiled.walk import Tiling, Walk
from regard.call import Call
from regard.readouts.base import Finished, Parts, Readout
from regard.scoring import HIDDEN, Gradients, pull


@dataclass(frozen=True)
class Asked:
    """A readout, its answer, the answer's gradients, and where those of its operands are summed."""

    readout: Readout
    parts: Parts
    grads: Parts
    gradients: Parts

    def pull(self, tile: Finished) -> Tensor | float:
        return self.readout.pull(tile, self.parts, self.grads)


def backward(
    tiling: Tiling, call: Call, asked: list[Asked], log_sum: Tensor, log_sum_grad: Tensor | None, given: bool
) -> tuple[Gradients, Tensor]:
    """dL/d(query, key, parameters) and δ; those of the operands are added where they are summed."""
    with torch.no_grad(), torch.autocast(call.device.type, enabled=False):
        walk = Walk.over(tiling, call)
        delta = deltas(walk, asked, log_sum)
        if log_sum_grad is not None:
            delta -= log_sum_grad
        into = Gradients.zeros(call)
        for seen in walk.tiles(log_sum):
            tile = seen.weights
            grad = pulled(tile, asked)
            scores_grad = tile.weights * (grad if given else grad - tile.of_rows(delta)[..., None])
            if tile.hidden is not None:
                scores_grad.masked_fill_(tile.hidden, 0)
            pull(scores_grad, seen.query, seen.key, tile, seen.tile.slope, into)
            for one in asked:
                one.readout.pull_operands(tile, one.parts, one.grads, one.gradients)
        if call.sinks is not None and not given:
            into.parameters[0].sub_((sink_weights(call, log_sum) * delta).sum((0, 2)))
        return into, delta


def sink_weights(call: Call, log_sum: Tensor) -> Tensor:
    """exp(sink_h - lse_i), (batch, heads, queries): the weight that goes to no key; 0 without sinks."""
    if call.sinks is None:
        return torch.zeros_like(log_sum)
    return (call.sinks[:, None] - log_sum).exp().masked_fill(log_sum == HIDDEN, 0)


def deltas(walk: Walk, asked: list[Asked], log_sum: Tensor) -> Tensor:
    """δ_i = Σ_j A_ij G_ij over all readouts: most know theirs, the others take a sweep."""
    total = torch.zeros_like(log_sum)
    unknown = []
    for one in asked:
        known = one.readout.delta(walk.call, one.parts, one.grads)
        if known is None:
            unknown.append(one)
        else:
            total += known
    if unknown:
        for seen in walk.tiles(log_sum):
            tile = seen.weights
            share = tile.weights * pulled(tile, unknown)
            if tile.hidden is not None:
                share.masked_fill_(tile.hidden, 0)
            tile.of_rows(total).add_(share.sum(-1))
    return total


def pulled(tile: Finished, asked: list[Asked]) -> Tensor:
    """G = dL/dA on a tile."""
    first, *rest = [one.pull(tile) for one in asked] or [0.0]
    grad = first if isinstance(first, Tensor) else torch.full_like(tile.weights, first)
    for more in rest:
        grad = grad + more
    return grad
