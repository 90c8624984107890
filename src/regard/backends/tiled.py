"""Every question, tile by tile in PyTorch, on any device, in O(n) memory.

Two walks over the tiles of a plan. The row sweep merges online readouts while it finds the log-sum-exp: with peak m the
greatest score so far, sums of exp(s - m) shrink by exp(m_old - m_new) whenever m rises. The second sweep, given the
log-sum-exp, hands exact tiles of weights A = exp(S - lse) to the finished readouts.

One backward serves every readout. Each puts G = dL/dA on a tile; with δ_i = Σ_j A_ij G_ij,

    dL/dS = A ∘ (G - δ),   dL/dq = scale · dS k,   dL/dk = scale · dSᵀ q.

Where the log-sum-exp was given, it is a variable of its own: dL/dS = A ∘ G and dL/dlse = -δ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor

from regard.backends.base import Backend
from regard.call import Call, transformed
from regard.checks import Unsupported
from regard.plan import Plan, lay
from regard.products import average, collect, dots
from regard.readouts.base import Finished, FinishedReadout, OnlineReadout, Parts, Place, Readout, Scored, Swept
from regard.readouts.entropy import LEAST

HIDDEN = float("-inf")


@dataclass(frozen=True)
class Tiled(Backend):
    """Tiles of at most `elements` scores over all heads: `columns` keys wide, and as many rows as fit."""

    elements: int = 1 << 18
    columns: int = 512
    grain: int = 128  # keys per tile of the plan: neighbouring tiles are joined up to `columns`
    least_rows: int = 16

    name: ClassVar[str] = "tiled"
    about: ClassVar[str] = "PyTorch tile by tile, any device, O(n) memory"

    def why_not(self, call: Call, readout: Readout | None = None) -> list[str]:
        reasons = []
        if not (readout is None or isinstance(readout, OnlineReadout | FinishedReadout)):
            reasons.append(f"{type(readout).__name__} is neither an OnlineReadout nor a FinishedReadout")
        if transformed(call.query, call.key, *(readout.operands if readout else ())):
            reasons.append("torch.func transforms (vmap, grad, jvp, …) do not go through it; backend='reference' is dense")
        return reasons

    def read(self, call: Call, readouts: Sequence[Readout], log_sum: Tensor | None) -> tuple[list[Parts], Tensor]:
        operands = [t for readout in readouts for t in readout.operands]
        if torch.is_grad_enabled() and any(
            t is not None and t.requires_grad for t in (call.query, call.key, log_sum, *operands)
        ):
            flat = _Read.apply(self, call, tuple(readouts), log_sum, call.query, call.key, *operands)
        else:
            flat = _flat(*_forward(self, call, readouts, log_sum))
        return _split(flat, readouts)


def _flat(answers: list[Parts], log_sum: Tensor) -> tuple[Tensor, ...]:
    return (*(part for parts in answers for part in parts), log_sum)


def _split(flat: Sequence[Any], readouts: Sequence[Readout]) -> tuple[list[Any], Any]:
    """The flat parts of all answers, readout by readout, and the log-sum-exp behind them."""
    answers, at = [], 0
    for readout in readouts:
        count = len(readout.differentiable)
        answers.append(tuple(flat[at : at + count]))
        at += count
    return answers, flat[at]


class _Read(torch.autograd.Function):
    """Both sweeps as one differentiable operation."""

    @staticmethod
    def forward(
        ctx: Any, tiled: Tiled, call: Call, readouts: tuple[Readout, ...], log_sum: Tensor | None, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        flat = _flat(*_forward(tiled, call, readouts, log_sum))
        if log_sum is not None:
            flat = (*flat[:-1], log_sum.clone())
        kinds = [kind for readout in readouts for kind in readout.differentiable]
        ctx.mark_non_differentiable(*(part for part, kind in zip(flat, kinds, strict=False) if not kind))
        ctx.save_for_backward(*flat, *tensors)  # through autograd, so that a change in place is noticed
        ctx.tiled, ctx.call, ctx.given = tiled, call.without_tensors(), log_sum is not None
        ctx.readouts = [readout.without_operands() for readout in readouts]
        ctx.outputs = len(flat)
        ctx.set_materialize_grads(False)  # an answer that nobody differentiates costs nothing
        return flat

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.call.check_unchanged()
        saved = ctx.saved_tensors  # unpacked once: gradient checkpointing allows no second time
        flat, tensors = saved[: ctx.outputs], saved[ctx.outputs :]
        answers, log_sum = _split(flat, ctx.readouts)
        answer_grads, log_sum_grad = _split(grads, ctx.readouts)
        call = replace(ctx.call, query=tensors[0], key=tensors[1])
        operands = iter(tensors[2:])
        gradients: list[Any] = []  # of the operands, readout by readout
        asked = []
        for readout, parts, given in zip(ctx.readouts, answers, answer_grads, strict=True):
            own = [next(operands) for _ in readout.operands]
            wanted = any(grad is not None for grad in given)
            sums = [torch.zeros(t.shape, dtype=call.dtype, device=t.device) if wanted else None for t in own]
            gradients += sums
            if wanted:
                filled = tuple(torch.zeros_like(p) if g is None else g for p, g in zip(parts, given, strict=True))
                asked.append(Asked(readout.with_operands(*own), parts, filled, tuple(s for s in sums if s is not None)))
        query, key, delta = _backward(ctx.tiled, call, asked, log_sum, log_sum_grad, ctx.given)
        cast = (
            _once(g.to(t.dtype), tensors) if needed and g is not None else None
            for g, t, needed in zip((query, key, *gradients), tensors, ctx.needs_input_grad[4:], strict=True)
        )
        return (None, None, None, _once(-delta, tensors) if ctx.given else None, *cast)


class _Once(torch.autograd.Function):
    """A gradient that cannot be differentiated again, and says so (PyTorch's own decorator may drop it silently)."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *of: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        raise Unsupported(
            "attention: the tiled backend has first derivatives only; for gradients of gradients build the matrix with "
            "backend='reference'."
        )


