"""Learned ways to compare a query and a key, as modules: forward makes a value of `regard.scores` of their parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from regard import scores
from regard.nn import checks
from regard.scores import Score


class Bilinear(nn.Module):
    """qᵀ W k, Luong's "general" score; W (dim, key_dim), or one for each head.

    Args:
        dim: the size of a query, of one head. key_dim: the size of a key; None = dim.
        heads: 1 shares W among all heads; more = one W for each.

    Source: Luong, Pham and Manning 2015, "Effective Approaches to Attention-based Neural Machine Translation".

    >>> score = Bilinear(8, 6)
    >>> regard.attention(torch.randn(2, 1, 4, 8), torch.randn(2, 1, 5, 6), score=score()).shape
    torch.Size([2, 1, 4, 5])
    """

    def __init__(
        self,
        dim: int,
        key_dim: int | None = None,
        heads: int = 1,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.key_dim, self.heads = dim, dim if key_dim is None else key_dim, heads
        checks.sizes("Bilinear", dim=self.dim, key_dim=self.key_dim, heads=heads)
        self.weight = nn.Parameter(torch.empty(heads, self.dim, self.key_dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Scores of independent queries and keys whose numbers have variance 1 begin with variance 1."""
        nn.init.normal_(self.weight, std=1 / math.sqrt(self.dim * self.key_dim))

    def forward(self) -> Score:
        """The score, `regard.scores.bilinear`."""
        return scores.bilinear(self.weight if self.heads > 1 else self.weight[0])

    def extra_repr(self) -> str:
        return f"dim={self.dim}, key_dim={self.key_dim}, heads={self.heads}"


class Additive(nn.Module):
    """v · tanh(W_q q + W_k k), Bahdanau's score, Luong's "concat": a network with one hidden layer and no biases.

    Keys that meet many queries, one after the other, are projected once: `score(projected=True)` compares queries with
    `score.project(key)`.

    Args:
        dim: the size of a query, of one head. key_dim: the size of a key; None = dim.
        hidden: how many hidden units there are; None = dim.
        heads: 1 shares the weights among all heads; more = own ones for each.

    Source: Bahdanau, Cho and Bengio 2015, "Neural Machine Translation by Jointly Learning to Align and Translate".

    >>> score = Additive(8, 6, hidden=16)
    >>> query, key = torch.randn(2, 1, 4, 8), torch.randn(2, 1, 5, 6)
    >>> A = regard.attention(query, key, score=score())
    >>> B = regard.attention(query, score.project(key), score=score(projected=True))
    >>> torch.testing.assert_close(A.to_dense(), B.to_dense())
    """

    def __init__(
        self,
        dim: int,
        key_dim: int | None = None,
        hidden: int | None = None,
        heads: int = 1,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.key_dim, self.heads = dim, dim if key_dim is None else key_dim, heads
        self.hidden = dim if hidden is None else hidden
        checks.sizes("Additive", dim=self.dim, key_dim=self.key_dim, hidden=self.hidden, heads=heads)
        self.w_query = nn.Parameter(torch.empty(heads, self.dim, self.hidden, device=device, dtype=dtype))
        self.w_key = nn.Parameter(torch.empty(heads, self.key_dim, self.hidden, device=device, dtype=dtype))
        self.v = nn.Parameter(torch.empty(heads, self.hidden, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """What a hidden unit takes in begins with variance 1 for queries and keys of variance 1, and so does a score."""
        for weight in (self.w_query, self.w_key):
            nn.init.normal_(weight, std=1 / math.sqrt(2 * weight.shape[1]))
        nn.init.normal_(self.v, std=1 / math.sqrt(self.hidden))

    def forward(self, projected: bool = False) -> Score:
        """The score, `regard.scores.additive`; with projected, that of queries and keys from `project`."""
        w_query, w_key, v = (t if self.heads > 1 else t[0] for t in (self.w_query, self.w_key, self.v))
        return scores.additive(w_query, None if projected else w_key, v)

    def project(self, key: Tensor) -> Tensor:
        """W_k k, (batch, heads, keys, hidden), of keys (batch, heads or 1, keys, key_dim)."""
        return key @ (self.w_key if self.heads > 1 else self.w_key[0])

    def extra_repr(self) -> str:
        return f"dim={self.dim}, key_dim={self.key_dim}, hidden={self.hidden}, heads={self.heads}"


def once(score: Score | nn.Module | None, key: Tensor) -> tuple[Score | None, Tensor]:
    """A score and keys that are asked again and again: what can be done with the keys beforehand is done."""
    if isinstance(score, Additive):
        return score(projected=True), score.project(key)
    return (score() if isinstance(score, nn.Module) else score), key
