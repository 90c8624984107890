"""A walk over the visible tiles of a call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from torch import Tensor

from regard.call import Call
from regard.plan import Plan, lay
from regard.readouts.base import Finished, Place
from regard.scoring import Tile, finished, rows, scored


@runtime_checkable
class Tiling(Protocol):
    """How large tiles are."""

    @property
    def elements(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def grain(self) -> int: ...
    @property
    def least_rows(self) -> int: ...


@dataclass(frozen=True)
class Seen:
    """A tile with its scores (used up), its weights, and the ready queries and keys behind them."""

    tile: Tile
    weights: Finished
    query: Tensor
    key: Tensor


@dataclass(frozen=True)
class Walk:
    """A call cut into rows of tiles: one plan per chunk of batch rows."""

    tiling: Tiling
    call: Call
    key: Tensor  # in the dtype of the computation, contiguous: a product of strided tiles would copy them each time

    @staticmethod
    def over(tiling: Tiling, call: Call) -> Walk:
        return Walk(tiling, call, call.key.to(call.dtype).contiguous())

    def chunks(self) -> Iterator[tuple[slice, Plan]]:
        """Runs of batch rows that fit into a tile together, each with the plan of what they see."""
        batch, heads, queries, keys = self.call.shape
        t, axes = self.tiling, self.call.axes
        columns = max(1, min(t.columns, keys))
        together = max(1, t.elements // max(1, heads * columns * min(t.least_rows, max(queries, 1))))
        for begin in range(0, max(batch, 1), together):
            part = slice(begin, min(begin + together, batch))
            rows = max(1, min(queries, t.elements // max(1, (part.stop - begin) * heads * columns)))
            yield part, lay(self.call.mask, replace(axes, batch=axes.batch[part]), self.call.offset, rows, t.grain)

    def rows(self, plan: Plan) -> Iterator[tuple[int, slice]]:
        """The rows of tiles of a plan; one without rows where there is no query."""
        queries = self.call.shape[2]
        for row in range(max(len(plan), 1)):
            yield row, slice(row * plan.rows, min((row + 1) * plan.rows, queries))

    def places(self, batch: slice, plan: Plan, row: int, rows: slice) -> Iterator[Place]:
        """Where the row's tiles lie, and what is hidden in them."""
        if row >= len(plan):
            return
        for step in plan.steps(row, self.tiling.columns):
            columns = slice(step.begin, step.end)
            hidden = ~self.call.allowed(batch, rows, columns) if step.mixed else None
            yield Place(self.call, batch, rows, columns, hidden)

    def query(self, batch: slice, part: slice) -> Tensor:
        return rows(self.call, batch, part)

    def scored(self, query: Tensor, place: Place) -> Tile:
        return scored(query, place.of_columns(self.key), place)

    def tiles(self, log_sum: Tensor, wanted: Callable[[Place], bool] | None = None) -> Iterator[Seen]:
        """Every visible tile of weights that somebody wants."""
        for batch, plan in self.chunks():
            for row, part in self.rows(plan):
                query = self.query(batch, part)
                for place in self.places(batch, plan, row, part):
                    if wanted is None or wanted(place):
                        tile = self.scored(query, place)
                        yield Seen(tile, finished(tile, place.of_rows(log_sum)), query, place.of_columns(self.key))
