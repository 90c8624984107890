"""PyTorch's own fused kernel, where the mask allows: the output and the log-sum-exp, at its speed.

The kernel knows everyone, causal from the top left, and numbers that are added per key. More is made of it exactly, because
parts of A over different keys merge by their log-sum-exp:

    causal with offset o > 0     keys 0 … o - 1, which everyone sees, and the others, causal from the top left
    causal with offset o < 0     the first -o rows are empty
    sinks                        one more part, without a value
    a part of the keys           the part's own output times exp(lse_part - lse_whole)

What the kernel does wrong is kept away from it: empty rows (its log-sum-exp is 0 there), NaN and infinity in keys and values
that somebody may not see (they leak), scales that are not above 0 (they are multiplied with the -inf of hidden pairs), tensors
that are empty (it crashes) or whose last dimension is strided (it reads beside them). In 16 bits its exponentials are rough:
the output is as good as any in 16 bits, the log-sum-exp is not, and stays inside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from regard import checks
from regard.backends.base import Backend
from regard.call import Call, dual, transformed
from regard.masks import Mask
from regard.masks.algebra import EMPTY, FULL, And, Box
from regard.masks.contents import Dense, Keep
from regard.masks.intervals import Causal, CausalFrom, Lengths, Prefix
from regard.readouts.base import Parts, Readout
from regard.readouts.logsumexp import LogSumExp
from regard.readouts.output import Output

HIDDEN = float("-inf")
LOW = (torch.float16, torch.bfloat16)
_kernel: Any = torch._scaled_dot_product_flash_attention_for_cpu  # as torch.ops.aten has it, and quicker to call
_kernel_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


@dataclass(frozen=True)
class Shape:
    """What of a mask the kernel is told: causal from which key on (None = not at all), and masks of keys alone."""

    causal: int | None
    of_keys: tuple[Mask, ...]


@dataclass(frozen=True)
class Fused(Backend):
    """Output and log-sum-exp by PyTorch's kernel."""

    name: ClassVar[str] = "fused"
    first: ClassVar[bool] = True
    about: ClassVar[str] = "PyTorch's fused kernel on the CPU: output and log-sum-exp, full, causal and key masks"

    def why_not(self, call: Call, readout: Readout | None = None) -> list[str]:
        shape = shape_of(call)
        reasons = [] if readout is None else _question(call, readout)
        reasons += _beyond(call)
        if isinstance(shape, str):
            reasons.append(shape)
        elif not reasons and (shape.causal is not None or shape.of_keys) and not _finite(call, shape, readout):
            reasons.append("keys or values may hold NaN or infinity, which the kernel lets through to who may not see them")
        return reasons

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
            tensors = (call.query, call.key, readout.value, call.sinks)
            if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
                output, own = _Fused.apply(call, call.query, call.key, readout.value, call.sinks)
            else:
                output, own, _ = _forward(call, readout.value)
            if given is not None:
                output = output * (own - given).masked_fill(own == HIDDEN, 0).exp()[..., None].to(output.dtype)
            found.append((output,))
        if own is None:
            own = _forward(call, call.key)[1]
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
            padded = _padded(output.to(torch.promote_types(call.query.dtype, output.dtype)), _width(call, output))
            found = _gradients(call, readout.value, padded, log_sum, grad)
            of_values.append(found[2])
            for n, part in enumerate((*found[:2], *found[3:])[: len(sums)]):
                so_far = sums[n]
                sums[n] = part if so_far is None or part is None else so_far + part
        return [*sums, *of_values], None


def _width(call: Call, value: Tensor) -> int:
    """The dim that queries, keys and values have for the kernel."""
    return max(call.query.shape[-1], value.shape[-1])


def _question(call: Call, readout: Readout) -> list[str]:
    if not isinstance(readout, Output | LogSumExp):
        return [f"it answers the output and the log-sum-exp, and not {readout.name}"]
    reasons = []
    if isinstance(readout, Output):
        if readout.drop is not None:
            reasons.append("PyTorch's kernel has no dropout")
        if not readout.value.shape[-1]:
            reasons.append("the values are empty")
        if dual(readout.value):
            reasons.append("PyTorch's kernel has no forward-mode derivatives")
        if transformed(readout.value):
            reasons.append("torch.func transforms do not go through it")
    if isinstance(readout, LogSumExp) and call.query.dtype in LOW:
        reasons.append("its log-sum-exp is rough in 16 bits")
    differentiable = call.differentiable or any(t.requires_grad for t in readout.operands)
    if torch.is_grad_enabled() and differentiable:
        if isinstance(readout, LogSumExp) and call.whole is None:
            reasons.append("its backward takes no gradient of the log-sum-exp")
        if call.whole is not None:
            reasons.append("its backward knows no part of the keys")
        if call.query.dtype in LOW or any(t.dtype in LOW for t in readout.operands):
            reasons.append("its backward rounds to 16 bits in between")
    return reasons


