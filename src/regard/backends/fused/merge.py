"""Output, log-sum-exp and gradients of a call, from one call of a kernel per block of keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regard.backends.fused.kernels import Kernel, kernel_for
from regard.backends.fused.told import Shape, blocks, kept, told
from regard.call import Call
from regard.readouts.output import Output

HIDDEN = float("-inf")


# -- what a kernel is given -------------------------------------------------------------------------------------------


class Given(NamedTuple):
    """The kernel, its tensors, what is added per key, and which rows see something that is not finite."""

    kernel: Kernel
    query: Tensor
    key: Tensor
    value: Tensor
    added: Tensor | None = None
    bad_scores: Tensor | None = None  # (batch, heads, queries); None = somebody has looked
    bad_rows: Tensor | None = None


def _given(call: Call, shape: Shape, value: Tensor) -> Given:
    query, key = call.query, call.key
    dtype, dim = torch.promote_types(query.dtype, value.dtype), max(query.shape[3], value.shape[3])
    kernel = kernel_for(query.device, dtype, dim)
    if kernel is None:
        raise AssertionError("there is a kernel for every call that why_not lets through")
    dim += -dim % kernel.multiple
    heads = max(key.shape[1], value.shape[1]) if kernel.grouped else query.shape[1]
    query, key, value = _ready(query, dtype, dim), _ready(key, dtype, dim, heads), _ready(value, dtype, dim, heads)
    if shape.of_keys:
        seen = kept(call, shape)
        added = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, HIDDEN)
        return Given(kernel, query, key, value, added)
    if not kernel.repairs or shape.causal is None:
        return Given(kernel, query, key, value)
    key, bad_scores = _repaired(key, query.shape[2], shape.causal)
    value, bad_values = _repaired(value, query.shape[2], shape.causal)
    return Given(kernel, query, key, value, None, bad_scores, bad_scores | bad_values)


def _ready(tensor: Tensor, dtype: torch.dtype, dim: int, heads: int | None = None) -> Tensor:
    """As the kernel can read it: of that dtype, dim and number of heads, and the last dimension without a stride."""
    own, given = tensor.shape[1], tensor.shape[3]
    if tensor.dtype != dtype:
        tensor = tensor.to(dtype)
    if given != dim:
        tensor = torch.nn.functional.pad(tensor, (0, dim - given))
    if heads is not None and own != heads:
        tensor = tensor.expand(-1, heads, -1, -1) if own == 1 else tensor.repeat_interleave(heads // own, 1)
    return tensor if tensor.stride(3) == 1 else tensor.contiguous()


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """tensor.to(dtype), quicker where nothing is to be done."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _repaired(tensor: Tensor, queries: int, causal: int) -> tuple[Tensor, Tensor]:
    """The tensor with 0 where it is not finite, and the rows that see such a number; no device is waited for."""
    bad = ~tensor.isfinite()
    so_far = bad.any(-1).cumsum(-1) > 0
    last = torch.arange(causal, causal + queries, device=tensor.device)  # the last key that each row sees
    return tensor.masked_fill(bad, 0), so_far[..., last.clamp(0, tensor.shape[2] - 1)] & (last >= 0)


# -- forward ----------------------------------------------------------------------------------------------------------


