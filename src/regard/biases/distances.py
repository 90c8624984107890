"""Biases by the distance d = j - p_i of the key from the query's own position."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regard import checks
from regard.biases.algebra import Bias, cast_up, run, sizes
from regard.masks.algebra import Held


@dataclass(frozen=True, repr=False)
class Alibi(Bias):
    """-slope_h · |j - p_i|."""

    slopes: tuple[float, ...] | Held

    def adds(self, batch: Tensor, head: Tensor, query: Tensor, key: Tensor, position: Tensor) -> Tensor:
        if isinstance(self.slopes, Held):
            slopes = cast_up(self.slopes.tensor)
        else:
            slopes = torch.tensor(self.slopes, dtype=torch.float32, device=key.device)
        return -slopes[head] * (position - key).abs().to(slopes.dtype)

    def pull(
        self,
        batch: Tensor,
        head: Tensor,
        query: Tensor,
        key: Tensor,
        position: Tensor,
        grad: Tensor,
        gradients: Sequence[Tensor],
    ) -> None:
        if not isinstance(self.slopes, Held):
            return
        far = (position - key).abs().to(grad.dtype)  # (r, c) or (b, 1, r, c)
        if far.ndim == 2:
            sums = grad.sum(0).flatten(1) @ far.flatten()
        else:
            sums = torch.einsum("bhn,bn->h", grad.flatten(2), far.flatten(1))
        gradients[0].index_add_(0, head.flatten(), -sums)

    def misfits(self, batch: int, heads: int, queries: int, keys: int, positions: tuple[int, int]) -> list[str]:
        count = len(self.slopes.tensor if isinstance(self.slopes, Held) else self.slopes)
        return [] if count == heads else [f"alibi has {count} slopes and the matrix {heads} heads"]

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.slopes.tensor,) if isinstance(self.slopes, Held) else ()

    def with_tensors(self, *tensors: Tensor) -> Bias:
        return replace(self, slopes=Held(tensors[0])) if tensors else self

    @property
    def expression(self) -> str:
        given = f"slopes of {sizes(self.slopes.tensor)}" if isinstance(self.slopes, Held) else f"{len(self.slopes)}"
        return f"alibi({given})"


def slopes_of(heads: int) -> tuple[float, ...]:
    """The paper's slopes: 2^(-8/n), 2^(-16/n), …; other numbers of heads take every second one of twice as many behind."""
    power = 1 << (heads.bit_length() - 1)
    first = [2 ** (-8 * (n + 1) / power) for n in range(power)]
    return (*first, *(2 ** (-4 * (2 * n + 1) / power) for n in range(heads - power)))


# -- which entry of a table -------------------------------------------------------------------------------------------


class Entries(ABC):
    """Which entry of a table a distance takes."""

    @abstractmethod
    def entry(self, distance: Tensor, entries: int) -> Tensor:
        """The entry of each distance, integers of the same shape."""

    def why_not(self, entries: int) -> str | None:
        """Why a table cannot have so many entries."""
        return None

    def covers(self, entries: int) -> tuple[int, int] | None:
        """The least and the greatest distance that has an entry; None: every distance has."""
        return None


