"""What a readout is: a question about the matrix with an answer of size O(n), asked once and answered by every backend.

An *online* readout is merged while the row sweep runs, before the log-sum-exp is known. A *finished* one is given tiles of
exact weights, each visible tile once, in any order. Both say what they mean on a dense matrix (the specification), and,
for the one backward that serves them all, what dL/dA they put on a tile.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from regard.call import Call
from regard.dropout import Dropout, applied

LEAST = -1e4  # stands for ln 0: far below every logarithm whose weight is not 0
Parts = tuple[Tensor, ...]  # the tensors of an answer, each (batch, heads, …)
State = Any


@dataclass(frozen=True)
class Dense:
    """The whole matrix, as the reference hands it to a readout's definition.

    >>> from regard.backends.reference import dense
    >>> dense(S.call, None).weights
    tensor([[[[1.0000, 0.0000, 0.0000],
              [0.2500, 0.7500, 0.0000],
              [0.1250, 0.3750, 0.5000]]]])
    """

    call: Call
    scores: Float[Tensor, "batch heads queries keys"]  #: -inf where hidden
    weights: Float[Tensor, "batch heads queries keys"]
    log_sum: Float[Tensor, "batch heads queries"]
    seen: Bool[Tensor, "batch heads queries keys"]

    def dropped(self, drop: Dropout | None) -> Tensor:
        """The weights after dropout."""
        return self.weights if drop is None else drop.dropped(self.weights, *self.call.pairs()[:4])


@dataclass(frozen=True)
class Place:
    """Where a tile lies: slices of the call's batch rows, queries and keys; every head is in it.

    >>> place = regard.readouts.Place(A.call, batch=slice(0, 2), rows=slice(0, 3), columns=slice(0, 4), hidden=None)
    >>> place.of_rows(A.entropy()).shape, place.of_columns(A.sum(-2)).shape
    (torch.Size([2, 4, 3]), torch.Size([2, 4, 4]))
    """

    call: Call
    batch: slice
    rows: slice
    columns: slice
    hidden: Bool[Tensor, "#b #h #r #c"] | None  #: None where every pair is seen
    kept: dict[Dropout, Tensor] = field(default_factory=dict, init=False, repr=False)

    def of_rows(self, tensor: Tensor) -> Tensor:
        """The tile's part of something (batch, heads, queries, …)."""
        return tensor[self.batch, :, self.rows]

    def of_columns(self, tensor: Tensor) -> Tensor:
        """The tile's part of something (batch, heads, keys, …)."""
        return tensor[self.batch, :, self.columns]

    def dropped(self, drop: Dropout | None, weights: Float[Tensor, "b h r c"]) -> Float[Tensor, "b h r c"]:
        """Weights of the tile, or what belongs to them, after dropout."""
        if drop is None:
            return weights
        if drop not in self.kept:
            self.kept[drop] = drop.words(*self.call.pairs(self.batch, self.rows, self.columns)[:4])
        return applied(self.kept[drop], weights, drop.rescale)


@dataclass(frozen=True)
class Scored(Place):
    """A tile in the row sweep. weights = exp(centred), centred = scores - peak, peak the greatest score so far.

    >>> list(regard.readouts.Scored.__annotations__)
    ['scores', 'centred', 'weights', 'total', 'rise', 'rescale']
    """

    scores: Float[Tensor, "b h r c"]
    centred: Float[Tensor, "b h r c"]
    weights: Float[Tensor, "b h r c"]
    total: Float[Tensor, "b h r"]  #: Σ weights
    rise: Float[Tensor, "b h r"]  #: how much the peak rose with this tile
    rescale: Float[Tensor, "b h r"]  #: exp(-rise): what the sums so far shrink by


@dataclass(frozen=True)
class Swept:
    """The end of a row sweep: weights of the matrix are factor · exp(score - peak).

    >>> list(regard.readouts.Swept.__annotations__)
    ['call', 'log_sum', 'gap', 'factor']
    """

    call: Call
    log_sum: Float[Tensor, "b h r"]
    gap: Float[Tensor, "b h r"]  #: log_sum - peak, 0 in empty rows
    factor: Float[Tensor, "b h r"]  #: exp(-gap), 0 in empty rows


@dataclass(frozen=True)
class Finished(Place):
    """A tile of exact weights; log_weights is a large negative number where they are 0.

    >>> list(regard.readouts.Finished.__annotations__)
    ['weights', 'log_weights']
    """

    weights: Float[Tensor, "b h r c"]
    log_weights: Float[Tensor, "b h r c"]


