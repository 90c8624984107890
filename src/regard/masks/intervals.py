"""Masks in which each query sees one run of keys: causal, windows, prefixes, lengths."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regard import checks
from regard.masks.algebra import EMPTY, FULL, MIXED, Box, Held, Kinds, Mask

Bound = Any  # an int, a tensor or an array (bounds are plain arithmetic, which all three share), or None: no end


class Interval(Mask):
    """A mask in which each query sees one run of keys, low ≤ key ≤ high, whose ends never move left as queries go on."""

    @abstractmethod
    def bounds(self, batch: Bound, query: Bound, position: Bound) -> tuple[Bound, Bound]:
        """The first and the last key seen; None = no end on that side."""

    def _allows(self, batch: Tensor, head: Tensor, query: Tensor, key: Tensor, position: Tensor) -> Tensor:
        low, high = self.bounds(batch, query, position)
        if low is None:
            return key <= high
        return key >= low if high is None else (key >= low) & (key <= high)

    def box(self, box: Box) -> Kinds:
        first, last = self._extremes(box)
        (low_first, high_first), (low_last, high_last) = first, last
        full = np.ones(box.key_low.shape, bool)
        empty = np.zeros(box.key_low.shape, bool)
        if low_first is not None:
            full &= box.key_low >= low_last
            empty |= box.key_high < low_first
        if high_first is not None:
            full &= box.key_high <= high_first
            empty |= box.key_low > high_last
        return np.where(empty, EMPTY, np.where(full, FULL, MIXED)).astype(np.int8)

    def _extremes(self, box: Box) -> tuple[tuple[Bound, Bound], tuple[Bound, Bound]]:
        """The bounds of the box's first and of its last query."""
        first = self.bounds(None, box.query_low, box.query_low + box.offset_low)
        last = self.bounds(None, box.query_high, box.query_high + box.offset_high)
        return first, last


@dataclass(frozen=True, repr=False)
class Causal(Interval):
    """key ≤ position: a query sees itself and what came before it."""

    def bounds(self, batch: Bound, query: Bound, position: Bound) -> tuple[Bound, Bound]:
        return None, position

    @property
    def expression(self) -> str:
        return "causal"


@dataclass(frozen=True, repr=False)
class CausalFrom(Interval):
    """key ≤ query + start, whatever the offset of the matrix."""

    start: int

    def bounds(self, batch: Bound, query: Bound, position: Bound) -> tuple[Bound, Bound]:
        return None, query + self.start

    @property
    def expression(self) -> str:
        return f"causal_from({self.start})"

    @property
    def extent(self) -> tuple[int, int]:
        return (max(8, 8 - self.start), max(8, 8 + self.start))


@dataclass(frozen=True, repr=False)
class Window(Interval):
    """position - left ≤ key ≤ position + right."""

    left: int
    right: int

    def bounds(self, batch: Bound, query: Bound, position: Bound) -> tuple[Bound, Bound]:
        return position - self.left, position + self.right

    @property
    def expression(self) -> str:
        left, right = ("∞" if n == checks.FARTHEST else str(n) for n in (self.left, self.right))
        return f"window({left})" if left == right else f"window({left}, {right})"

    @property
    def extent(self) -> tuple[int, int]:
        size = max([8, *(3 * (n + 1) for n in (self.left, self.right) if n < checks.FARTHEST)])
        return size, size


@dataclass(frozen=True, repr=False)
class Prefix(Interval):
    """key < n."""

    n: int

    def bounds(self, batch: Bound, query: Bound, position: Bound) -> tuple[Bound, Bound]:
        return None, self.n - 1

    @property
    def expression(self) -> str:
        return f"prefix({'∞' if self.n == checks.FARTHEST else self.n})"

    @property
    def extent(self) -> tuple[int, int]:
        size = max(8, self.n * 4 // 3 + 1) if self.n < checks.FARTHEST else 8
        return size, size


@dataclass(frozen=True, repr=False)
class Lengths(Interval):
    """key < length of that batch row."""

    lengths: tuple[int, ...] | Held

    def _tensor(self, device: torch.device) -> Tensor:
        return self.lengths.tensor if isinstance(self.lengths, Held) else torch.tensor(self.lengths, device=device)

    def bounds(self, batch: Bound, query: Bound, position: Bound) -> tuple[Bound, Bound]:
        lengths = self._tensor(batch.device).long()  # unsigned ones would wrap around below 0
        return None, lengths[batch if len(lengths) > 1 else batch * 0] - 1

    def _extremes(self, box: Box) -> tuple[tuple[Bound, Bound], tuple[Bound, Bound]]:
        lengths = self._tensor(torch.device("cpu")).cpu().numpy()
        seen = lengths[np.asarray(box.batch)] if len(lengths) > 1 else lengths
        return (None, int(seen.min()) - 1), (None, int(seen.max()) - 1)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.lengths.tensor,) if isinstance(self.lengths, Held) else ()

    def misfits(self, batch: int | None, heads: int | None, queries: int, keys: int) -> list[str]:
        count = len(self._tensor(torch.device("cpu")))
        if batch is None or checks.one_of(count, 1, batch):
            return []
        return [f"padding has {count} lengths and the batch {batch} rows"]

    @property
    def expression(self) -> str:
        if isinstance(self.lengths, Held):
            return f"padding(lengths of shape {tuple(self.lengths.tensor.shape)})"
        return f"padding({list(self.lengths) if len(self.lengths) > 1 else self.lengths[0]})"

    @property
    def extent(self) -> tuple[int, int]:
        size = max(8, int(self._tensor(torch.device("cpu")).max()) * 4 // 3 + 1)
        return size, size
