"""The scores of a tile, and what a change of them does to all that they are made of.

    raw_ij = scale · q_i · k_j          or, with `combine` v (Bahdanau et al. 2015),  scale · Σ_m v_m tanh(q_im + k_jm)
    S_ij   = c · tanh(raw_ij / c) + bias_ij,  -inf for hidden pairs

A backward hands dL/dS of a tile to `pull`. For gradients of gradients, `tangent` is the change of S in the direction of given
changes of everything, and `pull_tangent` takes cotangents of both S and that change back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.call import Call
from regard.masks import full
from regard.products import average, collect, dots
from regard.readouts.base import LEAST, Finished, Place

HIDDEN = float("-inf")
AT_ONCE = 1 << 21  # numbers that Bahdanau's score may hold at once


@dataclass(frozen=True)
class Tile(Place):
    """A tile's scores; hidden includes what a bias of -inf hides; capped = tanh(raw / c), None without a softcap."""

    scores: Tensor
    capped: Tensor | None

    @property
    def slope(self) -> Tensor | None:
        """dS/draw, None = 1."""
        return None if self.capped is None else 1 - self.capped * self.capped


@dataclass(frozen=True)
class Gradients:
    """Where dL/d(query, key, parameters) are summed, each of the shape of what it belongs to."""

    query: Tensor
    key: Tensor
    parameters: tuple[Tensor, ...]

    @staticmethod
    def zeros(call: Call) -> Gradients:
        query, key, *rest = (torch.zeros(t.shape, dtype=call.dtype, device=t.device) for t in call.tensors)
        return Gradients(query, key, tuple(rest))

    def of(self, call: Call) -> tuple[Tensor | None, Tensor | None, tuple[Tensor, ...]]:
        """The parts of the parameters: of the sinks, of `combine`, of the bias."""
        rest = list(self.parameters)
        sinks = None if call.sinks is None else rest.pop(0)
        combine = None if call.combine is None else rest.pop(0)
        return sinks, combine, tuple(rest)


def of(call: Call, place: Place) -> Place:
    """The same tile of another call, with what that one hides."""
    hidden = None if call.mask == full else ~call.allowed(place.batch, place.rows, place.columns)
    return Place(call, place.batch, place.rows, place.columns, hidden)


def rows(call: Call, batch: slice, rows: slice) -> Tensor:
    """The queries of a row of tiles, ready to be scored."""
    query = call.query[batch, :, rows].to(call.dtype)
    return (query * call.scale if call.combine is None else query).contiguous()


def scored(query: Tensor, key: Tensor, place: Place) -> Tile:
    """The scores of a tile of ready queries and of keys, both in the dtype of the computation."""
    call = place.call
    scores = dots(query, key) if call.combine is None else _additive(query, key, _combine(call))
    capped = None
    if call.softcap is not None:
        capped = scores.div_(call.softcap).tanh_()
        scores = capped * call.softcap
    hidden = place.hidden
    if call.bias is not None:
        added = call.bias.adds(*call.pairs(place.batch, place.rows, place.columns)).to(call.dtype)
        added = added.reshape((1,) * (4 - added.ndim) + added.shape)
        gone = added == HIDDEN
        if bool(gone.any()):
            hidden = gone if hidden is None else hidden | gone
        scores = scores + added
    if hidden is not None:
        scores = scores.masked_fill_(hidden, HIDDEN)
        capped = None if capped is None else capped.masked_fill_(hidden, 0)  # a hidden key may hold anything
    return Tile(call, place.batch, place.rows, place.columns, hidden, scores, capped)


def finished(tile: Tile, log_sum: Tensor) -> Finished:
    """The weights of a tile, given the log-sum-exp of its rows. The tile's scores are used up."""
    logs = tile.scores.sub_(log_sum.masked_fill(log_sum == HIDDEN, 0)[..., None])
    weights = logs.exp()
    if tile.hidden is not None:
        weights.masked_fill_(tile.hidden, 0)
    place = {name: getattr(tile, name) for name in ("call", "batch", "rows", "columns", "hidden")}
    return Finished(**place, weights=weights, log_weights=logs.clamp_min_(LEAST))


def pull(grad: Tensor, query: Tensor, key: Tensor, place: Place, slope: Tensor | None, into: Gradients) -> None:
    """Adds what dL/dS of a tile, 0 where hidden, means for queries, keys and parameters; sinks have no tile."""
    call = place.call
    _, combine, bias = into.of(call)
    if call.bias is not None:
        call.bias.pull(*call.pairs(place.batch, place.rows, place.columns), grad, bias)
    if slope is not None:
        grad = grad * slope
    if combine is None:
        place.of_rows(into.query).add_(average(grad, key, place.hidden), alpha=call.scale)
        place.of_columns(into.key).add_(collect(grad, query, place.hidden, key.shape[1]))
    else:
        _pull_additive(grad, None, query, key, place, into, None)


@dataclass(frozen=True)
class Directions:
    """A change of everything that scores are made of, each of the shape of what changes; None = none."""

    query: Tensor | None
    key: Tensor | None
    combine: Tensor | None
    bias: tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Tangent:
    """How a tile's scores change in a direction: dS, and what taking it back needs."""

    scores: Tensor
    raw: Tensor  # the change before the softcap
    query: Tensor
    key: Tensor
    combine: Tensor | None


