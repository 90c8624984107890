"""What a position is: numbers added at the entry, a turn of queries and keys, or a bias on the scores."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from regard.biases import Bias


class Position(nn.Module):
    """Where tokens stand. A position of one's own overrides one of three methods; each does nothing by itself.

    >>> class FromTheEnd(Position):
    ...     def forward(self, x, offset=0):
    ...         return x + torch.arange(x.shape[-2]).flip(0)[:, None]
    >>> FromTheEnd()(torch.zeros(1, 3, 1)).flatten().tolist()
    [2.0, 1.0, 0.0]
    """

    together: ClassVar[bool] = False  #: whether it turns all heads alike, so that queries and keys may come as one tensor

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        """Embeddings (batch, n, dim) at the entry, of tokens that stand at offset, offset + 1, …"""
        return x

    def turn(self, x: Tensor, offset: int = 0) -> Tensor:
        """Queries or keys, (batch, heads, n, dim), of tokens that stand at offset, offset + 1, …"""
        return x

    def bias(self) -> Bias | None:
        """What is added to the scores."""
        return None


def adds(position: Position | None) -> bool:
    """Whether it adds to the embeddings at the entry, where it counts from the first column."""
    return position is not None and type(position).forward is not Position.forward
