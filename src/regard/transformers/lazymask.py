"""What a model carries from transformers' mask functions to its attention layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard import masks
from regard.checks import Unsupported


class _MaskTouched(Unsupported, AttributeError):
    """Also an AttributeError, so that hasattr(mask, ...) answers False."""


@dataclass(frozen=True, eq=False)
class LazyMask:
    """A mask, and no tensor.

    It can be carried, and nothing else: a model that computes with it does its attention by itself, and is told so.
    """

    mask: masks.Mask
    offset: int  # of query 0 among the keys that the layer is given
    shape: torch.Size
    device: torch.device
    model_type: str
    first_key: int = 0  # of the keys that the layer is given, among all tokens: a sliding cache drops those before
    indexed: bool = False

    ndim = 4

    def contiguous(self) -> LazyMask:
        """Itself: generate() asks for this before it passes a prepared mask on."""
        return self

    def __getitem__(self, index: Any) -> Tensor:
        """mask[:, 0] as booleans (batch, queries, keys), for models that score every pair of a layer to choose keys."""
        rest = index[2:] if isinstance(index, tuple) else ()
        everything = slice(None)
        if not self.indexed or index[:2] != (everything, 0) or any(part != everything for part in rest):
            raise self._touched("getitem")
        batch, _, queries, keys = self.shape
        dense = self.mask.to_dense(queries, keys, batch=batch, offset=self.offset)
        return dense.to(self.device).expand(batch, 1, queries, keys)[:, 0]

    def _touched(self, what: str) -> Unsupported:
        return _MaskTouched(
            f"regard.transformers: {self.model_type} models compute with their attention mask ({what}) outside "
            'transformers\' AttentionInterface, so their weights cannot be lazy; use attn_implementation="eager".'
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by copy, pickle and inspection: an ordinary absence
            raise AttributeError(name)
        raise self._touched(f"mask.{name}")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        mask = next(a for a in (*args, *(kwargs or {}).values()) if isinstance(a, cls))
        raise mask._touched(getattr(func, "__name__", "a torch function"))


def _forbid(name: str) -> Callable[..., Any]:
    def operator(self: LazyMask, *_: Any) -> Any:
        raise self._touched(name)

    return operator


# Python looks operators up on the class, past __getattr__.
_OPERATORS = """len iter bool invert neg and rand or ror eq ne lt le gt ge
    add radd sub rsub mul rmul truediv rtruediv"""
for _name in _OPERATORS.split():
    setattr(LazyMask, f"__{_name}__", _forbid(_name))
