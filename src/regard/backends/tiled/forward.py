"""The two sweeps that answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.backends.tiled.walk import Tiling, Walk
from regard.call import Call
from regard.plan import Plan
from regard.readouts.base import LEAST, Finished, FinishedReadout, OnlineReadout, Parts, Place, Readout, Scored, Swept
from regard.scoring import HIDDEN


def flat(answers: list[Parts], log_sum: Tensor) -> tuple[Tensor, ...]:
    return (*(part for parts in answers for part in parts), log_sum)


def split(flat: Sequence[Any], readouts: Sequence[Readout]) -> tuple[list[Any], Any]:
    """The flat parts of all answers, readout by readout, and the log-sum-exp behind them."""
    answers, at = [], 0
    for readout in readouts:
        count = len(readout.differentiable)
        answers.append(tuple(flat[at : at + count]))
        at += count
    return answers, flat[at]


def forward(tiling: Tiling, call: Call, readouts: Sequence[Readout], log_sum: Tensor | None) -> tuple[list[Parts], Tensor]:
    """The parts of each answer and the log-sum-exp."""
    with torch.no_grad(), torch.autocast(call.device.type, enabled=False):
        walk = Walk.over(tiling, call)
        readouts = [readout.ready(call) for readout in readouts]
        online = [r for r in readouts if isinstance(r, OnlineReadout)]
        finished = [r for r in readouts if isinstance(r, FinishedReadout)]
        answers: dict[int, Parts] = {}
        second = Second.of(call, finished)
        if online or log_sum is None:
            along = second if log_sum is not None else None  # exact weights already: one walk for everything
            parts, found = _row_sweep(walk, online, log_sum, along)
            answers |= {id(r): p for r, p in zip(online, parts, strict=True)}
            if finished and along is None:
                second.sweep(walk, found)
            log_sum = found
        elif finished:
            second.sweep(walk, log_sum)
        answers |= {id(r): r.finish(state, call) for r, state in zip(finished, second.states, strict=True)}
        return [answers[id(r)] for r in readouts], log_sum


@dataclass(frozen=True)
class Second:
    """Questions that are given exact weights, and what they have gathered."""

    readouts: Sequence[FinishedReadout]
    states: list[Any]

    @staticmethod
    def of(call: Call, readouts: Sequence[FinishedReadout]) -> Second:
        return Second(readouts, [readout.start(call) for readout in readouts])

    def wanted(self, place: Place) -> bool:
        return any(readout.touches(place.call, place.rows, place.columns) for readout in self.readouts)

    def add(self, tile: Finished) -> None:
        for readout, state in zip(self.readouts, self.states, strict=True):
            if readout.touches(tile.call, tile.rows, tile.columns):
                readout.add(state, tile)

    def sweep(self, walk: Walk, log_sum: Tensor) -> None:
        for seen in walk.tiles(log_sum, self.wanted):
            self.add(seen.weights)


def _row_sweep(
    walk: Walk, readouts: Sequence[OnlineReadout], given: Tensor | None, along: Second | None
) -> tuple[list[Parts], Tensor]:
    chunks: list[list[tuple[Tensor, ...]]] = []
    for batch, plan in walk.chunks():
        chunks.append([_sweep_rows(walk, readouts, given, along, batch, plan, row, rows) for row, rows in walk.rows(plan)])
    parts = range(len(chunks[0][0]))
    joined = [torch.cat([torch.cat([rows[n] for rows in chunk], 2) for chunk in chunks], 0) for n in parts]
    return split(joined, readouts)


def _sweep_rows(
    walk: Walk,
    readouts: Sequence[OnlineReadout],
    given: Tensor | None,
    along: Second | None,
    batch: slice,
    plan: Plan,
    row: int,
    rows: slice,
) -> tuple[Tensor, ...]:
    """The answers and the log-sum-exp of one row of tiles."""
    query = walk.query(batch, rows)
    everything = Place(walk.call, batch, rows, slice(None), None)
    states = [readout.start(everything) for readout in readouts]
    peak = _sinks(walk.call, query) if given is None else everything.of_rows(given)
    total = (peak != HIDDEN).to(query.dtype)  # a sink is in the sum before any key
    for place in walk.places(batch, plan, row, rows):
        seen = walk.scored(query, place)
        scores = seen.scores
        higher = torch.maximum(peak, scores.amax(-1)) if given is None else peak
        base = higher.masked_fill(higher == HIDDEN, 0)
        centred = scores - base[..., None]
        weights = centred.exp()
        rescale = (peak - base).exp() if given is None else torch.ones_like(peak)
        here = weights.sum(-1)
        total = rescale * total + here
        rise = (base - peak).masked_fill(peak == HIDDEN, 0).clamp_max(-LEAST)
        where = {name: getattr(seen, name) for name in ("call", "batch", "rows", "columns", "hidden")}
        tile = Scored(**where, scores=scores, centred=centred, weights=weights, total=here, rise=rise, rescale=rescale)
        states = [readout.merge(state, tile) for readout, state in zip(readouts, states, strict=True)]
        if along is not None:
            along.add(Finished(**where, weights=weights, log_weights=centred.clamp_min(LEAST)))
        peak = higher
    empty = peak == HIDDEN
    gap = total.masked_fill(empty, 1).log() if given is None else torch.zeros_like(peak)
    log_sum = peak + gap if given is None else peak
    end = Swept(walk.call, log_sum, gap, (-gap).exp().masked_fill(empty, 0))
    answers = [readout.finish(state, end) for readout, state in zip(readouts, states, strict=True)]
    return flat(answers, log_sum)


def _sinks(call: Call, query: Tensor) -> Tensor:
    """What a row holds before it saw a key: its sink, or nothing."""
    nothing = query.new_full(query.shape[:3], HIDDEN)
    return nothing if call.sinks is None else nothing.copy_(call.sinks.to(query.dtype)[:, None])
