"""The leading dimensions that the user sees, and how they fold into (batch, heads)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from regard import checks


@dataclass(frozen=True)
class Layout:
    """(*batch, heads, …) folds into (batch, heads, …); a plain matrix has neither."""

    batch: tuple[int, ...]
    heads: int | None  # None: the user's tensors have no head dimension

    @staticmethod
    def of(shape: tuple[int, ...]) -> Layout:
        return Layout(tuple(shape[:-3]), shape[-3] if len(shape) > 2 else None)

    @property
    def leading(self) -> tuple[int, ...]:
        return self.batch if self.heads is None else (*self.batch, self.heads)

    def fold(self, tensor: Tensor) -> Tensor:
        """(*batch, heads, n, m) as (batch, heads, n, m)."""
        heads = 1 if self.heads is None else tensor.shape[-3]
        return tensor.reshape(math.prod(self.batch), heads, *tensor.shape[-2:])

    def unfold(self, tensor: Tensor) -> Tensor:
        """(batch, heads, …) as (*leading, …)."""
        return tensor.reshape(*self.leading, *tensor.shape[2:])

    def operand(
        self,
        operation: str,
        name: str,
        axis: str,
        given: Tensor,
        length: int,
        heads: tuple[int, ...],
        shape: tuple[int, ...],
    ) -> Tensor:
        """A value or an r as (batch, some heads, length, columns); leading dimensions broadcast as in torch.matmul."""

        def wanted() -> str:
            if self.heads is None:
                return f"(…, {axis}, columns) with {axis} = {length}"
            return f"(…, heads, {axis}, columns) with {axis} = {length} and heads one of {sorted({1, *heads})}"

        column = given[:, None] if given.ndim == 1 else given
        most = len(self.leading) + 2
        fits = column.ndim <= most
        if fits and self.heads is not None and column.ndim > 2:
            fits = column.shape[-3] in (1, *heads)
        batch = column.shape[: -2 if self.heads is None else -3]
        fits = fits and all(n in (1, m) for n, m in zip(reversed(batch), reversed(self.batch), strict=False))
        checks.operand_shape(operation, name, axis, given, length, wanted, fits, shape)
        if self.heads is None:
            column = column[..., None, :, :]
        elif column.ndim == 2:
            column = column[None]
        rest = column.shape[-3:]
        return column.expand(*self.batch, *rest).reshape(math.prod(self.batch), *rest)
