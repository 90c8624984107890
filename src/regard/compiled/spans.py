"""Runs of indices whose ends may be symbols, as they are while a graph is traced: a range would ask for numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn, cast

import torch

from regard import checks
from regard.plan import Axes


@dataclass(frozen=True)
class Span:
    """start, start + step, …, below stop; step ≥ 1."""

    start: int
    stop: int
    step: int = 1

    def __len__(self) -> NoReturn:
        raise checks.Unsupported(checks.BUILT_IN_A_GRAPH)

    def __iter__(self) -> NoReturn:
        raise checks.Unsupported(checks.BUILT_IN_A_GRAPH)

    @property
    def count(self) -> int:
        """How many there are; len() would ask for a number."""
        return (self.stop - self.start + self.step - 1) // self.step

    def __getitem__(self, part: slice | int) -> Any:
        """One of them, counted from 0, or a slice, as a range answers."""
        if not isinstance(part, slice):
            return self.start + part * self.step
        count = self.count
        first, last = _end(part.start, count, 0), _end(part.stop, count, count)
        begin = self.start + first * self.step
        end = self.start + torch.sym_max(first, last) * self.step
        return Span(begin, end, self.step * (1 if part.step is None else part.step))


def _end(given: int | None, count: int, otherwise: int) -> Any:
    """One end of a slice of so many things."""
    if given is None:
        return otherwise
    return torch.sym_max(given + count, 0) if given < 0 else torch.sym_min(given, count)


def whole_axes(*lengths: int) -> Axes:
    """All batch rows, heads, queries and keys."""
    if torch.compiler.is_compiling():
        return Axes(*(cast(Sequence[int], Span(0, length)) for length in lengths))
    return _ranges(*lengths)


@lru_cache(1024)
def _ranges(*lengths: int) -> Axes:
    """Matrices of one size share it: small products wait for each of its five values."""
    return Axes(*map(range, lengths))