def _beyond(call: Call) -> list[str]:
    """What the kernel does not know, or does wrong, whatever is asked."""
    reasons = []
    if call.device.type != "cpu":
        reasons.append(f"it runs on the CPU, and the matrix is on {call.device}")
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
    if dual(*call.tensors):
        reasons.append("PyTorch's kernel has no forward-mode derivatives")
    if transformed(*call.tensors, *call.mask.tensors()):
        reasons.append("torch.func transforms do not go through it")
    return reasons


def _finite(call: Call, shape: Shape, readout: Readout | None) -> bool:
    """A sum is finite only if every number is; it may overflow and say no, which costs time and no truth.

    Scores that are hidden by being causal are overwritten: there a key can leak in the backward only.
    """
    checked = list(readout.operands) if readout is not None else []
    if shape.of_keys or not checked or call.differentiable:
        checked.append(call.key)
    total = _sum(checked[0])
    for tensor in checked[1:]:
        total = total + _sum(tensor)
    return math.isfinite(total.item())


def _sum(tensor: Tensor) -> Tensor:
    return tensor.sum(dtype=torch.float32) if tensor.dtype in LOW else tensor.sum()


# -- what the kernel is told of the mask ------------------------------------------------------------------------------


def shape_of(call: Call) -> Shape | str:
    """The mask as the kernel takes it, or why it cannot."""
    axes, offset = call.axes, call.offset
    for name, indices in (("queries", axes.queries), ("keys", axes.keys)):
        if not isinstance(indices, range) or (len(indices) > 1 and indices.step != 1):
            return f"the {name} are no run"
    if not isinstance(offset, int):
        if len({offset[b] for b in axes.batch}) > 1:
            return "each batch row has its own offset"
        offset = offset[axes.batch[0]]
    first_query, first_key = axes.queries[:1], axes.keys[:1]
    shift = (first_query[0] if first_query else 0) - (first_key[0] if first_key else 0)
    causal: int | None = None
    of_keys = []
    for part in call.mask.masks if isinstance(call.mask, And) else (call.mask,):
        if isinstance(part, Causal | CausalFrom):
            start = shift + (part.start if isinstance(part, CausalFrom) else offset)
            causal = start if causal is None else min(causal, start)
        elif _of_keys(part):
            of_keys.append(part)
        elif _kind(call, part, offset) != FULL:
            return f"PyTorch's kernel knows causal masks and masks of keys, and not {part}"
    if causal is not None and causal >= call.shape[3] - 1:
        causal = None
    return Shape(causal, tuple(of_keys))


def _told(call: Call) -> Shape:
    """The mask of a call that the kernel takes."""
    shape = shape_of(call)
    if isinstance(shape, str):
        raise checks.Unsupported(f"backend 'fused' cannot answer: {shape}.")
    return shape


def _of_keys(mask: Mask) -> bool:
    """Whether every query of a batch row and head sees the same keys."""
    if isinstance(mask, Keep | Lengths | Prefix):
        return True
    if isinstance(mask, Dense):
        shape = mask.tensor.tensor.shape
        return len(shape) == 1 or shape[-2] == 1
    return bool(mask.parts()) and all(map(_of_keys, mask.parts()))


def _kind(call: Call, mask: Mask, offset: int) -> int:
    """EMPTY, MIXED or FULL over the whole matrix."""
    axes = call.axes
    if not all(call.shape):
        return EMPTY
    top, bottom, left, right = (np.array([n]) for axis in (axes.queries, axes.keys) for n in (axis[0], axis[-1]))
    return int(mask.box(Box(axes.batch, axes.heads, top, bottom, left, right, offset, offset))[0])


