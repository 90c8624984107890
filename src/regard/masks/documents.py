"""The mask of packed sequences: documents laid end to end in one row, each of which sees only itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regard import checks
from regard.masks.algebra import EMPTY, FULL, MIXED, Box, Held, Ints, Kinds, Mask, prepared

BLOCKS = 1 << 16  # per batch row: more runs than that are answered for in groups, so that their tables stay small

Labels = NDArray[np.int32]


@dataclass(frozen=True, repr=False)
class Documents(Mask):
    """ids[key] = ids[position], or = query_ids[query]."""

    ids: Held
    query_ids: Held | None = None

    def _allows(self, batch: Tensor, head: Tensor, query: Tensor, key: Tensor, position: Tensor) -> Tensor:
        keys = _rows(self.ids)
        if self.query_ids is not None:
            return _at(_rows(self.query_ids), batch, query) == _at(keys, batch, key)
        count = keys.shape[1]
        if not count:
            return (position < 0) & (key < 0)  # no pair: there is no key
        inside = (position >= 0) & (position < count)
        return inside & (_at(keys, batch, position.clamp(0, count - 1)) == _at(keys, batch, key))

    def box(self, box: Box) -> Kinds:
        rows = sorted(set(box.batch)) if max(map(len, map(_rows, self._sides()))) > 1 else [0]
        low, high = box.query_low, box.query_high
        if self.query_ids is None:
            low, high = low + box.offset_low, high + box.offset_high
        last = self._sides()[-1].tensor.shape[-1] - 1
        empty, full = np.ones(low.shape, bool), (low >= 0) & (high <= last)
        nowhere = (high < 0) | (low > last)
        low, high = low.clip(0, last), high.clip(0, last)
        for keys, queries in prepared(self, rows, lambda: self._lines(rows)):
            least, greatest = queries.extremes(low, high)
            least_key, greatest_key = keys.extremes(box.key_low, box.key_high)
            empty &= (greatest < least_key) | (greatest_key < least)
            full &= (least == greatest_key) & (greatest == least_key)
        return np.where(empty | nowhere, EMPTY, np.where(full, FULL, MIXED)).astype(np.int8)

    def _lines(self, rows: Sequence[int]) -> list[tuple[Spans, Spans]]:
        sides = [_rows(held).cpu().numpy() for held in self._sides()]
        return [_spans([side[row if len(side) > 1 else 0] for side in sides]) for row in rows]

    def _sides(self) -> tuple[Held, ...]:
        return (self.ids,) if self.query_ids is None else (self.ids, self.query_ids)

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(held.tensor for held in self._sides())

    def misfits(self, batch: int | None, heads: int | None, queries: int, keys: int) -> list[str]:
        found = []
        sizes = (("ids", keys, "keys"), ("query_ids", queries, "queries"))
        for held, (name, length, axis) in zip(self._sides(), sizes, strict=False):
            rows, count = _rows(held).shape
            if batch is not None and not checks.one_of(rows, 1, batch):
                found.append(f"documents has {rows} rows of {name} and the matrix {batch}")
            if count != length:
                found.append(f"documents has {count} {name} and the matrix {length} {axis}")
        return found

    @property
    def expression(self) -> str:
        shapes = [f"{name} of shape {tuple(t.shape)}" for name, t in zip(("ids", "query_ids"), self.tensors(), strict=False)]
        return f"documents({', '.join(shapes)})"

    @property
    def extent(self) -> tuple[int, int]:
        keys, queries = self._sides()[0].tensor.shape[-1], self._sides()[-1].tensor.shape[-1]
        return queries, keys


def _rows(held: Held) -> Tensor:
    return held.tensor if held.tensor.ndim == 2 else held.tensor[None]


def _at(rows: Tensor, batch: Tensor, place: Tensor) -> Tensor:
    """The ids at those places, as int64: unsigned ones compare with nothing else."""
    return (rows[0][place] if len(rows) == 1 else rows[batch, place]).long()


# -- what is known of whole spans -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spans:
    """A line of labels, cut into blocks of runs: the least and the greatest label of any span (two sparse tables)."""

    starts: Ints  # the first place of each block
    least: Labels  # [level, block]: of 2**level blocks from this one on
    greatest: Labels

    @staticmethod
    def of(starts: Ints, labels: Labels) -> Spans:
        blocks = np.arange(0, len(labels), -(-len(labels) // BLOCKS))
        return Spans(starts[blocks], *(_table(pick, pick.reduceat(labels, blocks)) for pick in (np.minimum, np.maximum)))

    def extremes(self, low: Ints, high: Ints) -> tuple[Labels, Labels]:
        """The least and the greatest label at places low … high; of the blocks that these touch."""
        first, last = (np.searchsorted(self.starts, place, "right") - 1 for place in (low, high))
        level = np.frexp(last - first + 1)[1] - 1  # the largest power of two that is not longer than the span
        again = last + 1 - (1 << level)
        least, greatest = self.least, self.greatest
        return (
            np.minimum(least[level, first], least[level, again]),
            np.maximum(greatest[level, first], greatest[level, again]),
        )


def _table(pick: np.ufunc, line: Labels) -> Labels:
    table = np.empty((len(line).bit_length(), len(line)), np.int32)
    table[0] = line
    for level in range(1, len(table)):
        half = 1 << (level - 1)
        stop = len(line) - 2 * half + 1
        pick(table[level - 1, :stop], table[level - 1, half : half + stop], out=table[level, :stop])
    return table


def _spans(sides: Sequence[NDArray[np.integer]]) -> tuple[Spans, Spans]:
    """Keys and queries with ids numbered in the order of their first appearance: neighbours have near numbers then."""
    starts = [np.flatnonzero(np.append(True, side[1:] != side[:-1])) for side in sides]
    ids = np.concatenate([side[first].astype(np.int64) for side, first in zip(sides, starts, strict=True)])
    _, first, of = np.unique(ids, return_index=True, return_inverse=True)
    number = np.empty(len(first), np.int32)
    number[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    labels = np.split(number[of], [len(starts[0])])
    spans = [Spans.of(*side) for side in zip(starts, labels, strict=False)]
    return spans[0], spans[-1]


# -- how one writes it ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PackedDocuments:
    """`documents(ids)`, and `documents.from_cu_seqlens(cu_seqlens)`."""

    def __call__(self, ids: Tensor | Sequence[int], query_ids: Tensor | Sequence[int] | None = None) -> Mask:
        """Key j may be seen from position p if ids[j] = ids[p]; a query whose position lies outside the keys sees nothing.

        ids, integers of shape (keys,) or (batch, keys), need not be sorted. For packed cross-attention, query_ids, shape
        (queries,) or (batch, queries), names the document of each query: key j may be seen by query i if ids[j] =
        query_ids[i], whatever the offset.

        >>> masks.documents([0, 0, 1], query_ids=[1, 0]).to_dense(2, 3)[0, 0].long()
        tensor([[0, 0, 1],
                [1, 1, 0]])
        """
        keys = Held(checks.ids("documents", "ids", ids))
        if query_ids is None:
            return Documents(keys)
        queries = Held(checks.ids("documents", "query_ids", query_ids))
        checks.ids_match(keys.tensor, queries.tensor)
        return Documents(keys, queries)

    def from_cu_seqlens(
        self, cu_seqlens: Tensor | Sequence[int], query_cu_seqlens: Tensor | Sequence[int] | None = None
    ) -> Mask:
        """The mask of one row of packed documents, given where each begins and the last one ends: [0, 3, 10] is 3 + 7 keys.

        query_cu_seqlens does the same for the queries of packed cross-attention.

        >>> packed = masks.documents([0, 0, 1, 1, 1])
        >>> masks.documents.from_cu_seqlens([0, 2, 5]).to_dense(5, 5).equal(packed.to_dense(5, 5))
        True
        """
        keys = checks.cu_seqlens("cu_seqlens", cu_seqlens)
        if query_cu_seqlens is None:
            return self(_ids(keys))
        queries = checks.cu_seqlens("query_cu_seqlens", query_cu_seqlens)
        checks.as_many_documents(keys, queries)
        return self(_ids(keys), _ids(queries))


def _ids(cu_seqlens: Tensor) -> Tensor:
    lengths = cu_seqlens.long().diff()
    return torch.arange(len(lengths), dtype=torch.int32, device=lengths.device).repeat_interleave(lengths)


documents = PackedDocuments()
