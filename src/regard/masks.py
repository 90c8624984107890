"""Who may attend to whom: frozen values without a size, closed under ``& | ~``. True = may attend, always.

A mask answers four questions: what it means (`allows`), what it says of a whole rectangle (`box`), its dense form
(`to_dense`) and its picture (`draw`). Kernels never see a mask, only the plan that is laid from its boxes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regard import checks

EMPTY, MIXED, FULL = 0, 1, 2  # ordered, so that & is the minimum, | the maximum and ~ is 2 - x

Ints = NDArray[np.int64]
Kinds = NDArray[np.int8]
Bound = Any  # an int, a tensor or an array (bounds are plain arithmetic, which all three share), or None: no end


@dataclass(frozen=True)
class Box:
    """Rectangles of the matrix, one per array element, both ends included, over some batch rows and heads."""

    batch: Sequence[int]
    heads: Sequence[int]
    query_low: Ints
    query_high: Ints
    key_low: Ints
    key_high: Ints
    offset_low: int
    offset_high: int
    opaque: int = MIXED  # what a mask answers that can only be known by looking at its pairs


@dataclass(frozen=True, eq=False)
class Held:
    """A tensor inside a mask, compared by identity and version: its content is never looked at to compare."""

    tensor: Tensor
    version: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "version", version(self.tensor))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy counts the changes of its own tensor."""
        self.__dict__.update(state, version=version(state["tensor"]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Held) and self.tensor is other.tensor and self.version == other.version

    def __hash__(self) -> int:
        return hash((id(self.tensor), self.version))


def version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; -1 where it keeps no count (inference mode)."""
    return -1 if tensor.is_inference() else tensor._version


class Mask(ABC):
    """A set of (batch, head, query, key) pairs that may meet."""

    @abstractmethod
    def _allows(self, batch: Tensor, head: Tensor, query: Tensor, key: Tensor, position: Tensor) -> Tensor:
        """Whether each pair may meet; position = query + offset, the place of the query among the keys."""

    @abstractmethod
    def box(self, box: Box) -> Kinds:
        """EMPTY, FULL or MIXED for each rectangle. EMPTY and FULL are never wrong; MIXED may be cautious."""

    @property
    @abstractmethod
    def expression(self) -> str:
        """The mask as one would write it."""

    @property
    def extent(self) -> tuple[int, int]:
        """A number of (queries, keys) at which a picture shows what the mask does, parts aside."""
        return (8, 8)

    def extents(self) -> list[tuple[int, int]]:
        """The extents of all that the mask is made of."""
        return [size for part in self.parts() for size in part.extents()] or [self.extent]

    def parts(self) -> tuple[Mask, ...]:
        """The masks that this one is made of."""
        return ()

    @property
    def opaque(self) -> bool:
        """Whether something in it can only be known by looking at every pair."""
        return any(part.opaque for part in self.parts())

    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor inside."""
        return tuple(t for part in self.parts() for t in part.tensors())

    def misfits(self, batch: int | None, heads: int | None, queries: int, keys: int) -> list[str]:
        """Why the mask cannot lie on a matrix of that size, None being any; empty if it can."""
        return [m for part in self.parts() for m in part.misfits(batch, heads, queries, keys)]

    def allows(
        self,
        batch: Tensor | int,
        head: Tensor | int,
        query: Tensor | int,
        key: Tensor | int,
        offset: Tensor | int = 0,
    ) -> Tensor:
        """Whether each (batch, head, query, key) may meet, on broadcastable integer tensors.

        offset is the position of query 0 among the keys: an int, or one per batch row, shape (batch,).
        """
        tensors = (*self.tensors(), *(x for x in (batch, head, query, key, offset) if isinstance(x, Tensor)))
        device = tensors[0].device if tensors else None
        b, h, i, j = (checks.indices("allows", x, device) for x in (batch, head, query, key))
        shift = offset[b] if isinstance(offset, Tensor) and offset.ndim else offset
        shape = torch.broadcast_shapes(b.shape, h.shape, i.shape, j.shape)
        return self._allows(b, h, i, j, i + shift).expand(shape)

    def to_dense(self, queries: int, keys: int, batch: int = 1, heads: int = 1, offset: int | Tensor | None = None) -> Tensor:
        """The mask as booleans, shape (batch, heads, queries, keys). offset None = keys - queries."""
        checks.mask_lies_on("to_dense", self, batch, heads, queries, keys)
        device = next((t.device for t in self.tensors()), torch.device("cpu"))
        b, h, i, j = grid(range(batch), range(heads), range(queries), range(keys), device)
        return self.allows(b, h, i, j, keys - queries if offset is None else offset).contiguous()

    def draw(self, queries: int, keys: int, offset: int | None = None, cells: int = 16) -> str:
        """A picture in text: ■ all pairs of the cell may meet, ▒ some, · none (batch row 0, head 0)."""
        from regard.picture import draw_mask

        queries, keys = (checks.whole_number("draw", name, n) for name, n in (("queries", queries), ("keys", keys)))
        checks.whole_number("draw", "cells", cells, least=1)
        checks.mask_lies_on("draw", self, None, None, queries, keys)
        return draw_mask(self, range(queries), range(keys), keys - queries if offset is None else offset, cells)

    def __and__(self, other: object) -> Mask:
        return And.of(self, other) if isinstance(other, Mask) else checks.combined("&", other)

    def __or__(self, other: object) -> Mask:
        return Or.of(self, other) if isinstance(other, Mask) else checks.combined("|", other)

    __rand__, __ror__ = __and__, __or__

    def __invert__(self) -> Mask:
        return Not(self)

    def __bool__(self) -> NoReturn:
        raise TypeError(checks.MASK_AS_BOOLEAN.format(mask=self.expression))

    def __str__(self) -> str:
        return self.expression

    def __repr__(self) -> str:
        if not all(t.numel() for t in self.tensors()):
            return f"{self.expression}\n(nothing to draw)"
        queries, keys = (sorted(set(n), reverse=True) for n in zip(*self.extents(), strict=True))
        for size in product(queries, keys):
            if not self.misfits(None, None, *size):
                return f"{self.expression}\n{self.draw(*size)}"
        return f"{self.expression}\n(no matrix has a size that all of it fits)"


def grid(
    batch: Sequence[int], heads: Sequence[int], queries: Sequence[int], keys: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Index tensors that broadcast to (batch, heads, queries, keys)."""
    b, h, i, j = (numbers(x, device) for x in (batch, heads, queries, keys))
    return b[:, None, None, None], h[:, None, None], i[:, None], j


def numbers(indices: Sequence[int], device: torch.device) -> Tensor:
    """A sequence of integers as a tensor."""
    if isinstance(indices, range):
        return torch.arange(indices.start, indices.stop, indices.step, device=device)
    return torch.tensor(indices, dtype=torch.int64, device=device)


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
class Full(Mask):
    """Everyone may attend to everyone."""

    def _allows(self, batch: Tensor, head: Tensor, query: Tensor, key: Tensor, position: Tensor) -> Tensor:
        return torch.ones((), dtype=torch.bool, device=key.device)

    def box(self, box: Box) -> Kinds:
        return np.full(box.key_low.shape, FULL, np.int8)

    @property
    def expression(self) -> str:
        return "full"


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
        return [] if batch is None or count in (1, batch) else [f"padding has {count} lengths and the batch {batch} rows"]

    @property
    def expression(self) -> str:
        if isinstance(self.lengths, Held):
            return f"padding(lengths of shape {tuple(self.lengths.tensor.shape)})"
        return f"padding({list(self.lengths) if len(self.lengths) > 1 else self.lengths[0]})"

    @property
    def extent(self) -> tuple[int, int]:
        size = max(8, int(self._tensor(torch.device("cpu")).max()) * 4 // 3 + 1)
        return size, size


@dataclass(frozen=True, repr=False)
class Keep(Mask):
    """The keys that are marked True."""

    keep: Held

    def _rows(self) -> Tensor:
        return self.keep.tensor if self.keep.tensor.ndim == 2 else self.keep.tensor[None]

    def _allows(self, batch: Tensor, head: Tensor, query: Tensor, key: Tensor, position: Tensor) -> Tensor:
        rows = self._rows()
        return rows[batch if len(rows) != 1 else torch.zeros_like(key), key]

    def box(self, box: Box) -> Kinds:
        rows = self._rows().cpu().numpy()
        seen = rows[np.asarray(box.batch)] if len(rows) > 1 else rows
        return _count_kinds(np.any(seen, 0), np.all(seen, 0), box.key_low, box.key_high)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.keep.tensor,)

    def misfits(self, batch: int | None, heads: int | None, queries: int, keys: int) -> list[str]:
        rows, count = self._rows().shape
        return [
            f"padding(keep) has {size} {name} and the matrix {wanted}"
            for size, name, wanted, fits in ((rows, "rows", batch, (1, batch)), (count, "keys", keys, (keys,)))
            if wanted is not None and size not in fits
        ]

    @property
    def expression(self) -> str:
        return f"padding(keep of shape {tuple(self.keep.tensor.shape)})"

    @property
    def extent(self) -> tuple[int, int]:
        size = self.keep.tensor.shape[-1]
        return size, size


def _count_kinds(some: NDArray[np.bool_], every: NDArray[np.bool_], low: Ints, high: Ints) -> Kinds:
    """The kind of each run low … high of a line of keys, given which keys some and which every batch row sees."""
    some_before, every_before = (np.concatenate([[0], np.cumsum(line)]) for line in (some, every))
    empty = some_before[high + 1] == some_before[low]
    full = every_before[high + 1] - every_before[low] == high + 1 - low
    return np.where(full, FULL, np.where(empty, EMPTY, MIXED)).astype(np.int8)


@dataclass(frozen=True, repr=False)
class Dense(Mask):
    """A boolean tensor, broadcastable to (batch, heads, queries, keys)."""

    tensor: Held

    def _shape(self) -> tuple[int, ...]:
        shape = self.tensor.tensor.shape
        return (1,) * (4 - len(shape)) + tuple(shape)

    def _allows(self, batch: Tensor, head: Tensor, query: Tensor, key: Tensor, position: Tensor) -> Tensor:
        tensor = self.tensor.tensor
        zero = torch.zeros((), dtype=torch.int64, device=tensor.device)
        index = (x if n > 1 else zero for x, n in zip((batch, head, query, key), self._shape(), strict=True))
        return tensor[tuple(index)[4 - tensor.ndim :]]

    @property
    def opaque(self) -> bool:
        return True

    def box(self, box: Box) -> Kinds:
        return np.full(box.key_low.shape, box.opaque, np.int8)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.tensor.tensor,)

    def misfits(self, batch: int | None, heads: int | None, queries: int, keys: int) -> list[str]:
        shape = self._shape()
        wanted = tuple(n if w is None else w for n, w in zip(shape, (batch, heads, queries, keys), strict=True))
        if all(n in (1, w) for n, w in zip(shape, wanted, strict=True)):
            return []
        return [f"dense mask of shape {tuple(self.tensor.tensor.shape)} does not broadcast to {wanted}"]

    @property
    def expression(self) -> str:
        return f"dense({'×'.join(map(str, self.tensor.tensor.shape))})"

    @property
    def extent(self) -> tuple[int, int]:
        queries, keys = self._shape()[-2:]
        return (queries if queries != 1 else 8), (keys if keys != 1 else 8)


@dataclass(frozen=True, repr=False, eq=False)
class Where(Mask):
    """fn(batch, head, query, key) on broadcastable integer tensors."""

    fn: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Where) and self.fn is other.fn

    def __hash__(self) -> int:
        return hash((Where, id(self.fn)))

    def _allows(self, batch: Tensor, head: Tensor, query: Tensor, key: Tensor, position: Tensor) -> Tensor:
        wanted = torch.broadcast_shapes(batch.shape, head.shape, query.shape, key.shape)
        return checks.where_result(self.fn(batch, head, query, key), wanted, self.expression)

    @property
    def opaque(self) -> bool:
        return True

    def box(self, box: Box) -> Kinds:
        return np.full(box.key_low.shape, box.opaque, np.int8)

    @property
    def expression(self) -> str:
        return f"where({getattr(self.fn, '__name__', type(self.fn).__name__)})"


@dataclass(frozen=True, repr=False)
class And(Mask):
    """Pairs that every part allows."""

    masks: tuple[Mask, ...]

    @staticmethod
    def of(a: Mask, b: Mask) -> Mask:
        if b in (a, full):
            return a
        if a == full:
            return b
        return And(tuple(dict.fromkeys(p for m in (a, b) for p in (m.masks if isinstance(m, And) else (m,)))))

    def _allows(self, batch: Tensor, head: Tensor, query: Tensor, key: Tensor, position: Tensor) -> Tensor:
        first, *rest = (m._allows(batch, head, query, key, position) for m in self.masks)
        for other in rest:
            first = first & other
        return first

    def box(self, box: Box) -> Kinds:
        return np.minimum.reduce([m.box(box) for m in self.masks])

    def parts(self) -> tuple[Mask, ...]:
        return self.masks

    @property
    def expression(self) -> str:
        return " & ".join(f"({m})" if isinstance(m, Or) else str(m) for m in self.masks)


@dataclass(frozen=True, repr=False)
class Or(Mask):
    """Pairs that some part allows."""

    masks: tuple[Mask, ...]

    @staticmethod
    def of(a: Mask, b: Mask) -> Mask:
        if full in (a, b):
            return full
        if a == b:
            return a
        return Or(tuple(dict.fromkeys(p for m in (a, b) for p in (m.masks if isinstance(m, Or) else (m,)))))

    def _allows(self, batch: Tensor, head: Tensor, query: Tensor, key: Tensor, position: Tensor) -> Tensor:
        first, *rest = (m._allows(batch, head, query, key, position) for m in self.masks)
        for other in rest:
            first = first | other
        return first

    def box(self, box: Box) -> Kinds:
        return np.maximum.reduce([m.box(box) for m in self.masks])

    def parts(self) -> tuple[Mask, ...]:
        return self.masks

    @property
    def expression(self) -> str:
        return " | ".join(f"({m})" if isinstance(m, And) else str(m) for m in self.masks)


@dataclass(frozen=True, repr=False)
class Not(Mask):
    """Pairs that the part hides."""

    mask: Mask

    def _allows(self, batch: Tensor, head: Tensor, query: Tensor, key: Tensor, position: Tensor) -> Tensor:
        return ~self.mask._allows(batch, head, query, key, position)

    def box(self, box: Box) -> Kinds:
        return (2 - self.mask.box(replace(box, opaque=2 - box.opaque))).astype(np.int8)

    def parts(self) -> tuple[Mask, ...]:
        return (self.mask,)

    def __invert__(self) -> Mask:
        return self.mask

    @property
    def expression(self) -> str:
        return f"~({self.mask})" if isinstance(self.mask, And | Or) else f"~{self.mask}"


__all__ = ["Mask", "causal", "causal_from", "dense", "full", "padding", "where", "window"]

full: Mask = Full()
causal: Mask = Causal()


def causal_from(start: int) -> Mask:
    """Key j may be seen by query i if j ≤ i + start, whatever the matrix's own offset."""
    return CausalFrom(checks.reach("causal_from", "start", start, least=-checks.FARTHEST))


def window(left: int, right: int | None = None) -> Mask:
    """Key j may be seen from position p if p - left ≤ j ≤ p + right, both ends included; right None = left.

    A sliding window of w keys, the last one the query's own (`sliding_window = w` in Hugging Face configurations), is
    ``causal & window(w - 1, 0)``.
    """
    left = checks.reach("window", "left", left)
    return Window(left, left if right is None else checks.reach("window", "right", right))


def padding(lengths: int | Sequence[int] | Tensor | None = None, *, keep: Tensor | None = None) -> Mask:
    """Key j may be seen if j < lengths of its batch row, or if keep, shape (batch, keys) or (keys,), marks it True."""
    if (lengths is None) == (keep is None):
        raise TypeError("padding: give lengths or keep, one of the two")
    if keep is not None:
        return Keep(Held(checks.boolean_mask("padding(keep=…)", keep, most=2)))
    if isinstance(lengths, Tensor):
        return Lengths(Held(checks.lengths_tensor(lengths)))
    if isinstance(lengths, np.ndarray | np.generic):
        lengths = lengths.tolist()
    numbers = (lengths,) if isinstance(lengths, int) else tuple(lengths or ())
    checks.at_least_one_length(numbers)
    return Lengths(tuple(checks.whole_number("padding", "length", n) for n in numbers))


def dense(tensor: Tensor) -> Mask:
    """A boolean tensor, broadcastable to (batch, heads, queries, keys); True = may attend."""
    return Dense(Held(checks.boolean_mask("dense", tensor, most=4)))


def where(fn: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> Mask:
    """Pairs for which fn(batch, head, query, key) is True, evaluated tile by tile on broadcastable integer tensors.

    query is the raw row number i, not its position among the keys. Nothing is known of a function before it is called,
    so every tile is computed.
    """
    return Where(checks.function("where", fn))
