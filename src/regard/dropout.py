"""Dropout on weights by a counter: whether a pair is kept depends on seed, batch row, head, query and key, and on nothing else.

So every sweep, every backend and every backward agree on it without storing anything, and so do parts of the matrix.

    kept(b, h, i, j)  ⇔  ⌊bits / 2⌋ ≥ ⌊p · 2³¹⌋ - 2³⁰,        bits = stir(row(b, h, i) · G + j + 1)
    row(b, h, i) = mix(mix(mix(s, b), h), i),        mix(x, y) = fmix32(x · G + y + 1)

where s = mix(low, high) of the seed's lower 32 bits and the rest,
G = 0x9E3779B1, fmix32 is the finaliser of MurmurHash3 and stir is fmix32 without its last step, which would not reach the
highest bits. Numbers are of 32 bits, and `bits` is read as a signed one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard import checks

WORD = 0xFFFFFFFF
GOLDEN, FIRST, SECOND = 0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35


@dataclass(frozen=True)
class Dropout:
    """Weights are set to 0 with probability p, and the others multiplied by 1 / (1 - p)."""

    p: float
    seed: int | Tensor  # a tensor in graphs alone

    def __post_init__(self) -> None:
        object.__setattr__(self, "p", checks.probability("dropout", "p", self.p))
        object.__setattr__(self, "seed", checks.seed("dropout", self.seed))

    @property
    def rescale(self) -> float:
        """What weights that are kept are multiplied with."""
        return 1 / (1 - self.p) if self.p < 1 else 0.0

    @property
    def least(self) -> int:
        """What half the bits of a pair must reach for it to be kept."""
        return int(self.p * 2**31) - 2**30

    def dropped(self, weights: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """The definition, on a matrix of weights and broadcastable integer tensors."""
        bits = _signed(_stir(self._rows(batch, head, query) * GOLDEN + key + 1))
        return torch.where((bits >> 1) >= self.least, weights, 0) * self.rescale

    def words(self, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """-1, all bits set, where a pair is kept, and 0 elsewhere, in int32: the same, at a tenth of the time."""
        x = _signed(self._rows(batch, head, query) * GOLDEN + 1).to(torch.int32) + _signed(key).to(torch.int32)
        aside = x >> 16
        x.bitwise_xor_(aside.bitwise_and_(0xFFFF)).mul_(_signed(FIRST))
        torch.bitwise_right_shift(x, 13, out=aside)
        x.bitwise_xor_(aside.bitwise_and_(0x7FFFF)).mul_(_signed(SECOND))
        return torch.sub(self.least - 1, x.bitwise_right_shift_(1), out=aside).bitwise_right_shift_(31)

    def _rows(self, batch: Tensor, head: Tensor, query: Tensor) -> Tensor:
        state: Any = _mix(self.seed & WORD, self.seed >> 32)
        for index in (batch, head, query):
            state = _mix(state, index)
        return state


def applied(words: Tensor, weights: Tensor, rescale: float) -> Tensor:
    """Weights times rescale where the words are -1, and 0 elsewhere, without a graph."""
    wide = torch.int32 if weights.dtype == torch.float32 else torch.int64
    return weights.view(wide).bitwise_and(words.to(wide)).view(weights.dtype).mul_(rescale)


def _mix(state: Any, index: Any) -> Any:
    """Numbers or tensors of numbers, mixed."""
    x = _stir(state * GOLDEN + index + 1)
    return x ^ (x >> 16)


def _stir(x: Any) -> Any:
    x = x & WORD  # an int64 wraps, and keeps its lower 32 bits
    x = ((x ^ (x >> 16)) * FIRST) & WORD
    return ((x ^ (x >> 13)) * SECOND) & WORD


def _signed(x: Any) -> Any:
    """The same 32 bits as a number from -2³¹ to 2³¹ - 1."""
    return ((x + 2**31) & WORD) - 2**31
