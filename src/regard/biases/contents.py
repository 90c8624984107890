"""A bias that holds a number for every pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regard import checks
from regard.biases.algebra import Bias, cast_up, run, sizes
from regard.masks.algebra import Held


@dataclass(frozen=True, repr=False)
class Dense(Bias):
    """A float tensor, broadcastable to (batch, heads, queries, keys)."""

    tensor: Held

    def adds(self, batch: Tensor, head: Tensor, query: Tensor, key: Tensor, position: Tensor) -> Tensor:
        return cast_up(self.tensor.tensor[self._index(batch, head, query, key)])

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
        sums = grad.sum([d for d, n in enumerate(self._shape()) if n == 1], keepdim=True) if 1 in self._shape() else grad
        index = self._index(batch, head, query, key)
        if all(isinstance(i, slice) for i in index):
            gradients[0][index] += sums.reshape(sums.shape[4 - gradients[0].ndim :])
        else:
            places = tuple(i for i in index if isinstance(i, Tensor))
            found = torch.broadcast_shapes(*(i.shape for i in places))
            gradients[0].index_put_(places, sums.reshape(found), accumulate=True)

    def _shape(self) -> tuple[int, ...]:
        shape = self.tensor.tensor.shape
        return (1,) * (4 - len(shape)) + tuple(shape)

    def _index(self, *axes: Tensor) -> tuple[slice | Tensor, ...]:
        """Where the tile lies in the tensor: a view of it if its indices count up one by one."""
        shape, least = self._shape(), 4 - self.tensor.tensor.ndim
        slices = [slice(0, 1) if n == 1 else run(axis) for axis, n in zip(axes, shape, strict=True)]
        if None not in slices:
            return tuple(s for s in slices if s is not None)[least:]
        # of one dimension: PyTorch looks at a number without any, and so waits for its device
        zero = torch.zeros(1, dtype=torch.int64, device=axes[0].device)
        return tuple(zero if n == 1 else axis for axis, n in zip(axes, shape, strict=True))[least:]

    def misfits(self, batch: int, heads: int, queries: int, keys: int, positions: tuple[int, int]) -> list[str]:
        wanted = (batch, heads, queries, keys)
        if all(checks.one_of(n, 1, w) for n, w in zip(self._shape(), wanted, strict=True)):
            return []
        return [f"dense bias of shape {checks.listed(self.tensor.tensor.shape)} does not broadcast to {checks.listed(wanted)}"]

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.tensor.tensor,)

    def with_tensors(self, *tensors: Tensor) -> Bias:
        return replace(self, tensor=Held(tensors[0]))

    @property
    def expression(self) -> str:
        return f"dense({sizes(self.tensor.tensor)})"
