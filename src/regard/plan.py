"""A mask laid over tiles: per row of tiles, runs of key tiles that are wholly seen or have to be looked at.

Built coarse to fine from the mask's answers for rectangles, so a mask of bounded structure costs O(n): the n² pairs are
never touched. A backend walks `steps`, and evaluates the mask only where a step is mixed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from regard.masks import Mask
from regard.masks.algebra import EMPTY, FULL, MIXED, Box, Ints, version

FAN_OUT = 4  # a mixed box is cut into FAN_OUT × FAN_OUT smaller ones
REMEMBERED = 32  # plans kept per living mask


@dataclass(frozen=True)
class Axes:
    """Which batch rows, heads, queries and keys of the original matrix these are: what a mask and a position refer to."""

    batch: Sequence[int]
    heads: Sequence[int]
    queries: Sequence[int]
    keys: Sequence[int]


@dataclass(frozen=True)
class Step:
    """Keys begin … end - 1 of one row of tiles; mixed = some pairs in it may be hidden."""

    begin: int
    end: int
    mixed: bool


@dataclass(frozen=True)
class Plan:
    """Runs of keys for each row of tiles. Run r of row t: first[t] ≤ r < first[t + 1]; keys begin[r] … end[r] - 1."""

    rows: int
    queries: int
    first: Ints
    begin: Ints
    end: Ints
    mixed: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.first) - 1

    @property
    def visible(self) -> int:
        """Pairs inside the runs: what a sweep computes."""
        heights = np.minimum(self.rows, self.queries - self.rows * np.arange(len(self)))
        return int(np.sum(np.repeat(heights, np.diff(self.first)) * (self.end - self.begin)))

    def steps(self, row: int, widest: int) -> Iterator[Step]:
        """The runs of a row of tiles, neighbours joined and long ones cut, so that each step has at most widest keys."""
        begin = end = 0
        mixed = False
        for r in range(int(self.first[row]), int(self.first[row + 1])):
            run_begin, run_end, run_mixed = int(self.begin[r]), int(self.end[r]), bool(self.mixed[r])
            if run_begin != end or run_end - begin > widest:
                if end > begin:
                    yield Step(begin, end, mixed)
                begin, end, mixed = run_begin, run_begin, False
            mixed |= run_mixed
            while run_end - begin > widest:
                yield Step(begin, begin + widest, run_mixed)
                begin += widest
            end = run_end
        if end > begin:
            yield Step(begin, end, mixed)


_plans: WeakKeyDictionary[Mask, dict[Any, Plan]] = WeakKeyDictionary()  # weak: a plan lives as long as its mask


def lay(mask: Mask, axes: Axes, offset: int | tuple[int, ...], rows: int, columns: int) -> Plan:
    """The plan of a mask over tiles of rows × columns: what holds for every one of the batch rows and heads."""
    key = (axes, offset, rows, columns, tuple(map(version, mask.tensors())))
    if -1 in key[-1]:  # tensors without a version may change unnoticed: nothing about them is remembered
        return _lay(mask, axes, offset, rows, columns)
    plans = _plans.setdefault(mask, {})
    plan = plans.get(key)
    if plan is None:
        if len(plans) >= REMEMBERED:
            plans.clear()
        plan = plans[key] = _lay(mask, axes, offset, rows, columns)
    return plan


def _lay(mask: Mask, axes: Axes, offset: int | tuple[int, ...], rows: int, columns: int) -> Plan:
    batch, heads, queries, keys = axes.batch, axes.heads, axes.queries, axes.keys
    tall, wide = -(-len(queries) // rows), -(-len(keys) // columns)
    if not tall or not wide or not batch or not heads:
        nothing = np.zeros(0, np.int64)
        return Plan(rows, len(queries), np.zeros(tall + 1, np.int64), nothing, nothing, nothing.astype(bool))
    offsets = (offset,) if isinstance(offset, int) else tuple(offset[b] for b in batch)
    span = max(FAN_OUT ** _levels(tall), FAN_OUT ** _levels(wide))
    top, left = np.zeros(1, np.int64), np.zeros(1, np.int64)  # the boxes of a level, in tiles
    found: list[tuple[Ints, Ints, Ints, Ints, bool]] = []
    while len(top):
        bottom, right = np.minimum(top + span, tall), np.minimum(left + span, wide)
        query_low, query_high = _ends(queries, top * rows, np.minimum(bottom * rows, len(queries)))
        key_low, key_high = _ends(keys, left * columns, np.minimum(right * columns, len(keys)))
        box = Box(batch, heads, query_low, query_high, key_low, key_high, min(offsets), max(offsets))
        # What is seen at the least and at the most, whatever the parts say that only looking at pairs can tell: where the
        # other parts have decided, cutting smaller would tell nothing more.
        least = mask.box(replace(box, opaque=EMPTY))
        most = mask.box(replace(box, opaque=FULL)) if mask.opaque else least
        undecided = (least == MIXED) | (most == MIXED)
        some = (least != FULL) & (most != EMPTY)
        for of, mixed in ((least == FULL, False), (some if span == 1 else some & ~undecided, True)):
            found.append((top[of], bottom[of], left[of], right[of], mixed))
        if span == 1:
            break
        open_ = some & undecided
        span //= FAN_OUT
        corner = np.arange(FAN_OUT, dtype=np.int64) * span
        top, left = (
            np.broadcast_to(x, (int(open_.sum()), FAN_OUT, FAN_OUT)).reshape(-1)
            for x in (top[open_, None, None] + corner[:, None], left[open_, None, None] + corner)
        )
        inside = (top < tall) & (left < wide)
        top, left = top[inside], left[inside]
    return _join(found, rows, len(queries), tall, columns, len(keys))


def _levels(tiles: int) -> int:
    levels = 0
    while FAN_OUT**levels < tiles:
        levels += 1
    return levels


def _ends(indices: Sequence[int], first: Ints, stop: Ints) -> tuple[Ints, Ints]:
    """The least and the greatest index at places first … stop - 1."""
    if isinstance(indices, range):
        return indices.start + first * indices.step, indices.start + (stop - 1) * indices.step
    return np.full(first.shape, min(indices)), np.full(first.shape, max(indices))


def _join(
    found: list[tuple[Ints, Ints, Ints, Ints, bool]], rows: int, queries: int, tall: int, columns: int, keys: int
) -> Plan:
    """Boxes of tiles as runs of keys, row by row, neighbours of one kind joined."""
    row, begin, end, mixed = (np.concatenate(parts) for parts in zip(*(_runs(*box) for box in found), strict=True))
    order = np.lexsort((begin, row))
    row, begin, end, mixed = row[order], begin[order], end[order], mixed[order]
    opens = np.ones(len(row), bool)
    opens[1:] = (row[1:] != row[:-1]) | (begin[1:] != end[:-1]) | (mixed[1:] != mixed[:-1])
    starts = np.flatnonzero(opens)
    last = np.append(starts[1:], len(row)) - 1 if len(starts) else starts
    first = np.searchsorted(row[starts], np.arange(tall + 1))
    ends = np.minimum(end[last] * columns, keys)
    return Plan(rows, queries, first.astype(np.int64), begin[starts] * columns, ends, mixed[starts])


def _runs(top: Ints, bottom: Ints, left: Ints, right: Ints, mixed: bool) -> tuple[Ints, Ints, Ints, NDArray[np.bool_]]:
    """One run per row of tiles for each box."""
    heights = bottom - top
    box = np.repeat(np.arange(len(top)), heights)
    row = top[box] + np.arange(len(box)) - np.repeat(np.cumsum(heights) - heights, heights)
    return row, left[box], right[box], np.full(len(box), mixed)