@dataclass(frozen=True)
class Clipped(Entries):
    """Entry m + min(max(d, -m), m) of 2m + 1."""

    def entry(self, distance: Tensor, entries: int) -> Tensor:
        return distance.clamp(-(entries // 2), entries // 2) + entries // 2

    def why_not(self, entries: int) -> str | None:
        if entries % 2:
            return None
        return f"clipped() needs an odd number of entries, 2m + 1 for the distances -m … m; got {entries}"

    def __repr__(self) -> str:
        return "clipped()"


@dataclass(frozen=True)
class T5(Entries):
    """The buckets of T5: one for each short distance, then in logarithmic steps up to max_distance."""

    max_distance: int
    bidirectional: bool

    def entry(self, distance: Tensor, entries: int) -> Tensor:
        side = entries // 2 if self.bidirectional else entries
        exact = side // 2
        far = distance.abs() if self.bidirectional else (-distance).clamp_min(0)
        # float32 and this order of operations: another rounding would move distances into other buckets
        steps = torch.log(far.clamp_min(exact).float() / exact) / math.log(self.max_distance / exact) * (side - exact)
        bucket = torch.where(far < exact, far, (exact + steps.long()).clamp_max(side - 1))
        return bucket + (distance > 0) * side if self.bidirectional else bucket

    def why_not(self, entries: int) -> str | None:
        least = 4 if self.bidirectional else 2
        exact = entries // least
        if exact < 1:
            return f"{self} needs at least {least} entries; got {entries}"
        if self.max_distance <= exact:
            return f"{self} needs max_distance above {exact}, the distances with an entry of their own among {entries}"
        return None

    def __repr__(self) -> str:
        given = [f"max_distance={self.max_distance}"] if self.max_distance != 128 else []
        return f"t5({', '.join(given + ([] if self.bidirectional else ['bidirectional=False']))})"


@dataclass(frozen=True)
class Exact(Entries):
    """Entry d - lowest."""

    lowest: int

    def entry(self, distance: Tensor, entries: int) -> Tensor:
        return distance - self.lowest

    def covers(self, entries: int) -> tuple[int, int]:
        return self.lowest, self.lowest + entries - 1

    def __repr__(self) -> str:
        return f"exact({self.lowest})"


# -- tables -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Relative(Bias):
    """table[h, entry of j - p_i]."""

    table: Held
    by: Entries

    def adds(self, batch: Tensor, head: Tensor, query: Tensor, key: Tensor, position: Tensor) -> Tensor:
        table = cast_up(self.table.tensor)
        rows = self._rows(head)
        starts = _starts(position, key)
        if starts is None:
            return table[rows, self._entries(key - position)]
        tiles = []
        for first in starts:  # along a diagonal all is one number: r + c - 1 of them instead of r · c
            line = table[rows[:, 0], self._entries(_line(first, position.shape[-2], len(key), key.device))]
            tiles.append(line.unfold(-1, len(key), 1).flip(-2))
        return tiles[0] if position.ndim == 2 else torch.stack(tiles)

    def pull(
        self,
        batch: Tensor,
        head: Tensor,
        query: Tensor,
        key: Tensor,
        position: Tensor,
        grad: Tensor,
        gradients: Sequence[Tensor],
    ) -> None:
        rows = self._rows(head)
        if len(rows) < len(head):
            grad = grad.sum(1, keepdim=True)
        if position.ndim == 2:
            grad = grad.sum(0, keepdim=True)
        starts = _starts(position, key)
        if starts is None:
            flat = (rows * gradients[0].shape[1] + self._entries(key - position)).expand(grad.shape)
            gradients[0].view(-1).index_add_(0, flat.flatten(), grad.flatten())
            return
        for first, own in zip(starts, grad, strict=True):
            entries = self._entries(_line(first, position.shape[-2], len(key), key.device))
            gradients[0].index_put_((rows[:, 0], entries), diagonals(own), accumulate=True)

    def _rows(self, head: Tensor) -> Tensor:
        """The row of the table for each head; one where all share it."""
        return head if len(self.table.tensor) != 1 else torch.zeros_like(head[:1])

    def _entries(self, distance: Tensor) -> Tensor:
        return self.by.entry(distance, self.table.tensor.shape[1])

    def misfits(self, batch: int, heads: int, queries: int, keys: int, positions: tuple[int, int]) -> list[str]:
        rows, entries = self.table.tensor.shape
        found = []
        if not checks.one_of(rows, 1, heads):
            found.append(f"a table of shape ({rows}, {entries}) has {rows} heads and the matrix {heads}")
        covers = self.by.covers(entries)
        low, high = -positions[1], keys - 1 - positions[0]
        if covers and batch and heads and queries and keys and not covers[0] <= low <= high <= covers[1]:
            found.append(
                f"a table of shape ({rows}, {entries}) with {self.by!r} covers the distances {covers[0]} … {covers[1]}, and "
                f"{low} … {high} occur"
            )
        return found

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.table.tensor,)

    def with_tensors(self, *tensors: Tensor) -> Bias:
        return replace(self, table=Held(tensors[0]))

    @property
    def expression(self) -> str:
        return f"relative({sizes(self.table.tensor)}, {self.by!r})"


def _starts(position: Tensor, key: Tensor) -> list[int] | None:
    """The least distance of each batch row of a tile, where keys and positions count up one by one."""
    keys = run(key)
    if keys is None:
        return None
    positions = [run(rows) for rows in (position[None] if position.ndim == 2 else position)]
    return None if None in positions else [keys.start - p.stop + 1 for p in positions if p is not None]


def _line(first: int, queries: int, keys: int, device: torch.device) -> Tensor:
    """Every distance in a tile."""
    return torch.arange(first, first + queries + keys - 1, device=device)


def diagonals(grad: Tensor) -> Tensor:
    """(h, r, c) summed where j - i is the same, (h, r + c - 1): rows shifted by one each, then columns summed."""
    heads, rows, columns = grad.shape
    if rows > columns:  # never more than twice the tile
        return diagonals(grad.mT).flip(-1)
    shifted = grad.new_zeros(heads, rows, rows + columns)
    shifted[..., :columns] = grad.flip(1)
    length = rows + columns - 1
    return shifted.flatten(1)[:, : rows * length].view(heads, rows, length).sum(1)
