"""What a mask is, and its closure under ``& | ~``.

A mask answers four questions: what it means (`allows`), what it says of a whole rectangle (`box`), its dense form
(`to_dense`) and its picture (`draw`). Kernels never see a mask, only the plan that is laid from its boxes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NoReturn, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regard import checks

EMPTY, MIXED, FULL = 0, 1, 2  # ordered, so that & is the minimum, | the maximum and ~ is 2 - x

Ints = NDArray[np.int64]
Kinds = NDArray[np.int8]
T = TypeVar("T")


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
    version: int = (
        -1
    )  # an argument, because whoever rebuilds dataclasses field by field hands it over; it is counted all the same

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
    """How often a tensor was changed in place; -1 where it keeps no count (inference mode, compiled graphs)."""
    return -1 if torch.compiler.is_compiling() or tensor.is_inference() else tensor._version


class Mask(ABC):
    """A set of (batch, head, query, key) pairs that may meet.

    >>> mask = masks.causal & ~masks.window(1, 0)
    >>> print(mask.draw(5, 5))
    · · · · ·
    · · · · ·
    ■ · · · ·
    ■ ■ · · ·
    ■ ■ ■ · ·
    5 queries × 5 keys
    """

    @abstractmethod
    def _allows(self, batch: Tensor, head: Tensor, query: Tensor, key: Tensor, position: Tensor) -> Tensor:
        """Whether each pair may meet; position = query + offset, the place of the query among the keys."""

    @abstractmethod
    def box(self, box: Box) -> Kinds:
        """EMPTY, FULL or MIXED for each rectangle. EMPTY and FULL are never wrong; MIXED may be cautious.

        >>> from regard.masks.algebra import EMPTY, MIXED, Box
        >>> first, last = np.array([0, 0]), np.array([3, 3])
        >>> boxes = Box([0], [0], first, last, np.array([0, 4]), np.array([3, 7]), 0, 0)
        >>> masks.causal.box(boxes).tolist() == [MIXED, EMPTY]
        True
        """

    @property
    @abstractmethod
    def expression(self) -> str:
        """The mask as one would write it.

        >>> (masks.causal & ~masks.window(2)).expression
        'causal & ~window(2)'
        """

    @property
    def extent(self) -> tuple[int, int]:
        """A number of (queries, keys) at which a picture shows what the mask does, parts aside.

        >>> masks.causal.extent, masks.documents([0, 0, 1, 1, 1]).extent
        ((8, 8), (5, 5))
        """
        return (8, 8)

    def extents(self) -> list[tuple[int, int]]:
        """The extents of all that the mask is made of.

        >>> (masks.causal & masks.documents([0, 0, 1])).extents()
        [(8, 8), (3, 3)]
        """
        return [size for part in self.parts() for size in part.extents()] or [self.extent]

    def parts(self) -> tuple[Mask, ...]:
        """The masks that this one is made of.

        >>> len((masks.causal | masks.prefix(2)).parts())
        2
        """
        return ()

    @property
    def opaque(self) -> bool:
        """Whether something in it can only be known by looking at every pair.

        >>> even = masks.where(lambda batch, head, query, key: key % 2 == 0)
        >>> masks.causal.opaque, (masks.causal & even).opaque
        (False, True)
        """
        return any(part.opaque for part in self.parts())

    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor inside.

        >>> masks.causal.tensors(), len(masks.documents([0, 0, 1]).tensors())
        ((), 1)
        """
        return tuple(t for part in self.parts() for t in part.tensors())

    def misfits(self, batch: int | None, heads: int | None, queries: int, keys: int) -> list[str]:
        """Why the mask cannot lie on a matrix of that size, None being any; empty if it can.

        >>> masks.documents([0, 0, 1, 1, 1]).misfits(1, 1, 5, 7)
        ['documents has 5 ids and the matrix 7 keys']
        """
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

        >>> masks.causal.allows(0, 0, query=2, key=torch.arange(4))
        tensor([ True,  True,  True, False])
        """
        tensors = (*self.tensors(), *(x for x in (batch, head, query, key, offset) if isinstance(x, Tensor)))
        device = tensors[0].device if tensors else None
        b, h, i, j = (checks.indices("allows", x, device) for x in (batch, head, query, key))
        shift = checks.indices("allows", offset, device)
        try:
            shape = torch.broadcast_shapes(b.shape, h.shape, i.shape, j.shape)
            return self._allows(b, h, i, j, i + (shift[b] if shift.ndim else shift)).expand(shape)
        except (IndexError, RuntimeError) as error:
            checks.not_looked_up(error, self.expression, (b, h, i, j, shift))

    def to_dense(self, queries: int, keys: int, batch: int = 1, heads: int = 1, offset: int | Tensor | None = None) -> Tensor:
        """The mask as booleans, shape (batch, heads, queries, keys). offset None = keys - queries.

        >>> (masks.causal & masks.padding(2)).to_dense(3, 3)[0, 0].long()
        tensor([[1, 0, 0],
                [1, 1, 0],
                [1, 1, 0]])
        """
        sizes = {"queries": queries, "keys": keys, "batch": batch, "heads": heads}
        queries, keys, batch, heads = (checks.whole_number("to_dense", name, n) for name, n in sizes.items())
        checks.mask_lies_on("to_dense", self, batch, heads, queries, keys)
        shift = keys - queries if offset is None else checks.shift("to_dense", offset, batch)
        device = next((t.device for t in self.tensors()), torch.device("cpu"))
        b, h, i, j = grid(range(batch), range(heads), range(queries), range(keys), device)
        return self.allows(b, h, i, j, shift.to(device) if isinstance(shift, Tensor) else shift).contiguous()

    def to(self, device: torch.device | str) -> Mask:
        """The same mask with its tensors on that device; itself if they are there already. A function stays as it is.

        >>> masks.causal.to("cpu") is masks.causal
        True
        """
        moved = {name: _to(part, device) for name, part in vars(self).items()}
        if all(moved[name] is part for name, part in vars(self).items()):
            return self
        mask = copy(self)
        vars(mask).update(moved)
        return mask

    def draw(self, queries: int, keys: int, offset: int | None = None, cells: int = 16) -> str:
        """A picture in text: ■ all pairs of the cell may meet, ▒ some, · none (batch row 0, head 0).

        >>> print(masks.causal.draw(4096, 4096, cells=6))
        ▒ · · · · ·
        ■ ▒ · · · ·
        ■ ■ ▒ · · ·
        ■ ■ ■ ▒ · ·
        ■ ■ ■ ■ ▒ ·
        ■ ■ ■ ■ ■ ▒
        4096 queries × 4096 keys, one cell = 683 × 683
        """
        from regard.picture import draw_mask

        queries, keys = (checks.whole_number("draw", name, n) for name, n in (("queries", queries), ("keys", keys)))
        checks.whole_number("draw", "cells", cells, least=1)
        checks.mask_lies_on("draw", self, None, None, queries, keys)
        start = keys - queries if offset is None else checks.whole_number("draw", "offset", offset, least=-checks.FARTHEST)
        return draw_mask(self, range(queries), range(keys), start, cells)

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


_prepared: WeakKeyDictionary[Mask, tuple[tuple[Any, ...], Any]] = WeakKeyDictionary()


def prepared(mask: Mask, rows: Sequence[int], make: Callable[[], T]) -> T:
    """What a mask works out of its tensors for those batch rows: kept until they change, or others are asked for."""
    versions = tuple(map(version, mask.tensors()))
    then, known = _prepared.get(mask, ((), None))
    if then != (versions, tuple(rows)) or -1 in versions:  # without a version, a tensor may have changed unnoticed
        known = make()
        _prepared[mask] = (versions, tuple(rows)), known
    return known


def _to(part: Any, device: torch.device | str) -> Any:
    """A field of a mask on that device; itself if nothing in it moves."""
    if isinstance(part, Mask):
        return part.to(device)
    if isinstance(part, Held):
        tensor = part.tensor.to(device)
        return part if tensor is part.tensor else Held(tensor)
    if isinstance(part, tuple):
        moved = tuple(_to(p, device) for p in part)
        return part if all(a is b for a, b in zip(moved, part, strict=True)) else moved
    return part


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


full: Mask = Full()