def _once(gradient: Tensor, of: Sequence[Tensor]) -> Tensor:
    return _Once.apply(gradient, *of) if torch.is_grad_enabled() else gradient


# -- walking the tiles ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Walk:
    """A call cut into rows of tiles: one plan per chunk of batch rows."""

    tiled: Tiled
    call: Call
    key: Tensor  # in the dtype of the computation

    @staticmethod
    def over(tiled: Tiled, call: Call) -> Walk:
        return Walk(tiled, call, call.key.to(call.dtype))

    def chunks(self) -> Iterator[tuple[slice, Plan]]:
        """Runs of batch rows that fit into a tile together, each with the plan of what they see."""
        batch, heads, queries, keys = self.call.shape
        t, axes = self.tiled, self.call.axes
        columns = max(1, min(t.columns, keys))
        together = max(1, t.elements // max(1, heads * columns * min(t.least_rows, max(queries, 1))))
        for begin in range(0, max(batch, 1), together):
            part = slice(begin, min(begin + together, batch))
            rows = max(1, min(queries, t.elements // max(1, (part.stop - begin) * heads * columns)))
            yield part, lay(self.call.mask, replace(axes, batch=axes.batch[part]), self.call.offset, rows, t.grain)

    def rows(self, plan: Plan) -> Iterator[tuple[int, slice]]:
        """The rows of tiles of a plan; one without rows where there is no query."""
        queries = self.call.shape[2]
        for row in range(max(len(plan), 1)):
            yield row, slice(row * plan.rows, min((row + 1) * plan.rows, queries))

    def places(self, batch: slice, plan: Plan, row: int, rows: slice) -> Iterator[Place]:
        """Where the row's tiles lie, and what is hidden in them."""
        if row >= len(plan):
            return
        for step in plan.steps(row, self.tiled.columns):
            columns = slice(step.begin, step.end)
            hidden = ~self.call.allowed(batch, rows, columns) if step.mixed else None
            yield Place(self.call, batch, rows, columns, hidden)

    def query(self, batch: slice, rows: slice) -> Tensor:
        return self.call.query[batch, :, rows].to(self.call.dtype) * self.call.scale

    def scores(self, query: Tensor, place: Place) -> Tensor:
        scores = dots(query, place.of_columns(self.key))
        return scores if place.hidden is None else scores.masked_fill_(place.hidden, HIDDEN)

    def tiles(self, log_sum: Tensor, wanted: Callable[[Place], bool] | None = None) -> Iterator[tuple[Finished, Tensor]]:
        """Every visible tile of weights that somebody wants, each with its scaled queries."""
        for batch, plan in self.chunks():
            for row, rows in self.rows(plan):
                query = self.query(batch, rows)
                for place in self.places(batch, plan, row, rows):
                    if wanted is None or wanted(place):
                        yield self.finished(query, place, log_sum), query

    def finished(self, query: Tensor, place: Place, log_sum: Tensor) -> Finished:
        """The weights of a tile, given the log-sum-exp."""
        lse = place.of_rows(log_sum)
        logs = self.scores(query, place).sub_(lse.masked_fill(lse == HIDDEN, 0)[..., None])
        weights = logs.exp()
        if place.hidden is not None:
            weights.masked_fill_(place.hidden, 0)
        return Finished(**_fields(place), weights=weights, log_weights=logs.clamp_min_(LEAST))


def _fields(place: Place) -> dict[str, Any]:
    return {
        "call": place.call,
        "batch": place.batch,
        "rows": place.rows,
        "columns": place.columns,
        "hidden": place.hidden,
    }


# -- forward ----------------------------------------------------------------------------------------------------------


def _forward(tiled: Tiled, call: Call, readouts: Sequence[Readout], log_sum: Tensor | None) -> tuple[list[Parts], Tensor]:
    with torch.no_grad(), torch.autocast(call.device.type, enabled=False):
        walk = Walk.over(tiled, call)
        online = [r for r in readouts if isinstance(r, OnlineReadout)]
        finished = [r for r in readouts if isinstance(r, FinishedReadout)]
        answers: dict[int, Parts] = {}
        if online or log_sum is None:
            parts, log_sum = _row_sweep(walk, online, log_sum)
            answers |= {id(r): p for r, p in zip(online, parts, strict=True)}
        if finished:
            answers |= {id(r): p for r, p in zip(finished, _second_sweep(walk, finished, log_sum), strict=True)}
        return [answers[id(r)] for r in readouts], log_sum


def _row_sweep(walk: Walk, readouts: Sequence[OnlineReadout], given: Tensor | None) -> tuple[list[Parts], Tensor]:
    chunks: list[list[tuple[Tensor, ...]]] = []
    for batch, plan in walk.chunks():
        chunks.append([_sweep_rows(walk, readouts, given, batch, plan, row, rows) for row, rows in walk.rows(plan)])
    parts = range(len(chunks[0][0]))
    flat = [torch.cat([torch.cat([rows[n] for rows in chunk], 2) for chunk in chunks], 0) for n in parts]
    return _split(flat, readouts)


def _sweep_rows(
    walk: Walk, readouts: Sequence[OnlineReadout], given: Tensor | None, batch: slice, plan: Plan, row: int, rows: slice
) -> tuple[Tensor, ...]:
    """The answers and the log-sum-exp of one row of tiles."""
    query = walk.query(batch, rows)
    everything = Place(walk.call, batch, rows, slice(None), None)
    states = [readout.start(everything) for readout in readouts]
    peak = query.new_full(query.shape[:3], HIDDEN) if given is None else everything.of_rows(given)
    total = torch.zeros_like(peak)
    for place in walk.places(batch, plan, row, rows):
        scores = walk.scores(query, place)
        higher = torch.maximum(peak, scores.amax(-1)) if given is None else peak
        base = higher.masked_fill(higher == HIDDEN, 0)
        centred = scores - base[..., None]
        weights = centred.exp()
        rescale = (peak - base).exp() if given is None else torch.ones_like(peak)
        here = weights.sum(-1)
        total = rescale * total + here
        rise = (base - peak).masked_fill(peak == HIDDEN, 0).clamp_max(-LEAST)
        tile = Scored(**_fields(place), scores=scores, centred=centred, weights=weights, total=here, rise=rise, rescale=rescale)
        states = [readout.merge(state, tile) for readout, state in zip(readouts, states, strict=True)]
        peak = higher
    empty = peak == HIDDEN
    gap = total.masked_fill(empty, 1).log() if given is None else torch.zeros_like(peak)
    log_sum = peak + gap if given is None else peak
    end = Swept(walk.call, log_sum, gap, (-gap).exp().masked_fill(empty, 0))
    answers = [readout.finish(state, end) for readout, state in zip(readouts, states, strict=True)]
    return _flat(answers, log_sum)


def _second_sweep(walk: Walk, readouts: Sequence[FinishedReadout], log_sum: Tensor) -> list[Parts]:
    states = [readout.start(walk.call) for readout in readouts]

    def wanted(place: Place) -> bool:
        return any(readout.touches(walk.call, place.rows, place.columns) for readout in readouts)

    for tile, _ in walk.tiles(log_sum, wanted):
        for readout, state in zip(readouts, states, strict=True):
            if readout.touches(walk.call, tile.rows, tile.columns):
                readout.add(state, tile)
    return [readout.finish(state, walk.call) for readout, state in zip(readouts, states, strict=True)]


# -- backward ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A readout, its answer, the answer's gradients, and where those of its operands are summed."""

    readout: Readout
    parts: Parts
    grads: Parts
    gradients: Parts

    def pull(self, tile: Finished) -> Tensor | float:
        return self.readout.pull(tile, self.parts, self.grads)


def _backward(
    tiled: Tiled, call: Call, asked: list[Asked], log_sum: Tensor, log_sum_grad: Tensor | None, given: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """dL/dquery, dL/dkey and δ; those of the operands are added where they are summed."""
    with torch.no_grad(), torch.autocast(call.device.type, enabled=False):
        walk = Walk.over(tiled, call)
        delta = _deltas(walk, asked, log_sum)
        if log_sum_grad is not None:
            delta -= log_sum_grad
        query_grad = torch.zeros_like(call.query, dtype=call.dtype, memory_format=torch.contiguous_format)
        key_grad = torch.zeros_like(walk.key, memory_format=torch.contiguous_format)
        for tile, query in walk.tiles(log_sum):
            grad = _pulled(tile, asked)
            scores_grad = tile.weights * (grad if given else grad - tile.of_rows(delta)[..., None])
            if tile.hidden is not None:
                scores_grad.masked_fill_(tile.hidden, 0)
            keys = tile.of_columns(walk.key)
            tile.of_rows(query_grad).add_(average(scores_grad, keys, tile.hidden))
            tile.of_columns(key_grad).add_(collect(scores_grad, query, tile.hidden, keys.shape[1]))
            for one in asked:
                one.readout.pull_operands(tile, one.grads, one.gradients)
        return query_grad.mul_(call.scale), key_grad, delta


def _deltas(walk: Walk, asked: list[Asked], log_sum: Tensor) -> Tensor:
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
        for tile, _ in walk.tiles(log_sum):
            share = tile.weights * _pulled(tile, unknown)
            if tile.hidden is not None:
                share.masked_fill_(tile.hidden, 0)
            tile.of_rows(total).add_(share.sum(-1))
    return total


def _pulled(tile: Finished, asked: list[Asked]) -> Tensor:
    """G = dL/dA on a tile."""
    grad = torch.zeros_like(tile.weights)
    for one in asked:
        grad = grad + one.pull(tile)
    return grad
