"""How much of each query's attention lies on each segment of the keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import one_hot

from regard import checks
from regard.call import Call
from regard.readouts.base import Dense, Finished, OnlineReadout, Parts, Place, Scored, Swept, rows_of, zeros

WIDE = 16  # columns that a product comes in: one of 9 takes three times as long as one of 16
FEW = 3 * WIDE  # segments in a tile up to which a product with their indicator beats adding cell by cell


@dataclass(frozen=True, eq=False, init=False)
class Mass(OnlineReadout):
    """Σ_{j: segments_j = s} A_ij for every segment s, (batch, heads, queries, count): a share of 1, 0 in an empty row.

    segments: the segment of each key, counted from 0, (keys,) or (batch, keys), of the matrix, or the part, that is asked:
    A[…, :5].mass(segments[:5]). It is copied. count: None = the largest segment + 1.

    Raises TypeError for segments that are no integers, ValueError for ones below 0 or from count on, ShapeError where they
    are not one per key, TooLarge above 1 GiB for more segments than keys. Source: the attention to a class of tokens
    ([SEP], the first sentence, …) of Clark et al. 2019, "What Does BERT Look At?".

    >>> S.read(Mass([0, 0, 1])).mass
    tensor([[1.0000, 0.0000],
            [1.0000, 0.0000],
            [0.5000, 0.5000]])
    """

    segments: Int[Tensor, "batch_or_1 keys"] = field(repr=False)
    count: int

    def __init__(self, segments: Tensor | Sequence[int] | Sequence[Sequence[int]], count: int | None = None) -> None:
        held, number = checks.segments("mass", segments, count)
        object.__setattr__(self, "segments", held)
        object.__setattr__(self, "count", number)

    def size(self, call: Call) -> int:
        self._check(call)
        return rows_of(call) * self.count

    def dense(self, matrix: Dense) -> Parts:
        self._check(matrix.call)
        here = self._of(Place(matrix.call, slice(None), slice(None), slice(None), None))
        nothing = zeros(matrix.call, matrix.call.shape[2], self.count)
        return (nothing.scatter_add(-1, here.expand_as(matrix.weights), matrix.weights),)

    def start(self, place: Place) -> Tensor:
        self._check(place.call)
        rows = place.of_rows(place.call.query).shape[:3]
        return place.call.query.new_zeros((*rows, self.count), dtype=place.call.dtype)

    def merge(self, state: Tensor, tile: Scored) -> Tensor:
        state.mul_(tile.rescale[..., None])
        here = self._of(tile)
        present, local = here.unique(return_inverse=True)
        if len(present) > FEW:
            return state.scatter_add_(-1, here.expand_as(tile.weights), tile.weights)
        indicator = one_hot(local[:, 0], -(-len(present) // WIDE) * WIDE).to(tile.weights.dtype)
        sums = tile.weights @ (indicator[0, 0] if len(indicator) == 1 else indicator)
        return state.index_add_(-1, present, sums[..., : len(present)])

    def finish(self, state: Tensor, end: Swept) -> Parts:
        return (state.mul_(end.factor[..., None]),)

    def pull(self, tile: Finished, parts: Parts, grads: Parts) -> Tensor:
        return tile.of_rows(grads[0]).gather(-1, self._of(tile).expand_as(tile.weights))

    def delta(self, call: Call, parts: Parts, grads: Parts) -> Tensor:
        return (parts[0] * grads[0]).sum(-1)

    def _of(self, place: Place) -> Int[Tensor, "b_or_1 1 1 c"]:
        """The segments of the tile's keys."""
        rows = self.segments if len(self.segments) == 1 else self.segments[place.batch]
        return rows[:, None, None, place.columns].to(place.call.device)

    def _check(self, call: Call) -> None:
        checks.segments_fit("mass", self.segments, call.shape)
        checks.fits_answer("mass", "count", self.count, call.shape, call.dtype.itemsize, "number the segments without gaps")