def forward(call: Call, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The output, the log-sum-exp, and the output as the backward wants it: padded, unrounded by the value's dtype."""
    shape = told(call)
    given = _given(call, shape, value)
    kernel, query, key, values, added, *_ = given
    batch, heads, queries, _ = query.shape
    output: Tensor | None = None
    log_sum: Tensor | None = None
    for block in blocks(shape, queries, key.shape[2]):
        q, k, v, a = block.of(query, key, values, added)
        part, lse = kernel.forward(q, k, v, block.causal, a, call.scale)
        if a is not None:  # rows that see nothing
            lse = lse.masked_fill(_empty(a, lse, block.causal), HIDDEN)
        if block.first:
            part = torch.nn.functional.pad(part, (0, 0, block.first, 0))
            lse = torch.nn.functional.pad(lse, (block.first, 0), value=HIDDEN)
        output, log_sum = (part, lse) if output is None or log_sum is None else _merged(output, log_sum, part, lse)
    if output is None or log_sum is None:
        output = query.new_zeros(batch, heads, queries, values.shape[-1])
        log_sum = query.new_full((batch, heads, queries), HIDDEN, dtype=call.dtype)
    if call.sinks is not None:
        total = torch.logaddexp(log_sum, call.sinks.detach()[:, None].to(log_sum.dtype))
        output = output * _share(log_sum, total)[..., None]
        log_sum = total
    if given.bad_scores is not None and given.bad_rows is not None:
        output = output.masked_fill(given.bad_rows[..., None], torch.nan)
        log_sum = log_sum.masked_fill(given.bad_scores, torch.nan)
    cut = output if output.shape[-1] == value.shape[-1] else output[..., : value.shape[-1]]
    return _as(cut, value.dtype), _as(log_sum, call.dtype), _as(output, query.dtype)


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
    """Parts of a row over different keys; the output is not yet rounded to 16 bits."""
    total = torch.logaddexp(lse_a, lse_b)
    return a * _share(lse_a, total)[..., None] + b * _share(lse_b, total)[..., None], total


# -- backward ---------------------------------------------------------------------------------------------------------


class Differentiable(torch.autograd.Function):
    """The output as a differentiable operation; the log-sum-exp comes along without a gradient."""

    @staticmethod
    def forward(ctx: Any, call: Call, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
        output, log_sum, padded = forward(call, value)
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
        return (None, *gradients(call, value, output, log_sum, grad))


def gradients(call: Call, value: Tensor, output: Tensor, log_sum: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Of query, key, value and sinks; the output may lack the padding."""
    shape = told(call)
    kernel, query, key, values, added, *_ = _given(call, shape, value)
    above, output = (_ready(t, query.dtype, values.shape[-1]) for t in (grad, output))
    log_sum = _as(log_sum, torch.promote_types(query.dtype, torch.float32))
    finite = log_sum.masked_fill(log_sum == HIDDEN, 0)  # exp(-inf - 0) = 0: an empty row has no gradient
    by_query = by_key = by_value = by_sinks = None
    for block in blocks(shape, query.shape[2], key.shape[2]):
        rows, columns = slice(block.first, None), slice(block.begin, block.end)
        q, k, v, a = block.of(query, key, values, added)
        upper = (above, output, finite)  # those of its rows
        if block.first:
            upper = above[..., rows, :], output[..., rows, :], finite[..., rows]
        found = kernel.backward(upper[0], q, k, v, *upper[1:], block.causal, a, call.scale)
        by_query = _added(by_query, found[0], query, rows)
        by_key = _added(by_key, found[1], key, columns)
        by_value = _added(by_value, found[2], values, columns)
    if call.sinks is not None:
        delta = (above.to(call.dtype) * output).sum(-1)
        by_sinks = -((call.sinks[:, None] - log_sum).exp().masked_fill(log_sum == HIDDEN, 0) * delta).sum((0, 2))
        by_sinks = by_sinks.to(call.sinks.dtype)
    return _undone(by_query, call.query), _undone(by_key, call.key), _undone(by_value, value), by_sinks


def _added(total: Tensor | None, part: Tensor, like: Tensor, place: slice) -> Tensor:
    """The sum of what blocks gave, with one more."""
    if total is None and part.shape == like.shape:
        return part
    total = torch.zeros_like(like) if total is None else total
    total[..., place, :] += part
    return total


def _undone(gradient: Tensor | None, of: Tensor) -> Tensor:
    """The gradient of a tensor that was repeated over heads, padded and cast for the kernel; None: there was no block."""
    if gradient is None:
        return torch.zeros_like(of)
    if gradient.shape[1] != of.shape[1]:
        gradient = gradient.unflatten(1, (of.shape[1], -1)).sum(2)
    if gradient.shape[-1] != of.shape[-1]:
        gradient = gradient[..., : of.shape[-1]]
    return _as(gradient, of.dtype)


def _differentiable(call: Call, value: Tensor, grad: Tensor, needed: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """The same gradients as answers of the tiled backend, which can be differentiated again."""
    from regard.backends import named

    tensors = (call.query, call.key, value, call.sinks)
    wanted = [t for t, need in zip(tensors, needed, strict=True) if need and t is not None]
    (parts,), _ = named("tiled").read(call, [Output(value)], None)
    found = iter(torch.autograd.grad(parts[0], wanted, grad, create_graph=True))
    return tuple(next(found) if need and t is not None else None for t, need in zip(tensors, needed, strict=True))
