"""PyTorch's own fused kernels, where the mask allows: the output and the log-sum-exp, at their speed.

A kernel knows everyone, causal from the top left, and on the CPU numbers that are added per key. More is made of it exactly,
because parts of A over different keys merge by their log-sum-exp:

    causal with offset o > 0     keys 0 … o - 1, which everyone sees, and the others, causal from the top left
    causal with offset o < 0     the first -o rows are empty
    sinks                        one more part, without a value
    a part of the keys           the part's own output times exp(lse_part - lse_whole)

What the CPU's kernel does wrong is kept away from it: empty rows (its log-sum-exp is 0 there), NaN and infinity in keys and
values that somebody may not see (they leak), scales that are not above 0 (they are multiplied with the -inf of hidden pairs),
tensors that are empty (it crashes) or whose last dimension is strided (it reads beside them). In 16 bits its exponentials are
rough: the output is as good as any in 16 bits, the log-sum-exp is not, and stays inside. Its backward rounds the weights,
dL/dS and sums over blocks of queries to 16 bits, as that of scaled_dot_product_attention does, and takes δ from the rounded
output.

On CUDA the kernels have been checked for the shapes of their tensors alone and never been run, so there this backend answers
only when it is named: full masks and causal ones. Nothing is looked at there, since looking would wait for the GPU: under a
causal mask, keys and values that are not finite count as 0 in the kernel, and rows that see one are NaN afterwards. Where
such a row has a gradient, those of all keys and values of its head are NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from regard.backends.base import Backend
from regard.backends.fused.kernels import LOW, ON, kernel_for
from regard.backends.fused.merge import HIDDEN, Differentiable, forward, gradients
from regard.backends.fused.told import Shape, blocks, shape_of
from regard.call import Call, dual, transformed
from regard.readouts.base import Parts, Readout
from regard.readouts.logsumexp import LogSumExp
from regard.readouts.output import Output


@dataclass(frozen=True)
class Fused(Backend):
    """Output and log-sum-exp by PyTorch's kernels."""

    name: ClassVar[str] = "fused"
    first: ClassVar[bool] = True
    about: ClassVar[str] = (
        "PyTorch's fused kernels: output and log-sum-exp; full, causal and key masks on the CPU; full and causal ones on CUDA, "
        "where it was never run and answers only when it is named"
    )

    def why_not(self, call: Call, readout: Readout | None = None) -> list[str]:
        operands = () if readout is None else readout.operands
        reasons = [] if readout is None else _question(call, readout)
        reasons += _beyond(call, operands)
        shape = shape_of(call)
        if isinstance(shape, str):
            reasons.append(shape)
        elif not call.query.is_cpu:
            reasons += _on_a_device(call, shape, operands)
        elif not reasons and (shape.causal is not None or shape.of_keys) and not _finite(call, shape, operands):
            reasons.append("keys or values may hold NaN or infinity, which the kernel lets through to who may not see them")
        return reasons

    def why_not_chosen(self, call: Call, readout: Readout | None = None) -> list[str]:
        if not call.query.is_cpu:
            return ["its kernels on a GPU were checked for shapes alone and never run: it only answers when it is named"]
        if call.query.dtype == torch.float16 and readout is not None and _differentiated(call, readout.operands):
            return ["in float16 PyTorch's backward is slower on the CPU than tiles: it only answers when it is named"]
        return []

    def pairs(self, call: Call) -> int:
        """Pairs that the kernel computes: key masks save it nothing."""
        batch, heads, queries, keys = call.shape
        shape = shape_of(call)
        causal = None if isinstance(shape, str) else shape.causal
        if causal is None:
            return batch * heads * queries * keys
        seen = np.clip(np.arange(queries, dtype=np.int64) + causal + 1, 0, keys)
        return batch * heads * int(seen.sum())

    def read(self, call: Call, readouts: Sequence[Readout], log_sum: Tensor | None) -> tuple[list[Parts], Tensor | None]:
        given = log_sum if call.whole is not None else None
        found: list[Parts] = []
        own: Tensor | None = None
        for readout in readouts:
            if not isinstance(readout, Output):
                continue
            if _differentiated(call, readout.operands):
                output, own = Differentiable.apply(call, call.query, call.key, readout.value, call.sinks)
            else:
                output, own, _ = forward(call, readout.value)
            if given is not None:
                output = output * (own - given).masked_fill(own == HIDDEN, 0).exp()[..., None].to(output.dtype)
            found.append((output,))
        if own is None:
            own = forward(call, call.key)[1]
        log_sum = given if given is not None else None if call.query.dtype in LOW else own
        outputs = iter(found)
        return [
            next(outputs) if isinstance(readout, Output) else (own if given is None else given,) for readout in readouts
        ], log_sum

    def gradients(
        self,
        call: Call,
        readouts: Sequence[Readout],
        log_sum: Tensor | None,
        answers: Sequence[Parts],
        grads: Sequence[tuple[Tensor | None, ...]],
    ) -> tuple[Sequence[Tensor | None], Tensor | None]:
        if log_sum is None or call.whole is not None:
            raise AssertionError("its backward begins with its own log-sum-exp")
        sums: list[Tensor | None] = [None] * len(call.tensors)
        of_values: list[Tensor | None] = []
        for readout, (output,), (grad,) in zip(readouts, answers, grads, strict=True):
            if not isinstance(readout, Output):
                continue
            if grad is None:
                of_values.append(None)
                continue
            if output.dtype != torch.promote_types(call.query.dtype, output.dtype):
                output = forward(call, readout.value)[2]  # δ would feel that the answer was rounded to the value's dtype
            found = gradients(call, readout.value, output, log_sum, grad)
            of_values.append(found[2])
            for n, part in enumerate((*found[:2], *found[3:])[: len(sums)]):
                so_far = sums[n]
                sums[n] = part if so_far is None or part is None else so_far + part
        return [*sums, *of_values], None


