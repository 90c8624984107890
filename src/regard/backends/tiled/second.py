"""Gradients of gradients, for the output and the log-sum-exp.

Let u be the gradients that come back to a first backward's results, and dS, dv, … the changes in their direction. What has to
be differentiated is the change of the loss in that direction,

    Σ_ij A_ij [(dS_ij - μ_i) P_ij + g_i · dv_j] + Σ_i γ_i μ_i,    P_ij = g_i · v_j,    μ_i = Σ_j A_ij dS_ij,

g and γ the gradients of output and log-sum-exp. With δ_i = Σ_j A_ij P_ij - γ_i and

    H_ij = (dS_ij - μ_i) P_ij - dS_ij δ_i + g_i · dv_j

its gradients are

    by S:    A ∘ (H - Σ_j A_ij H_ij)            by dS:   A ∘ (P - δ)          by γ_i:  μ_i
    by v_j:  Σ_i A_ij (dS_ij - μ_i) g_i         by g_i:  Σ_j A_ij (dS_ij - μ_i) v_j + A_ij dv_j

A sink is one more key with P = dv = 0. Where the log-sum-exp was given, μ is its own change, δ and Σ_j A_ij H_ij are left out,
and the gradient by the log-sum-exp is -Σ_j A_ij H_ij.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from regard.backends.tiled.backward import Asked, backward, deltas, pulled, sink_weights
from regard.backends.tiled.walk import Seen, Tiling, Walk
from regard.call import Call
from regard.checks import Unsupported
from regard.products import average, collect, dots
from regard.readouts.base import Readout
from regard.readouts.logsumexp import LogSumExp
from regard.readouts.output import Output
from regard.scoring import Directions, Gradients, Tangent, pull_tangent, tangent

TWICE = (Output, LogSumExp)


class Once(torch.autograd.Function):
    """A gradient that cannot be differentiated again, and says so (PyTorch's own decorator may drop it silently)."""

    @staticmethod
    def forward(ctx: Any, what: str, gradient: Tensor, *of: Tensor) -> Tensor:
        ctx.what = what
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        raise Unsupported(f"attention: the tiled backend has {ctx.what}; for others build the matrix with backend='reference'.")


def once(what: str, gradient: Tensor | None, of: Sequence[Tensor]) -> Tensor | None:
    return Once.apply(what, gradient, *of) if torch.is_grad_enabled() and gradient is not None else gradient


@dataclass(frozen=True)
class Spec:
    """A first backward: what was asked, and whether the log-sum-exp was given."""

    tiling: Tiling
    call: Call  # without tensors
    readouts: tuple[Readout, ...]  # without operands
    given: bool

    def check_unchanged(self) -> None:
        """Raises Changed if a mask was changed in place since the question was asked."""
        self.call.check_unchanged()
        for readout in self.readouts:
            readout.check_unchanged()

    def restored(self, tensors: Sequence[Tensor]) -> tuple[Call, list[Readout]]:
        """The call and the readouts with their tensors."""
        count = len(self.call.tensors)
        operands = iter(tensors[count:])
        readouts = [readout.with_operands(*(next(operands) for _ in readout.operands)) for readout in self.readouts]
        return self.call.with_tensors(*tensors[:count]), readouts


class Backward(torch.autograd.Function):
    """The first backward of outputs and log-sum-exps as a differentiable operation.

    Its tensors: the log-sum-exp and its gradient, one answer and one gradient per readout, query, key, parameters, operands.
    It returns the gradients of the last four, and δ.
    """

    @staticmethod
    def forward(ctx: Any, spec: Spec, log_sum: Tensor, log_sum_grad: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.spec = spec
        count = len(spec.readouts)
        parts, grads, rest = tensors[:count], tensors[count : 2 * count], tensors[2 * count :]
        ctx.save_for_backward(log_sum, log_sum_grad, *tensors)
        call, readouts = spec.restored(rest)
        asked = [
            Asked(readout, (part,), (grad,), tuple(torch.zeros_like(t, dtype=call.dtype) for t in readout.operands))
            for readout, part, grad in zip(readouts, parts, grads, strict=True)
        ]
        into, delta = backward(spec.tiling, call, asked, log_sum, log_sum_grad, spec.given)
        found = (into.query, into.key, *into.parameters, *(g for one in asked for g in one.gradients))
        ctx.set_materialize_grads(False)
        return (*(g.to(t.dtype) for g, t in zip(found, rest, strict=True)), delta)

    @staticmethod
    def backward(ctx: Any, *back: Tensor | None) -> tuple[Tensor | None, ...]:
        log_sum, log_sum_grad, *tensors = ctx.saved_tensors
        count = len(ctx.spec.readouts)
        parts, grads, rest = tensors[:count], tensors[count : 2 * count], tensors[2 * count :]
        ctx.spec.check_unchanged()
        with torch.no_grad(), torch.autocast(log_sum.device.type, enabled=False):
            found = _second(ctx.spec, log_sum, log_sum_grad, parts, grads, rest, back)
        what = "first and second derivatives of the output and the log-sum-exp"
        of = (log_sum, log_sum_grad, *grads, *rest)
        cast = [None if g is None else g.to(t.dtype) for g, t in zip(found, of, strict=True)]
        cast = [once(what, g, (log_sum, log_sum_grad, *tensors)) for g in cast]
        return (None, *cast[:2], *(None for _ in parts), *cast[2:])


def _second(
    spec: Spec,
    log_sum: Tensor,
    log_sum_grad: Tensor,
    parts: Sequence[Tensor],
    grads: Sequence[Tensor],
    rest: Sequence[Tensor],
    back: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Gradients by the log-sum-exp, its gradient, the answers' gradients, query, key, parameters and operands."""
    call, readouts = spec.restored(rest)
    along = _directions(call, back)
    values = iter(back[len(call.tensors) : -1])
    asked = [Asked(readout, (part,), (grad,), ()) for readout, part, grad in zip(readouts, parts, grads, strict=True)]
    outputs = [
        _Direction(readout.value, next(values), grad, readout, torch.zeros_like(grad, dtype=call.dtype),
                   torch.zeros(readout.value.shape, dtype=call.dtype, device=grad.device))
        for readout, grad in zip(readouts, grads, strict=True) if isinstance(readout, Output)
    ]  # fmt: skip
    walk = Walk.over(spec.tiling, call)
    sinks = sink_weights(call, log_sum)
    sink_change = torch.zeros_like(log_sum)
    if call.sinks is not None and back[2] is not None:
        sink_change += back[2][:, None]
    if spec.given:  # δ went out as the gradient of the log-sum-exp, with the opposite sign
        own = back[-1]
        mean = torch.zeros_like(log_sum) if own is None else -own.to(call.dtype)
        delta = torch.zeros_like(log_sum)
    else:
        delta = deltas(walk, asked, log_sum) - log_sum_grad
        mean = sinks * sink_change
        for seen in walk.tiles(log_sum):
            change = tangent(seen.tile, seen.query, seen.key, along)
            seen.weights.of_rows(mean).add_((seen.weights.weights * change.scores).sum(-1))
    total = -sinks * sink_change * delta  # Σ_j A_ij H_ij, the sink's share first
    for seen in walk.tiles(log_sum):
        change = tangent(seen.tile, seen.query, seen.key, along)
        seen.weights.of_rows(total).add_((_hessian(seen, change, asked, outputs, mean, delta)).sum(-1))
    into = Gradients.zeros(call)
    for seen in walk.tiles(log_sum):
        tile = seen.weights
        change = tangent(seen.tile, seen.query, seen.key, along)
        share = _hessian(seen, change, asked, outputs, mean, delta)
        by_scores = share if spec.given else share - tile.weights * tile.of_rows(total)[..., None]
        by_change = tile.weights * (pulled(tile, asked) - tile.of_rows(delta)[..., None])
        if tile.hidden is not None:
            by_change.masked_fill_(tile.hidden, 0)
        pull_tangent(by_scores, by_change, seen.tile, change, seen.query, seen.key, into)
        moved = tile.weights * (change.scores - tile.of_rows(mean)[..., None])
        for one in outputs:
            one.add(tile, moved)
    if call.sinks is not None and not spec.given:
        into.parameters[0].add_((sinks * (-sink_change * delta - total)).sum((0, 2)))
    by_answers = iter(outputs)
    by_grads = [next(by_answers).by_grad if isinstance(r, Output) else mean for r in readouts]
    by_values = [one.by_value for one in outputs]
    by_log_sum = -total if spec.given else None
    return [by_log_sum, mean, *by_grads, into.query, into.key, *into.parameters, *by_values]


def _directions(call: Call, back: Sequence[Tensor | None]) -> Directions:
    query, key, *rest = back[: len(call.tensors)]
    if call.sinks is not None:
        rest.pop(0)
    combine = rest.pop(0) if call.combine is not None else None
    return Directions(query, key, combine, tuple(rest))


@dataclass(frozen=True)
class _Direction:
    """An output: its values, their change, its gradient g, and where the gradients by g and by v are summed."""

    value: Tensor
    change: Tensor | None
    grad: Tensor
    readout: Output
    by_grad: Tensor
    by_value: Tensor

    def toward(self, tile: Any) -> Tensor | float:
        """g_i · dv_j, dropout included."""
        if self.change is None:
            return 0.0
        grad = tile.of_rows(self.grad).to(tile.weights.dtype)
        return tile.dropped(self.readout.drop, dots(grad, tile.of_columns(self.change).to(tile.weights.dtype)))

    def add(self, tile: Any, moved: Tensor) -> None:
        """Takes in a tile of A ∘ (dS - μ)."""
        dtype = tile.weights.dtype
        moved, weights = (tile.dropped(self.readout.drop, t) for t in (moved, tile.weights))
        share = average(moved, tile.of_columns(self.value).to(dtype), tile.hidden)
        if self.change is not None:
            share = share + average(weights, tile.of_columns(self.change).to(dtype), tile.hidden)
        tile.of_rows(self.by_grad).add_(share)
        grad = tile.of_rows(self.grad).to(dtype)
        tile.of_columns(self.by_value).add_(collect(moved, grad, tile.hidden, self.value.shape[1]))


def _hessian(
    seen: Seen, change: Tangent, asked: list[Asked], outputs: Sequence[_Direction], mean: Tensor, delta: Tensor
) -> Tensor:
    """A ∘ H on a tile, 0 where hidden."""
    tile = seen.weights
    moved = change.scores - tile.of_rows(mean)[..., None]
    h = moved * pulled(tile, asked) - change.scores * tile.of_rows(delta)[..., None]
    for one in outputs:
        h = h + one.toward(tile)
    h = tile.weights * h
    return h if tile.hidden is None else h.masked_fill_(tile.hidden, 0)
