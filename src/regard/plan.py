"""A mask laid over tiles: per row of tiles, runs of key tiles that are wholly seen or have to be looked at.

Built coarse to fine from the mask's answers for rectangles, so a mask of bounded structure costs O(n): the n² pairs are
never touched. Where a mask changes everywhere (keys dropped at random, interleaved documents), cutting ends once too many
rectangles are open, or too many runs were found (checkerboards), and the others stay mixed at the size they have: no mask
costs (n / tile)² of either. A run that was found in a square of tiles is kept once for all of its rows. A backend walks
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
RUNS = 16  # runs per row and column of tiles up to which boxes are cut
AT_ONCE = 1 << 12  # undecided boxes that are cut together; so many of them, and of runs, there always may be
REMEMBERED = 32  # plans kept per living mask

Boxes = tuple[Ints, Ints, Kinds]  # top, left, kind: EMPTY ones are left out
Small = NDArray[np.int32]
Runs = tuple[Small, Small, Small, NDArray[np.bool_]]  # row of tiles, begin, end, mixed; in tiles
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
class Level:
    """Runs first[g] ≤ r < first[g + 1] are those of the rows of tiles g · span … (g + 1) · span - 1."""

    span: int
    first: Ints


@dataclass(frozen=True)
class Plan:
    """Runs of keys begin[r] … end[r] - 1, each for as many rows of tiles as its level says; no two of a row overlap."""

    rows: int
    queries: int
    levels: tuple[Level, ...]
    begin: Ints
    end: Ints
    mixed: NDArray[np.bool_]

    def __len__(self) -> int:
        return -(-self.queries // self.rows)

    @property
    def heights(self) -> Ints:
        """The queries that each run is for."""
        found = [np.zeros(0, np.int64)]
        for level in self.levels:
            tall = level.span * self.rows
            heights = np.minimum(tall, self.queries - tall * np.arange(len(level.first) - 1))
            found.append(np.repeat(heights, np.diff(level.first)))
        return np.concatenate(found)

    @property
    def visible(self) -> int:
        """Pairs inside the runs: what a sweep computes."""
        return int(np.sum(self.heights * (self.end - self.begin)))

    def runs(self, row: int) -> list[tuple[int, int, bool]]:
        """Begin, end and mixed of the runs of a row of tiles, in order, neighbours of one kind joined."""
        found: list[tuple[int, int, bool]] = []
        for level in self.levels:
            group = row // level.span
            here = slice(int(level.first[group]), int(level.first[group + 1]))
            found += zip(self.begin[here].tolist(), self.end[here].tolist(), self.mixed[here].tolist(), strict=True)
        joined: list[tuple[int, int, bool]] = []
        for begin, end, mixed in sorted(found):
            if joined and joined[-1][1:] == (begin, mixed):
                begin = joined.pop()[0]
            joined.append((begin, end, mixed))
        return joined

    def steps(self, row: int, widest: int) -> Iterator[Step]:
        """The runs of a row of tiles, neighbours joined and long ones cut, so that each step has at most widest keys."""
        begin = end = 0
        mixed = False
        for run_begin, run_end, run_mixed in self.runs(row):
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
        return Plan(rows, len(queries), (), nothing, nothing, nothing.astype(bool))
    offsets = (offset,) if isinstance(offset, int) else tuple(offset[b] for b in batch)
    span = FAN_OUT * max(FAN_OUT ** _levels(tall), FAN_OUT ** _levels(wide))
    top = left = np.zeros(1, np.int64)  # the undecided boxes of a level, in tiles
    found: dict[int, list[Runs]] = {}  # by the height of their boxes
    most_open, most_runs = (max(AT_ONCE, many * (tall + wide)) for many in (OPEN, RUNS))
    count = 0

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

    def keep(span: int, top: Ints, left: Ints, mixed: NDArray[np.bool_]) -> int:
        """Keeps boxes of that span as runs, as few as they make."""
        row, begin, end = (tiles.astype(np.int32) for tiles in (top, left, np.minimum(left + span, wide)))
        runs = _neighbours(row, begin, end, mixed)
        found.setdefault(span, []).append(runs)
        return len(runs[0])

    while len(top):
        order = np.lexsort((left, top))  # neighbours come together
        top, left = top[order], left[order]
        span //= FAN_OUT
        open_boxes: list[tuple[Ints, Ints]] = []
        cutting = span > 1
        for at in range(0, len(top), AT_ONCE):
            if count > most_runs:
                keep(span * FAN_OUT, top[at:], left[at:], np.ones(len(top) - at, bool))
                break
            part_top, part_left, kind = cut(top[at : at + AT_ONCE], left[at : at + AT_ONCE])
            undecided = (kind == UNDECIDED) & cutting
            count += keep(span, part_top[~undecided], part_left[~undecided], kind[~undecided] != FULL)
            open_boxes.append((part_top[undecided], part_left[undecided]))
            if sum(len(boxes) for boxes, _ in open_boxes) > most_open:
                cutting = False
                count += sum(keep(span, *boxes, np.ones(len(boxes[0]), bool)) for boxes in open_boxes)
                open_boxes = []
        top, left = (np.concatenate([boxes[n] for boxes in open_boxes]) if open_boxes else top[:0] for n in (0, 1))
    return _planned(found, rows, len(queries), tall, columns, len(keys))


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


def _planned(found: dict[int, list[Runs]], rows: int, queries: int, tall: int, columns: int, keys: int) -> Plan:
    """The runs of each height in order, in keys."""
    levels, parts = [], []
    before = 0
    for span, runs in found.items():
        row, begin, end, mixed = _neighbours(*(np.concatenate(side) for side in zip(*runs, strict=True)))
        if len(row):
            levels.append(Level(span, before + np.searchsorted(row, span * np.arange(-(-tall // span) + 1))))
            parts.append((begin.astype(np.int64) * columns, np.minimum(end.astype(np.int64) * columns, keys), mixed))
            before += len(row)
    if not parts:
        parts.append((np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, bool)))
    return Plan(rows, queries, tuple(levels), *(np.concatenate(side) for side in zip(*parts, strict=True)))


def _neighbours(row: Small, begin: Small, end: Small, mixed: NDArray[np.bool_]) -> Runs:
    """The same runs, ordered, those of one kind joined that touch."""
    order = np.lexsort((begin, row))
    row, begin, end, mixed = row[order], begin[order], end[order], mixed[order]
    opens = np.ones(len(row), bool)
    opens[1:] = (row[1:] != row[:-1]) | (begin[1:] != end[:-1]) | (mixed[1:] != mixed[:-1])
    starts = np.flatnonzero(opens)
    last = np.append(starts[1:], len(row)) - 1 if len(starts) else starts
    return row[starts], begin[starts], end[last], mixed[starts]
