"""Chosen columns of the matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from regard.readouts.rows import Lines


@dataclass(frozen=True)
class Columns(Lines):
    """The weights that chosen keys get, (batch, heads, queries, chosen); 0 where a key is hidden.

    indices: a tuple of integers from 0 to keys - 1. A[…, indices] asks the same for less work; this rides the sweep of
    other questions. Raises TypeError, ValueError, IndexError for indices that are none.

    >>> S.read(Columns((0,))).columns
    tensor([[1.0000],
            [0.2500],
            [0.1250]])
    """

    axis: ClassVar[int] = -1
    of: ClassVar[str] = "keys"
