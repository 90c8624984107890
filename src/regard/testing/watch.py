"""Watches how large the tensors are that operators return: how one knows that no n² was built."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Largest(TorchDispatchMode):
    """Inside the context, remembers the largest tensor that any operator returned: `elements`, and `by` whom.

    Views count with what they show, and an expanded view with what it would be if it were stored.

    >>> x = torch.zeros(4096, 16)
    >>> with Largest() as watch:
    ...     _ = regard.attention(x, x).entropy()
    >>> watch.elements < 4096 * 4096 / 4
    True
    """

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0
        self.by = "nobody"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.numel() > self.elements:
                self.elements, self.by = leaf.numel(), f"{func} → {tuple(leaf.shape)}"
        return result
