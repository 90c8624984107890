"""Every question, tile by tile in PyTorch, on any device, in O(n) memory.

Two walks over the tiles of a plan. The row sweep merges online readouts while it finds the log-sum-exp: with peak m the
greatest score so far, sums of exp(s - m) shrink by exp(m_old - m_new) whenever m rises. The second sweep, given the
log-sum-exp, hands exact tiles of weights A = exp(S - lse) to the finished readouts. One backward serves every readout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.backends.base import Backend
from regard.backends.tiled.backward import Asked, backward
from regard.backends.tiled.forward import flat, forward, split
from regard.backends.tiled.second import TWICE, Backward, Spec, once
from regard.call import Call, dual, transformed
from regard.plan import lay
from regard.readouts.base import FinishedReadout, OnlineReadout, Parts, Readout
from regard.readouts.output import Output


@dataclass(frozen=True)
class Tiled(Backend):
    """Tiles of at most `elements` scores over all heads: `columns` keys wide, and as many rows as fit."""

    elements: int = 1 << 18
    columns: int = 512
    grain: int = 128  # keys per tile of the plan: neighbouring tiles are joined up to `columns`
    least_rows: int = 16

    name: ClassVar[str] = "tiled"
    slowness: ClassVar[float] = 2.5
    about: ClassVar[str] = "PyTorch tile by tile, any device, O(n) memory"

    def why_not(self, call: Call, readout: Readout | None = None) -> list[str]:
        reasons = []
        if not (readout is None or isinstance(readout, OnlineReadout | FinishedReadout)):
            reasons.append(f"{type(readout).__name__} is neither an OnlineReadout nor a FinishedReadout")
        if transformed(*call.tensors, *call.mask.tensors(), *(readout.operands if readout else ())):
            reasons.append("torch.func transforms (vmap, grad, jvp, …) do not go through it; backend='reference' is dense")
        if torch.is_grad_enabled() and call.differentiable and dual(*call.tensors):
            reasons.append("forward-mode derivatives go through it only where no tensor requires grad")
        return reasons

    def pairs(self, call: Call) -> int:
        batch, heads, _, _ = call.shape
        return batch * heads * lay(call.mask, call.axes, call.offset, self.grain, self.grain).visible

    def read(self, call: Call, readouts: Sequence[Readout], log_sum: Tensor | None) -> tuple[list[Parts], Tensor]:
        if call.whole is None and log_sum is not None:
            log_sum = log_sum.detach()  # known, and a function of the queries and keys all the same
        operands = [t for readout in readouts for t in readout.operands]
        tensors = (*call.tensors, *operands)
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (log_sum, *tensors)):
            found = _Read.apply(self, call, tuple(readouts), log_sum, *tensors)
        else:
            found = _public(flat(*forward(self, call, readouts, log_sum)), readouts)
        return split(found, readouts)

    def gradients(
        self,
        call: Call,
        readouts: Sequence[Readout],
        log_sum: Tensor | None,
        answers: Sequence[Parts],
        grads: Sequence[tuple[Tensor | None, ...]],
    ) -> tuple[Sequence[Tensor | None], Tensor | None]:
        if log_sum is None:
            raise AssertionError("a backward begins with the log-sum-exp")
        spec = Spec(self, call, tuple(readouts), call.whole is not None)
        tensors = (*call.tensors, *(t for readout in readouts for t in readout.operands))
        found, delta = _first(spec, list(answers), list(grads), log_sum, None, tensors)
        return found, -delta if spec.given else None


class _Read(torch.autograd.Function):
    """Both sweeps as one differentiable operation."""

    @staticmethod
    def forward(
        ctx: Any, tiled: Tiled, call: Call, readouts: tuple[Readout, ...], log_sum: Tensor | None, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        found = flat(*forward(tiled, call, readouts, log_sum))
        if log_sum is not None:
            found = (*found[:-1], log_sum.clone())
        public = _public(found, readouts)
        kinds = [kind for readout in readouts for kind in readout.differentiable]
        ctx.mark_non_differentiable(*(part for part, kind in zip(public, kinds, strict=False) if not kind))
        ctx.save_for_backward(*found, *tensors)  # through autograd, so that a change in place is noticed
        ctx.spec = Spec(tiled, call.without_tensors(), tuple(r.without_operands() for r in readouts), call.whole is not None)
        ctx.outputs = len(found)
        ctx.set_materialize_grads(False)  # an answer that nobody differentiates costs nothing
        return public

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        spec: Spec = ctx.spec
        spec.check_unchanged()
        saved = ctx.saved_tensors  # unpacked once: gradient checkpointing allows no second time
        found, tensors = saved[: ctx.outputs], saved[ctx.outputs :]
        answers, log_sum = split(found, spec.readouts)
        answer_grads, log_sum_grad = split(grads, spec.readouts)
        twice = torch.is_grad_enabled() and all(isinstance(readout, TWICE) for readout in spec.readouts)
        if twice:
            filled = [torch.zeros_like(part) if g is None else g for (part,), (g,) in zip(answers, answer_grads, strict=True)]
            own = torch.zeros_like(log_sum) if log_sum_grad is None else log_sum_grad
            *gradients, delta = Backward.apply(spec, log_sum, own, *(part for (part,) in answers), *filled, *tensors)
        else:
            gradients, delta = _first(spec, answers, answer_grads, log_sum, log_sum_grad, tensors)
            what = "gradients of gradients of the output and the log-sum-exp only"
            gradients = [once(what, g, tensors) for g in gradients]
            delta = once(what, delta, tensors)
        needed = ctx.needs_input_grad[4:]
        wanted = (g if need else None for g, need in zip(gradients, needed, strict=True))
        return (None, None, None, -delta if spec.given else None, *wanted)


def _public(found: tuple[Tensor, ...], readouts: Sequence[Readout]) -> tuple[Tensor, ...]:
    """Answers in the dtypes that are promised; a backward is better off with what was not yet rounded."""
    answers, log_sum = split(found, readouts)
    cast = [(p[0].to(r.value.dtype),) if isinstance(r, Output) else p for r, p in zip(readouts, answers, strict=True)]
    return flat(cast, log_sum)


def _first(
    spec: Spec,
    answers: list[Parts],
    answer_grads: list[tuple[Tensor | None, ...]],
    log_sum: Tensor,
    log_sum_grad: Tensor | None,
    tensors: Sequence[Tensor],
) -> tuple[list[Tensor | None], Tensor]:
    """The gradients of query, key, parameters and operands in their dtypes, and δ."""
    call, readouts = spec.restored(tensors)
    of_operands: list[Tensor | None] = []
    asked = []
    for readout, parts, given in zip(readouts, answers, answer_grads, strict=True):
        if all(grad is None for grad in given):
            of_operands += [None] * len(readout.operands)
            continue
        sums = tuple(torch.zeros(t.shape, dtype=call.dtype, device=t.device) for t in readout.operands)
        of_operands += sums
        filled = tuple(
            torch.zeros_like(p) if g is None else g.to(call.dtype).contiguous() for p, g in zip(parts, given, strict=True)
        )
        asked.append(Asked(readout.ready(call), parts, filled, sums))
    into, delta = backward(spec.tiling, call, asked, log_sum, log_sum_grad, spec.given)
    found = (into.query, into.key, *into.parameters, *of_operands)
    return [None if g is None else g.to(t.dtype) for g, t in zip(found, tensors, strict=True)], delta