def _question(call: Call, readout: Readout) -> list[str]:
    if not isinstance(readout, (Output, LogSumExp)):
        return [f"it answers the output and the log-sum-exp, and not {readout.name}"]
    reasons = []
    if isinstance(readout, Output):
        if readout.drop is not None:
            reasons.append("PyTorch's kernel has no dropout")
        if not readout.value.shape[-1]:
            reasons.append("the values are empty")
    elif call.query.dtype in LOW:
        reasons.append("its log-sum-exp is rough in 16 bits")
    if _differentiated(call, readout.operands):
        if call.whole is not None:
            reasons.append("its backward knows no part of the keys")
        elif isinstance(readout, LogSumExp):
            reasons.append("its backward takes no gradient of the log-sum-exp")
    return reasons


def _differentiated(call: Call, operands: Sequence[Tensor]) -> bool:
    """Whether an answer belongs to a graph."""
    return call.differentiable or (torch.is_grad_enabled() and any(t.requires_grad for t in operands))


def _beyond(call: Call, operands: Sequence[Tensor]) -> list[str]:
    """What the kernels do not know, or do wrong, whatever is asked."""
    reasons = []
    if call.bias is not None:
        reasons.append("PyTorch's kernel has no bias")
    if call.softcap is not None:
        reasons.append("PyTorch's kernel has no softcap")
    if call.combine is not None:
        reasons.append("PyTorch's kernel has no score of Bahdanau's")
    if call.scale <= 0:
        reasons.append(f"PyTorch's kernel needs a scale above 0, and this one is {call.scale:g}")
    if not call.query.numel() or not call.key.numel():
        reasons.append("the matrix is empty")
    tensors = (*call.tensors, *call.mask.tensors(), *operands)
    if dual(*tensors):
        reasons.append("PyTorch's kernel has no forward-mode derivatives")
    if transformed(*tensors):
        reasons.append("torch.func transforms do not go through it")
    return reasons


def _on_a_device(call: Call, shape: Shape, operands: Sequence[Tensor]) -> list[str]:
    """What the kernels on a GPU do not know besides."""
    if call.device.type not in ON:
        return [f"it runs on {' and '.join(ON)}, and the matrix is on {call.device}"]
    reasons = []
    value = operands[0] if operands else call.key
    dtype, dim = torch.promote_types(call.query.dtype, value.dtype), max(call.query.shape[3], value.shape[3])
    kernel = kernel_for(call.device, dtype, dim)
    if kernel is None:
        reasons.append(f"PyTorch has no fused kernel for {dtype} on {call.device.type}")
    elif shape.of_keys and not kernel.of_keys:
        reasons.append(f"PyTorch's kernels on {call.device.type} know no masks of keys")
    elif kernel.squares and any(not block.square(call.shape[2]) for block in blocks(shape, *call.shape[2:])):
        reasons.append("PyTorch's kernels on a GPU know causal masks only with as many queries as keys")
    return reasons


def _finite(call: Call, shape: Shape, operands: Sequence[Tensor]) -> bool:
    """A sum is finite only if every number is; it may overflow and say no, which costs time and no truth.

    Scores that are hidden by being causal are overwritten: there a key can leak in the backward only.
    """
    keys_too = shape.of_keys or not operands or call.differentiable
    checked = (*operands, call.key) if keys_too else operands
    return all(math.isfinite(_sum(t.detach() if t.requires_grad else t).item()) for t in checked)


def _sum(tensor: Tensor) -> Tensor:
    return tensor.sum(dtype=torch.float32) if tensor.dtype in LOW else tensor.sum()
