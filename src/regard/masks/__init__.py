"""Who may attend to whom: frozen values without a size, closed under ``& | ~``. True = may attend, always."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from regard import checks
from regard.masks.algebra import Held, Mask, full
from regard.masks.contents import Dense, Keep, Where
from regard.masks.documents import documents
from regard.masks.intervals import Causal, CausalFrom, Lengths, Prefix, Window
from regard.masks.inverted import from_torch

__all__ = ["Mask", "causal", "causal_from", "dense", "documents", "from_torch", "full", "padding", "prefix", "where", "window"]

causal: Mask = Causal()


def causal_from(start: int) -> Mask:
    """Key j may be seen by query i if j ≤ i + start, whatever the matrix's own offset.

    >>> print(masks.causal_from(1).draw(3, 5))
    ■ ■ · · ·
    ■ ■ ■ · ·
    ■ ■ ■ ■ ·
    3 queries × 5 keys
    """
    return CausalFrom(checks.reach("causal_from", "start", start, least=-checks.FARTHEST))


def window(left: int, right: int | None = None) -> Mask:
    """Key j may be seen from position p if p - left ≤ j ≤ p + right, both ends included; right None = left.

    A sliding window of w keys, the last one the query's own (`sliding_window = w` in Hugging Face configurations), is
    ``causal & window(w - 1, 0)``.

    >>> print(masks.window(1).draw(5, 5))
    ■ ■ · · ·
    ■ ■ ■ · ·
    · ■ ■ ■ ·
    · · ■ ■ ■
    · · · ■ ■
    5 queries × 5 keys
    """
    left = checks.reach("window", "left", left)
    return Window(left, left if right is None else checks.reach("window", "right", right))


def prefix(n: int) -> Mask:
    """Key j may be seen if j < n: the first keys, which everyone sees (``window(w) | prefix(4)`` keeps four sinks).

    >>> print((masks.causal & (masks.window(1, 0) | masks.prefix(1))).draw(5, 5))
    ■ · · · ·
    ■ ■ · · ·
    ■ ■ ■ · ·
    ■ · ■ ■ ·
    ■ · · ■ ■
    5 queries × 5 keys
    """
    return Prefix(checks.reach("prefix", "n", n))


def padding(lengths: int | Sequence[int] | Tensor | None = None, *, keep: Tensor | None = None) -> Mask:
    """Key j may be seen if j < lengths of its batch row, or if keep, shape (batch, keys) or (keys,), marks it True.

    >>> lengths = masks.padding([2, 3])
    >>> keep = masks.padding(keep=torch.tensor([[True, True, False], [True, True, True]]))
    >>> lengths.to_dense(3, 3, batch=2).equal(keep.to_dense(3, 3, batch=2))
    True
    """
    if (lengths is None) == (keep is None):
        raise TypeError("padding: give lengths or keep, one of the two")
    if keep is not None:
        return Keep(Held(checks.boolean_mask("padding(keep=…)", keep, most=2)))
    if isinstance(lengths, Tensor):
        return Lengths(Held(checks.lengths_tensor(lengths)))
    if isinstance(lengths, (np.ndarray, np.generic)):
        lengths = lengths.tolist()
    numbers = (lengths,) if isinstance(lengths, int) else tuple(lengths or ())
    checks.at_least_one_length(numbers)
    return Lengths(tuple(checks.whole_number("padding", "length", n) for n in numbers))


def dense(tensor: Tensor) -> Mask:
    """A boolean tensor, broadcastable to (batch, heads, queries, keys); True = may attend.

    >>> masks.dense(torch.tensor([[True, False], [True, True]])).to_dense(2, 2)
    tensor([[[[ True, False],
              [ True,  True]]]])
    """
    return Dense(Held(checks.boolean_mask("dense", tensor, most=4)))


def where(fn: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> Mask:
    """Pairs for which fn(batch, head, query, key) is True, evaluated tile by tile on broadcastable integer tensors.

    query is the raw row number i, not its position among the keys. Nothing is known of a function before it is called,
    so every tile is computed.

    >>> even = masks.where(lambda batch, head, query, key: key % 2 == 0)
    >>> print(even.draw(2, 6))
    ■ · ■ · ■ ·
    ■ · ■ · ■ ·
    2 queries × 6 keys
    """
    return Where(checks.function("where", fn))
