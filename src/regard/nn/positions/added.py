"""Positions that add to the scores."""

from __future__ import annotations

import torch
from torch import nn

from regard import biases
from regard.biases import Bias
from regard.nn import checks
from regard.nn.positions.base import Position


class Alibi(Position):
    """Made by `alibi`."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = checks.whole_number("alibi", "heads", heads, least=1)

    def bias(self) -> Bias:
        return biases.alibi(self.heads)

    def extra_repr(self) -> str:
        return f"heads={self.heads}"


class Relative(Position):
    """Made by `relative`."""

    def __init__(
        self,
        heads: int,
        buckets: int,
        distance: int,
        bidirectional: bool,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        heads = checks.whole_number("relative", "heads", heads, least=1)
        buckets = checks.whole_number("relative", "buckets", buckets, least=2)
        self.by = biases.t5(distance, bidirectional)
        self.weight = nn.Parameter(torch.empty(buckets, heads, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gaussian numbers of deviation 0.02."""
        nn.init.normal_(self.weight, std=0.02)

    def bias(self) -> Bias:
        return biases.relative(self.weight.T, self.by)

    def extra_repr(self) -> str:
        return f"heads={self.weight.shape[1]}, buckets={self.weight.shape[0]}, by={self.by}"


def alibi(heads: int) -> Alibi:
    """Nearer keys score more: -slope_h |p_i - j| is added to the scores, slopes 2^(-8/heads), 2^(-16/heads), …, 2^-8.

    Source: Press, Smith and Lewis 2022, "Train Short, Test Long: Attention with Linear Biases Enables Input Length
    Extrapolation".

    >>> regard.nn.SelfAttention(16, 4, position=alibi(4))(torch.randn(1, 5, 16)).shape
    torch.Size([1, 5, 16])
    """
    return Alibi(heads)


def relative(
    heads: int,
    *,
    buckets: int = 32,
    distance: int = 128,
    bidirectional: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Relative:
    """A learned number for each head and bucket of distances j - p_i, added to the scores: T5's.

    Small distances have a bucket each, greater ones share buckets that grow up to `distance`; bidirectional = keys before and
    after a query have buckets of their own. The parameter `weight` is (buckets, heads), as in T5's checkpoints. T5 itself
    does not divide the scores by √dim.

    Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer".

    >>> regard.attention(torch.randn(1, 8, 5, 4), torch.randn(1, 8, 5, 4), bias=relative(8).bias()).shape
    torch.Size([1, 8, 5, 5])
    """
    return Relative(heads, buckets, distance, bidirectional, device, dtype)
