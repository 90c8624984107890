"""Dropout on weights by a counter: whether a pair is kept depends on seed, batch row, head, query and key, and on nothing else.

So every sweep, every backend and every backward agree on it without storing anything, and so do parts of the matrix.

    kept(b, h, i, j)  ⇔  mix(mix(mix(mix(s, b), h), i), j) ≥ p · 2³²,        mix(x, y) = fmix32(x · 0x9E3779B1 + y + 1)

where s = mix(low, high) of the seed's lower 32 bits and the rest, fmix32 is the finaliser of MurmurHash3, and all numbers are
unsigned of 32 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from regard import checks
from regard.call import Call

WORD = 0xFFFFFFFF


@dataclass(frozen=True)
class Dropout:
    """Weights are set to 0 with probability p, and the others multiplied by 1 / (1 - p)."""

    p: float
    seed: int | Tensor  # a tensor in graphs alone

    def __post_init__(self) -> None:
        object.__setattr__(self, "p", checks.probability("dropout", "p", self.p))
        object.__setattr__(self, "seed", checks.seed("dropout", self.seed))

    def kept(self, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Whether each pair is kept, on broadcastable integer tensors."""
        state: Any = _mix(self.seed & WORD, self.seed >> 32)
        for index in (batch, head, query, key):
            state = _mix(state, index)
        return state >= int(self.p * 2**32)

    def factors(
        self, call: Call, batch: slice = slice(None), rows: slice = slice(None), columns: slice = slice(None)
    ) -> Tensor:
        """What the weights of a tile are multiplied with, (b, h, r, c): 0 or 1 / (1 - p)."""
        b, h, i, j, _ = call.pairs(batch, rows, columns)
        rescale = 1 / (1 - self.p) if self.p < 1 else 0.0
        return self.kept(b, h, i, j).to(call.dtype).mul_(rescale)


def _mix(state: Any, index: Any) -> Any:
    """Numbers or tensors of numbers, mixed."""
    x = (state * 0x9E3779B1 + index + 1) & WORD  # an int64 wraps, and keeps its lower 32 bits
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & WORD
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & WORD
    return x ^ (x >> 16)