def _kept(call: Call, shape: Shape) -> Tensor | None:
    """The keys that are seen, (batch or 1, heads or 1, 1, keys); None = all."""
    kept: Tensor | None = None
    if not shape.of_keys:
        return None
    pairs = call.pairs(rows=slice(0, 1))
    for mask in shape.of_keys:
        seen = mask._allows(*pairs)
        seen = seen.reshape((1,) * (4 - seen.ndim) + seen.shape)[..., :1, :]
        kept = seen if kept is None else kept & seen
    return kept


# -- the kernel -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """One call of the kernel: keys begin … end - 1, rows from first on."""

    begin: int
    end: int
    first: int
    causal: bool

    def of(
        self, query: Tensor, key: Tensor, value: Tensor, added: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Its part of everything."""
        if self.first:
            query = query[..., self.first :, :]
        if (self.begin, self.end) != (0, key.shape[2]):
            columns = slice(self.begin, self.end)
            key, value = key[..., columns, :], value[..., columns, :]
            added = None if added is None else added[..., columns]
        return query, key, value, added


def _blocks(shape: Shape, queries: int, keys: int) -> list[Block]:
    if shape.causal is None:
        return [Block(0, keys, 0, False)]
    if shape.causal < 0:
        return [Block(0, keys, -shape.causal, True)] if -shape.causal < queries else []
    if shape.causal == 0:
        return [Block(0, keys, 0, True)]
    return [Block(0, shape.causal, 0, False), Block(shape.causal, keys, 0, True)]


def _ready(tensor: Tensor) -> Tensor:
    """As the kernel can read it: the last dimension without a stride."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _padded(tensor: Tensor, width: int) -> Tensor:
    """With zeros up to a width."""
    return tensor if tensor.shape[-1] == width else torch.nn.functional.pad(tensor, (0, width - tensor.shape[-1]))


def _inputs(call: Call, shape: Shape, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Query, key, value and what is added per key."""
    query, key = call.query, call.key
    alike = query.dtype == value.dtype and query.shape[-1] == value.shape[-1] and value.shape[1] == key.shape[1]
    if alike and not shape.of_keys:
        return _ready(query), _ready(key), _ready(value), None
    dtype = torch.promote_types(query.dtype, value.dtype)
    width = max(query.shape[-1], value.shape[-1])
    if value.shape[1] < key.shape[1]:
        value = value.expand(-1, key.shape[1], -1, -1)
    elif value.shape[1] > key.shape[1]:  # the values have a head of their own for each query head
        key = key.repeat_interleave(value.shape[1] // key.shape[1], 1)
    kept = _kept(call, shape)
    added = None
    if kept is not None:
        added = torch.zeros(kept.shape, dtype=dtype, device=kept.device).masked_fill_(~kept, HIDDEN)
    query, key, value = (_padded(t.to(dtype), width) for t in (query, key, value))
    return _ready(query), _ready(key), _ready(value), added


def _forward(call: Call, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The output, the log-sum-exp, and the output as the backward wants it: padded, unrounded by the value's dtype."""
    shape = _told(call)
    query, key, values, added = _inputs(call, shape, value)
    queries, keys = call.shape[2:]
    output: Tensor | None = None
    log_sum: Tensor | None = None
    for block in _blocks(shape, queries, keys):
        q, k, v, a = block.of(query, key, values, added)
        part, lse = _kernel(q, k, v, 0.0, block.causal, attn_mask=a, scale=call.scale)
        if a is not None:  # rows that see nothing
            lse = lse.masked_fill(_empty(a, lse, block.causal), HIDDEN)
        if block.first:
            part = torch.nn.functional.pad(part, (0, 0, block.first, 0))
            lse = torch.nn.functional.pad(lse, (block.first, 0), value=HIDDEN)
        output, log_sum = (part, lse) if output is None or log_sum is None else _merged(output, log_sum, part, lse)
    if output is None or log_sum is None:
        output = query.new_zeros(*call.shape[:3], values.shape[-1])
        log_sum = query.new_full(call.shape[:3], HIDDEN, dtype=call.dtype)
    if call.sinks is not None:
        total = torch.logaddexp(log_sum, call.sinks.detach()[:, None].to(log_sum.dtype))
        output = output * _share(log_sum, total)[..., None].to(output.dtype)
        log_sum = total
    cut = output if output.shape[-1] == value.shape[-1] else output[..., : value.shape[-1]]
    return (cut if cut.dtype == value.dtype else cut.to(value.dtype)), log_sum.to(call.dtype), output


def _empty(added: Tensor, log_sum: Tensor, causal: bool) -> Tensor:
    """Which rows see none of the keys, where causal means from the top left."""
    seen = added == 0
    if not causal:
        return (~seen.any(-1)).expand(log_sum.shape)
    rows, keys = log_sum.shape[-1], seen.shape[-1]
    so_far = seen.cumsum(-1)[..., 0, :]
    return (so_far[..., torch.arange(rows).clamp_max(keys - 1)] == 0).expand(log_sum.shape)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """exp(part - whole), 0 where the part is empty."""
    return (part - whole).masked_fill(part == HIDDEN, HIDDEN).exp()


def _merged(a: Tensor, lse_a: Tensor, b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Parts of a row over different keys."""
    total = torch.logaddexp(lse_a, lse_b)
    return a * _share(lse_a, total)[..., None].to(a.dtype) + b * _share(lse_b, total)[..., None].to(b.dtype), total


class _Fused(torch.autograd.Function):
    """The output as a differentiable operation; the log-sum-exp comes along without a gradient."""

    @staticmethod
    def forward(ctx: Any, call: Call, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
        output, log_sum, padded = _forward(call, value)
        ctx.call = call.without_tensors()
        ctx.save_for_backward(query, key, value, sinks, padded, log_sum)
        ctx.mark_non_differentiable(log_sum)
        ctx.set_materialize_grads(False)
        return output, log_sum

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        ctx.call.check_unchanged()
        query, key, value, sinks, output, log_sum = ctx.saved_tensors
        if grad is None:
            return (None,) * 5
        tensors = (query, key) if sinks is None else (query, key, sinks)
        call = ctx.call.with_tensors(*tensors)
        if torch.is_grad_enabled():
            return (None, *_differentiable(call, value, grad, ctx.needs_input_grad[1:]))
        return (None, *_gradients(call, value, output, log_sum, grad))


def _gradients(call: Call, value: Tensor, output: Tensor, log_sum: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Of query, key, value and sinks."""
    shape = _told(call)
    query, key, values, added = _inputs(call, shape, value)
    above = _ready(_padded(grad.to(query.dtype), values.shape[-1]))
    by_query, by_key, by_value = (torch.zeros_like(t) for t in (query, key, values))
    finite = log_sum.masked_fill(log_sum == HIDDEN, 0)  # exp(-inf - 0) = 0: an empty row has no gradient
    for block in _blocks(shape, *call.shape[2:]):
        rows, columns = slice(block.first, None), slice(block.begin, block.end)
        q, k, v, a = block.of(query, key, values, added)
        found = _kernel_backward(
            above[..., rows, :], q, k, v, output[..., rows, :], finite[..., rows], 0.0, block.causal, attn_mask=a,
            scale=call.scale,
        )  # fmt: skip
        by_query[..., rows, :] += found[0]
        by_key[..., columns, :] += found[1]
        by_value[..., columns, :] += found[2]
    by_key, by_value = (g.unflatten(1, (t.shape[1], -1)).sum(2) for g, t in ((by_key, call.key), (by_value, value)))
    by_sinks = None
    if call.sinks is not None:
        delta = (above * output).sum(-1).to(call.dtype)
        by_sinks = -((call.sinks[:, None] - log_sum).exp().masked_fill(log_sum == HIDDEN, 0) * delta).sum((0, 2))
        by_sinks = by_sinks.to(call.sinks.dtype)
    cut = ((by_query, call.query), (by_key, call.key), (by_value, value))
    return (*(g[..., : t.shape[-1]].to(t.dtype) for g, t in cut), by_sinks)


def _differentiable(call: Call, value: Tensor, grad: Tensor, needed: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """The same gradients as answers of the tiled backend, which can be differentiated again."""
    from regard.backends import named

    tensors = (call.query, call.key, value, call.sinks)
    wanted = [t for t, need in zip(tensors, needed, strict=True) if need and t is not None]
    (parts,), _ = named("tiled").read(call, [Output(value)], None)
    found = iter(torch.autograd.grad(parts[0], wanted, grad, create_graph=True))
    return tuple(next(found) if need and t is not None else None for t, need in zip(tensors, needed, strict=True))
