"""A mask laid over tiles: per row of tiles, runs of key tiles that are wholly seen or have to be looked at.

Built coarse to fine from the mask's answers for rectangles, so a mask of bounded structure costs O(n): the n² pairs are
never touched. Where a mask changes everywhere (keys dropped at random, interleaved documents), cutting ends once too many
rectangles are open, and they stay mixed at the size they have: no mask costs (n / tile)² rectangles. A backend walks
`steps`, and evaluates the mask only where a step is mixed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from regard.masks import Mask
from regard.masks.algebra import EMPTY, FULL, MIXED, Box, Ints, Kinds, version

FAN_OUT = 4  # a mixed box is cut into FAN_OUT × FAN_OUT smaller ones
OPEN = 4  # undecided boxes per row and column of tiles up to which they are cut once more
AT_ONCE = 1 << 12  # undecided boxes that are cut together, and always may be
REMEMBERED = 32  # plans kept per living mask

Boxes = tuple[Ints, Ints, Kinds]  # top, left, kind: EMPTY ones are left out
Runs = tuple[Ints, Ints, Ints, NDArray[np.bool_]]  # row of tiles, begin, end, mixed
Stacks = tuple[Ints, Ints, Ints, Ints, NDArray[np.bool_]]  # the same run in rows of tiles top … bottom - 1
UNDECIDED = 3  # the kind of a box that smaller ones may say more about


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
    span = FAN_OUT * max(FAN_OUT ** _levels(tall), FAN_OUT ** _levels(wide))
    top = left = np.zeros(1, np.int64)  # the undecided boxes of a level, in tiles
    found: list[Stacks] = []

    def cut(top: Ints, left: Ints) -> Boxes:
        """What boxes hold when they are cut into smaller ones of this level's span."""
        corner = np.arange(FAN_OUT, dtype=np.int64) * span
        shape = (len(top), FAN_OUT, FAN_OUT)
        top = np.broadcast_to(top[:, None, None] + corner[:, None], shape).reshape(-1)
        left = np.broadcast_to(left[:, None, None] + corner, shape).reshape(-1)
        inside = (top < tall) & (left < wide)
        top, left = top[inside], left[inside]
        query_ends = _ends(queries, top * rows, np.minimum((top + span) * rows, len(queries)))
        key_ends = _ends(keys, left * columns, np.minimum((left + span) * columns, len(keys)))
        box = Box(batch, heads, *query_ends, *key_ends, min(offsets), max(offsets))
        # What is seen at the least and at the most, whatever the parts say that only looking at pairs can tell: where the
        # other parts have decided, cutting smaller would tell nothing more.
        least = mask.box(replace(box, opaque=EMPTY))
        most = mask.box(replace(box, opaque=FULL)) if mask.opaque else least
        kind = np.where((least == MIXED) | (most == MIXED), UNDECIDED, MIXED).astype(np.int8)
        kind[least == FULL] = FULL
        some = most != EMPTY
        return top[some], left[some], kind[some]

    while len(top):
        span //= FAN_OUT
        parts = [cut(top[at : at + AT_ONCE], left[at : at + AT_ONCE]) for at in range(0, len(top), AT_ONCE)]
        top, left, kind = (np.concatenate(part) for part in zip(*parts, strict=True))
        undecided = kind == UNDECIDED
        if span == 1 or undecided.sum() > max(AT_ONCE, OPEN * (tall + wide)):
            undecided[:] = False
        done = ~undecided
        # Neighbours are joined before there is one run for each of their rows.
        row, begin, end, mixed = _neighbours(top[done], left[done], left[done] + span, kind[done] != FULL)
        found.append((row, np.minimum(row + span, tall), begin, np.minimum(end, wide), mixed))
        top, left = top[undecided], left[undecided]
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


def _join(found: list[Stacks], rows: int, queries: int, tall: int, columns: int, keys: int) -> Plan:
    """Stacks of runs as runs of keys, row by row, neighbours of one kind joined."""
    row, begin, end, mixed = _neighbours(*(np.concatenate(parts) for parts in zip(*map(_runs, found), strict=True)))
    first = np.searchsorted(row, np.arange(tall + 1))
    return Plan(rows, queries, first.astype(np.int64), begin * columns, np.minimum(end * columns, keys), mixed)


def _runs(stacks: Stacks) -> Runs:
    """One run per row of tiles for each stack."""
    top, bottom, left, right, mixed = stacks
    heights = bottom - top
    box = np.repeat(np.arange(len(top)), heights)
    row = top[box] + np.arange(len(box)) - np.repeat(np.cumsum(heights) - heights, heights)
    return row, left[box], right[box], mixed[box]


def _neighbours(row: Ints, begin: Ints, end: Ints, mixed: NDArray[np.bool_]) -> Runs:
    """The same runs, ordered, those of one kind joined that touch."""
    order = np.lexsort((begin, row))
    row, begin, end, mixed = row[order], begin[order], end[order], mixed[order]
    opens = np.ones(len(row), bool)
    opens[1:] = (row[1:] != row[:-1]) | (begin[1:] != end[:-1]) | (mixed[1:] != mixed[:-1])
    starts = np.flatnonzero(opens)
    last = np.append(starts[1:], len(row)) - 1 if len(starts) else starts
    return row[starts], begin[starts], end[last], mixed[starts]
