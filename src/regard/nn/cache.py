"""What an attention layer keeps between the steps of a decoding."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.nn import checks


class Cache:
    """The keys and values that one layer has seen so far, (batch, kv_heads, keys, dim); empty at first.

    A layer that is given one adds to it, and its queries are the last of all keys. Nothing that was handed out changes: each
    addition makes new tensors, so that lazy matrices of earlier steps stay what they were.

    >>> cache = Cache()
    >>> key, value = cache.append(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4))
    >>> key, value = cache.append(torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 1, 4))
    >>> cache.length, key.shape
    (4, torch.Size([1, 2, 4, 4]))
    """

    def __init__(self) -> None:
        self.key: Tensor | None = None
        self.value: Tensor | None = None

    @property
    def length(self) -> int:
        """How many keys there are: the position of the next token."""
        return 0 if self.key is None else self.key.shape[-2]

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values, the new ones last.

        ShapeError where batch, kv_heads or dim are not those of the cache.
        """
        if self.key is None or self.value is None:
            self.key, self.value = key, value
            return key, value
        checks.continues(self.key, key)
        checks.continues(self.value, value)
        self.key, self.value = torch.cat((self.key, key), -2), torch.cat((self.value, value), -2)
        return self.key, self.value

    def select(self, rows: Tensor) -> None:
        """Keeps these rows of the batch, in this order; a row may come more than once."""
        if self.key is not None and self.value is not None:
            self.key, self.value = self.key.index_select(0, rows), self.value.index_select(0, rows)

    def __repr__(self) -> str:
        return "Cache(empty)" if self.key is None else f"Cache{checks.listed(self.key.shape)}"
