"""What a bias is, and its closure under ``+``.

A bias answers three questions: what it adds to the scores of a tile (`adds`), what the tile's share of its tensors'
gradients is (`pull`), and whether it fits a matrix (`misfits`). It holds no size of its own, and a tile of it is made
when it is asked for: only `dense` costs memory of the order of its matrix.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NoReturn

import torch
from torch import Tensor

from regard import checks


class Bias(ABC):
    """Numbers that are added to the scores, after scale and softcap; -inf hides the pair.

    >>> biases.alibi(4) + biases.relative(torch.zeros(4, 7))
    alibi(4) + relative(4×7, clipped())
    """

    @abstractmethod
    def adds(self, batch: Tensor, head: Tensor, query: Tensor, key: Tensor, position: Tensor) -> Tensor:
        """What is added to each pair: float32 (float64 of float64 tensors), broadcastable to (batch, heads, queries, keys).

        The indices are those of the whole matrix: batch (b, 1, 1, 1), head (h, 1, 1), query (r, 1), key (c,), and
        position = query + offset, the place of the query among the keys, (r, 1) or (b, 1, r, 1).

        >>> zero, i, j = torch.tensor(0), torch.arange(3)[:, None], torch.arange(3)
        >>> biases.dense(torch.arange(9.0).reshape(3, 3)).adds(zero, zero, i, j, i)[2]
        tensor([6., 7., 8.])
        """

    @abstractmethod
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
        """Adds a tile's share to the gradients of `tensors()`, given grad = dL/dscore, (b, h, r, c), 0 at hidden pairs.

        >>> i, j, zero = torch.arange(2)[:, None], torch.arange(2), torch.zeros(1, 1, 1, 1).long()
        >>> gradient = torch.zeros(1, 3)
        >>> biases.relative(torch.zeros(1, 3)).pull(zero, zero[0], i, j, i, torch.ones(1, 1, 2, 2), [gradient])
        >>> gradient
        tensor([[1., 2., 1.]])
        """

    @abstractmethod
    def misfits(self, batch: int, heads: int, queries: int, keys: int, positions: tuple[int, int]) -> list[str]:
        """Why it does not fit a matrix of that size; positions = the least and the greatest position of a query.

        >>> biases.alibi(4).misfits(1, 8, 6, 6, (0, 5))
        ['alibi has 4 slopes and the matrix 8 heads']
        """

    @property
    @abstractmethod
    def expression(self) -> str:
        """The bias as one would write it.

        >>> biases.alibi(4).expression
        'alibi(4)'
        """

    def parts(self) -> tuple[Bias, ...]:
        """The biases whose sum it is.

        >>> (biases.alibi(4) + biases.relative(torch.zeros(4, 7))).parts()
        (alibi(4), relative(4×7, clipped()))
        """
        return (self,)

    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor inside, always in the same order.

        >>> biases.alibi(4).tensors(), biases.alibi(torch.ones(2)).tensors()
        ((), (tensor([1., 1.]),))
        """
        return ()

    def with_tensors(self, *tensors: Tensor) -> Bias:
        """The same bias with other tensors in the place of its own; they are not checked.

        >>> biases.alibi(torch.ones(2)).with_tensors(torch.zeros(2)).tensors()
        (tensor([0., 0.]),)
        """
        return self

    def change(self, *changes: Tensor) -> Bias | None:
        """How what it adds changes with its tensors, in which it is linear; None: it has none, and does not change.

        >>> step = biases.relative(torch.zeros(4, 7)).change(torch.ones(4, 7))
        >>> step, biases.alibi(4).change()
        (relative(4×7, clipped()), None)
        """
        return self.with_tensors(*changes) if changes else None

    def to(self, device: torch.device | str) -> Bias:
        """The same bias with its tensors on that device.

        >>> biases.alibi(torch.ones(2)).to("cpu")
        alibi(slopes of 2)
        """
        return self.with_tensors(*(t.to(device) for t in self.tensors()))

    def __add__(self, other: object) -> Bias:
        return Sum((*self.parts(), *other.parts())) if isinstance(other, Bias) else checks.added(other)

    def __radd__(self, other: object) -> NoReturn:
        checks.added(other)

    def __str__(self) -> str:
        return self.expression

    def __repr__(self) -> str:
        return self.expression


@dataclass(frozen=True, repr=False)
class Sum(Bias):
    """All that its parts add."""

    biases: tuple[Bias, ...]

    def adds(self, batch: Tensor, head: Tensor, query: Tensor, key: Tensor, position: Tensor) -> Tensor:
        first, *rest = (bias.adds(batch, head, query, key, position) for bias in self.biases)
        for other in rest:
            first = first + other
        return first

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
        for bias, own in zip(self.biases, self._split(gradients), strict=True):
            bias.pull(batch, head, query, key, position, grad, own)

    def misfits(self, batch: int, heads: int, queries: int, keys: int, positions: tuple[int, int]) -> list[str]:
        return [m for bias in self.biases for m in bias.misfits(batch, heads, queries, keys, positions)]

    def parts(self) -> tuple[Bias, ...]:
        return self.biases

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(chain.from_iterable(bias.tensors() for bias in self.biases))

    def with_tensors(self, *tensors: Tensor) -> Bias:
        return replace(self, biases=tuple(b.with_tensors(*t) for b, t in zip(self.biases, self._split(tensors), strict=True)))

    def change(self, *changes: Tensor) -> Bias | None:
        parts = (bias.change(*own) for bias, own in zip(self.biases, self._split(changes), strict=True))
        moved = tuple(part for part in parts if part is not None)
        return Sum(moved) if moved else None

    def _split(self, tensors: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        """Those of each part."""
        left = iter(tensors)
        return [tuple(next(left) for _ in bias.tensors()) for bias in self.biases]

    @property
    def expression(self) -> str:
        return " + ".join(map(str, self.biases))


def cast_up(tensor: Tensor) -> Tensor:
    """float32, or float64 as it is: before anything is gathered, so that gradients do not add up in bfloat16."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def run(indices: Tensor) -> slice | None:
    """The slice that picks those indices, if they count up one by one and looking at them costs no wait for a device."""
    if indices.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    flat = indices.flatten()
    if len(flat) == 0 or not bool((flat.diff() == 1).all()):
        return None
    first = int(flat[0])
    return slice(first, first + len(flat))


def sizes(tensor: Tensor) -> str:
    """A shape as an expression shows it."""
    return "×".join(map(str, tensor.shape))
