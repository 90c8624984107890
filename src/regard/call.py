"""The frozen problem that every backend, error text and benchmark receives: checked once, at the public border."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from jaxtyping import Bool, Float
from torch import Tensor

from regard import checks
from regard.masks import Mask
from regard.masks.algebra import grid, version
from regard.plan import Axes


@dataclass(frozen=True, eq=False)
class Call:
    """Scores scale · query · keyᵀ under a mask. Head h meets key head h // (heads // kv_heads)."""

    query: Float[Tensor, "batch heads queries dim"]
    key: Float[Tensor, "batch kv_heads keys dim"]
    mask: Mask
    scale: float
    offset: int | tuple[int, ...]
    axes: Axes
    whole: Call | None = None  # set on a part of the keys: the call over all of them, whose log-sum-exp normalises both
    watched: tuple[tuple[Tensor, int], ...] = field(default=(), repr=False)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(batch, heads, queries, keys)."""
        batch, heads, queries, _ = self.query.shape
        return batch, heads, queries, self.key.shape[-2]

    @property
    def dtype(self) -> torch.dtype:
        """What scores, sums and readouts are computed in: float32, or float64 for float64."""
        return torch.promote_types(self.query.dtype, torch.float32)

    @property
    def device(self) -> torch.device:
        return self.query.device

    def watching(self, *tensors: Tensor) -> Call:
        """The same call, which refuses to answer once one of the tensors, or of the mask's, was changed in place."""
        return replace(self, watched=tuple((t, version(t)) for t in (*tensors, *self.mask.tensors())))

    @property
    def steady(self) -> bool:
        """Whether an answer may be kept for later: every change is noticed, and no transform looks through the tensors."""
        return (
            all(then >= 0 for _, then in self.watched)
            and forward_ad._current_level < 0
            and not transformed(self.query, self.key)
            and not torch.compiler.is_compiling()
        )

    def without_tensors(self) -> Call:
        """The same call with shapes in the place of queries and keys, watching its mask: what a graph may keep."""
        query, key = (torch.empty_like(t, device="meta") for t in (self.query, self.key))
        whole = None if self.whole is None else self.whole.without_tensors()
        return replace(self, query=query, key=key, whole=whole).watching()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy counts the changes of its own tensors."""
        state["watched"] = tuple((t, version(t)) for t, _ in state["watched"])
        self.__dict__.update(state)

    def check_unchanged(self) -> None:
        checks.unchanged(self.watched)

    def allowed(
        self, batch: slice = slice(None), rows: slice = slice(None), columns: slice = slice(None)
    ) -> Bool[Tensor, "b h r c"]:
        """Which pairs of a tile may meet; axes on which the mask does not depend have size 1."""
        axes = self.axes
        b, h, i, j = grid(axes.batch[batch], axes.heads, axes.queries[rows], axes.keys[columns], device=self.query.device)
        seen = self.mask._allows(b, h, i, j, i + self.shift(b))
        return seen.reshape((1,) * (4 - seen.ndim) + seen.shape)

    def shift(self, batch: Tensor) -> Tensor | int:
        """The offset of each batch row."""
        return self.offset if isinstance(self.offset, int) else torch.tensor(self.offset, device=batch.device)[batch]

    def positions(self, batch: slice = slice(None), rows: slice = slice(None)) -> Tensor:
        """The position among the original keys of each query, shape (batch or 1, 1, rows)."""
        b, _, i, _ = grid(self.axes.batch[batch], (0,), self.axes.queries[rows], (0,), device=self.query.device)
        return (i + self.shift(b)).expand(b.shape[0] if not isinstance(self.offset, int) else 1, 1, -1, 1)[..., 0]

    def columns(self, columns: slice = slice(None)) -> Tensor:
        """The original index of each key, shape (columns,)."""
        return grid((0,), (0,), (0,), self.axes.keys[columns], device=self.query.device)[3]


def transformed(*tensors: Tensor) -> bool:
    """Whether torch.func (vmap, grad, jvp, …) wraps one of the tensors."""
    return any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in tensors)
