"""The leading dimensions that the user sees, and how they fold into (batch, heads)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
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

    @property
    def _folded(self) -> bool:
        """Whether the user's tensors are (batch, heads, …) as they are: then nothing is reshaped."""
        return len(self.batch) == 1 and self.heads is not None

    def fold(self, tensor: Tensor) -> Tensor:
        """(*batch, heads, n, m) as (batch, heads, n, m)."""
        if self._folded:
            return tensor
        heads = 1 if self.heads is None else tensor.shape[-3]
        return tensor.reshape(math.prod(self.batch), heads, *tensor.shape[-2:])

    def unfold(self, tensor: Tensor) -> Tensor:
        """(batch, heads, …) as (*leading, …)."""
        if self._folded:
            return tensor
        return tensor.reshape(*self.leading, *tensor.shape[2:])

    def takes(self, given: Tensor, length: int, heads: tuple[int, ...]) -> bool:
        """Whether a value is (batch, some heads, length, columns) as it is: the usual case, at once."""
        if given.ndim != 4 or not self._folded or torch.compiler.is_compiling():
            return False
        batch, some, rows, _ = given.shape
        return batch == self.batch[0] and rows == length and (some == 1 or some in heads)

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
            fits = checks.one_of(column.shape[-3], 1, *heads)
        leading = column.shape[: -2 if self.heads is None else -3]
        fits = fits and all(checks.one_of(n, 1, m) for n, m in zip(reversed(leading), reversed(self.batch), strict=False))
        checks.operand_shape(operation, name, axis, given, length, wanted, fits, shape)
        if self.heads is None:
            column = column[..., None, :, :]
        elif column.ndim == 2:
            column = column[None]
        rest = column.shape[-3:]
        if column.ndim == 4 and self._folded and column.shape[0] == self.batch[0]:
            return column
        return column.expand(*self.batch, *rest).reshape(math.prod(self.batch), *rest)