class Readout(ABC):
    """A small frozen value. Subclasses are OnlineReadout or FinishedReadout.

    >>> TopK(3).name, TopK(3).size(A.call)
    ('topk', 288)
    """

    answer: ClassVar[type[Any] | None] = None  #: a NamedTuple of the parts; None = one tensor
    differentiable: ClassVar[tuple[bool, ...]] = (True,)  #: per part
    sweep: ClassVar[str]

    @property
    def name(self) -> str:
        """What the answer is called in a reading."""
        return type(self).__name__.lower()

    @property
    def operands(self) -> tuple[Tensor, ...]:
        """Tensors that the question brings along, (batch, heads or fewer, …)."""
        return ()

    def with_operands(self, *operands: Tensor) -> Readout:
        """The same question with other operands."""
        return self

    def without_operands(self) -> Readout:
        """The same question with shapes in the place of tensors."""
        operands = self.operands
        return self.with_operands(*(torch.empty_like(t, device="meta") for t in operands)) if operands else self

    def ready(self, call: Call) -> Readout:
        """The same question for a sweep over tiles, with operands that it can read at once: cast, and contiguous."""
        return self

    def check_unchanged(self) -> None:
        """Raises Changed if something that the question holds was changed in place since it was asked."""
        return

    def public(self, parts: Parts) -> Any:
        """The answer as the user gets it."""
        return parts[0] if self.answer is None else self.answer(*parts)

    @abstractmethod
    def dense(self, matrix: Dense) -> Parts:
        """The definition, on a dense matrix."""

    @abstractmethod
    def size(self, call: Call) -> int:
        """How many numbers the answer has."""

    def pull(self, tile: Finished, parts: Parts, grads: Parts) -> Tensor | float:
        """dL/dA on a tile, given the gradients of the parts."""
        raise NotImplementedError(f"{type(self).__name__} has no gradient.")

    def delta(self, call: Call, parts: Parts, grads: Parts) -> Tensor | None:
        """Σ_j A_ij dL/dA_ij, (batch, heads, queries), where it is known without a sweep."""
        return None

    def pull_operands(self, tile: Finished, parts: Parts, grads: Parts, gradients: Parts) -> None:
        """Adds the tile's share to the gradients of the operands."""
        del tile, parts, grads, gradients  # most questions have no operands


class OnlineReadout(Readout):
    """Merged while the row sweep runs: it rides the same walk as the output.

    >>> isinstance(Entropy(), regard.readouts.OnlineReadout), Entropy().sweep
    (True, 'first')
    """

    sweep = "first"

    @abstractmethod
    def start(self, place: Place) -> State:
        """The state of a row of tiles before any key was seen."""

    @abstractmethod
    def merge(self, state: State, tile: Scored) -> State:
        """The state with one more tile."""

    @abstractmethod
    def finish(self, state: State, end: Swept) -> Parts:
        """The answer for the rows."""


class FinishedReadout(Readout):
    """Given exact weights, once the log-sum-exp is known.

    >>> isinstance(Received(), regard.readouts.FinishedReadout), Received().sweep
    (True, 'second')
    """

    sweep = "second"

    @abstractmethod
    def start(self, call: Call) -> State:
        """The state before any tile was seen."""

    @abstractmethod
    def add(self, state: State, tile: Finished) -> None:
        """Takes in one tile, in place."""

    def touches(self, call: Call, rows: slice, columns: slice) -> bool:
        """Whether a tile there can matter: tiles that matter to nobody are not computed."""
        return True

    def finish(self, state: State, call: Call) -> Parts:
        """The answer, after every visible tile."""
        return (state,)


def rows_of(call: Call) -> int:
    """Rows of the matrix over all batch rows and heads.

    >>> regard.readouts.rows_of(A.call)
    48
    """
    batch, heads, queries, _ = call.shape
    return batch * heads * queries


def columns_of(call: Call) -> int:
    """Columns of the matrix over all batch rows and heads."""
    batch, heads, _, keys = call.shape
    return batch * heads * keys


def zeros(call: Call, *shape: int) -> Tensor:
    """An accumulator of shape (batch, heads, *shape).

    >>> regard.readouts.zeros(A.call, 6, 3).shape
    torch.Size([2, 4, 6, 3])
    """
    return call.query.new_zeros((*call.shape[:2], *shape), dtype=call.dtype)