def tangent(tile: Tile, query: Tensor, key: Tensor, along: Directions) -> Tangent:
    """The change of a tile's scores, 0 where hidden."""
    call = tile.call
    d_query = torch.zeros_like(query) if along.query is None else tile.of_rows(along.query).to(call.dtype)
    d_key = torch.zeros_like(key) if along.key is None else tile.of_columns(along.key).to(call.dtype)
    if call.combine is None:
        d_query = d_query * call.scale
        raw, d_combine = dots(d_query, key) + dots(query, d_key), None
    else:
        d_combine = torch.zeros_like(call.combine) if along.combine is None else along.combine
        d_combine = d_combine.to(call.dtype) * call.scale
        raw = _additive_tangent(query, key, _combine(call), d_query, d_key, d_combine)
    slope = tile.slope
    scores = raw if slope is None else raw * slope
    if call.bias is not None and any(t is not None for t in along.bias):
        moved = (torch.zeros_like(t) if d is None else d for t, d in zip(call.bias.tensors(), along.bias, strict=True))
        change = call.bias.change(*moved)
        if change is not None:
            scores = scores + change.adds(*call.pairs(tile.batch, tile.rows, tile.columns)).to(call.dtype)
    if tile.hidden is not None:
        scores, raw = scores.masked_fill(tile.hidden, 0), raw.masked_fill(tile.hidden, 0)
    return Tangent(scores, raw, d_query, d_key, d_combine)


def pull_tangent(
    grad: Tensor, grad_tangent: Tensor, tile: Tile, change: Tangent, query: Tensor, key: Tensor, into: Gradients
) -> None:
    """Adds the gradients of Σ grad · S + grad_tangent · dS; both are 0 where hidden. tile.scores are not used."""
    call = tile.call
    _, combine, bias = into.of(call)
    if call.bias is not None:
        call.bias.pull(*call.pairs(tile.batch, tile.rows, tile.columns), grad, bias)
    slope = tile.slope
    if slope is not None and tile.capped is not None and call.softcap is not None:
        bend = -2 / call.softcap * tile.capped * slope  # the second derivative of the cap
        grad = grad * slope + grad_tangent * bend * change.raw
        grad_tangent = grad_tangent * slope
    if combine is None:
        hidden, heads = tile.hidden, key.shape[1]
        share = average(grad, key, hidden) + average(grad_tangent, change.key, hidden)
        tile.of_rows(into.query).add_(share, alpha=call.scale)
        share = collect(grad, query, hidden, heads) + collect(grad_tangent, change.query, hidden, heads)
        tile.of_columns(into.key).add_(share)
    else:
        _pull_additive(grad, grad_tangent, query, key, tile, into, change)


# -- Bahdanau's score -------------------------------------------------------------------------------------------------


def _combine(call: Call) -> Tensor:
    if call.combine is None:
        raise AssertionError("a dot product has no weights to combine with")
    return call.combine.to(call.dtype) * call.scale


def _wide(query: Tensor, key: Tensor) -> Tensor:
    """The keys, one for each head."""
    return key.repeat_interleave(query.shape[1] // max(key.shape[1], 1), dim=1)


def _units(query: Tensor, key: Tensor) -> Iterator[slice]:
    """Runs of hidden units whose activations over a whole tile may be held at once."""
    b, h, r, units = query.shape
    together = max(1, AT_ONCE // max(1, b * h * r * key.shape[2]))
    for begin in range(0, units, together):
        yield slice(begin, min(begin + together, units))


def _sums(query: Tensor, key: Tensor, hidden: Tensor | None, part: slice) -> Tensor:
    """q_im + k_jm, (b, h, r, c, units): 0 for hidden pairs, whose keys may hold anything."""
    sums = query[..., :, None, part] + key[..., None, :, part]
    return sums if hidden is None else sums.masked_fill_(hidden[..., None], 0)


def _additive(query: Tensor, key: Tensor, v: Tensor) -> Tensor:
    key = _wide(query, key)
    total = query.new_zeros((*query.shape[:3], key.shape[2]))
    for part in _units(query, key):
        total += (_sums(query, key, None, part).tanh_() @ v[:, None, part, None])[..., 0]
    return total


def _additive_tangent(query: Tensor, key: Tensor, v: Tensor, d_query: Tensor, d_key: Tensor, d_v: Tensor) -> Tensor:
    key, d_key = _wide(query, key), _wide(query, d_key)
    total = query.new_zeros((*query.shape[:3], key.shape[2]))
    for part in _units(query, key):
        active = _sums(query, key, None, part).tanh_()
        moved = (1 - active * active) * _sums(d_query, d_key, None, part)
        total += (moved @ v[:, None, part, None] + active @ d_v[:, None, part, None])[..., 0]
    return total


def _pull_additive(
    grad: Tensor, grad_tangent: Tensor | None, query: Tensor, key: Tensor, place: Place, into: Gradients, along: Tangent | None
) -> None:
    """The gradients of Σ grad · raw, and of + grad_tangent · draw where a direction is given."""
    call = place.call
    v = _combine(call)
    combine = into.of(call)[1]
    group = query.shape[1] // max(key.shape[1], 1)
    wide = _wide(query, key)
    for part in _units(query, key):
        active = _sums(query, wide, place.hidden, part).tanh_()
        bent = (1 - active * active) * v[:, None, None, part]
        through = grad[..., None] * bent
        gave = grad[..., None] * active
        if along is not None and grad_tangent is not None and along.combine is not None:
            moved = _sums(along.query, _wide(query, along.key), place.hidden, part)
            back = grad_tangent[..., None]
            d_v = along.combine[:, None, None, part]
            through += back * ((1 - active * active) * d_v - 2 * active * bent * moved)
            gave += back * (1 - active * active) * moved
        place.of_rows(into.query)[..., part] += through.sum(3)
        keys = through.sum(2)
        place.of_columns(into.key)[..., part] += keys.unflatten(1, (-1, group)).sum(2) if group > 1 else keys
        if combine is not None:
            units = gave.sum((0, 2, 3)) * call.scale
            combine[:, part] += units if len(combine) > 1 else units.sum(0, keepdim=True)
