"""The Transformer's encoder: layers of self-attention and feed-forward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from regard.masks import Mask
from regard.nn import checks
from regard.nn.attention import NORMS, Norm, SelfAttention
from regard.nn.block import Activation, Block, parted
from regard.nn.cache import Cache

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from regard.nn.block import Options
    from regard.nn.positions import Position


class EncoderLayer(Block):
    """Self-attention, then a feed-forward network, each with a way around it.

        post:  x ← norm(x + attention(x)),    x ← norm(x + feedforward(x))
        pre:   x ← x + attention(norm(x)),    x ← x + feedforward(norm(x))

    Its parameters are named as those of torch.nn.TransformerEncoderLayer, whose state dict fits.

    Args:
        dim: the size of an embedding; heads divides it. heads: how many.
        kv_heads: how many heads keys and values have; None = as many.
        hidden: the feed-forward network's inner size; None = 4 · dim.
        activation: "relu", "gelu", "gelu_tanh", "silu", or `gated(…)` of one of them.
        norm: "layer" or "rms". norm_first: pre instead of post. eps: what the norms add to variances.
        query_norm: "layer" or "rms" normalises queries and keys.
        dropout: the probability with which weights, hidden numbers and what is added are dropped in training.
        bias: whether linear maps and layer norms add a bias.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.1.

    >>> layer = EncoderLayer(16, heads=4, norm_first=True)
    >>> y, A = layer(torch.randn(2, 5, 16), mask=regard.masks.padding([5, 3]), return_attention=True)
    >>> y.shape, A.shape
    (torch.Size([2, 5, 16]), torch.Size([2, 4, 5, 5]))
    """

    self_attn: SelfAttention
    norm1: nn.Module
    norm2: nn.Module

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        hidden: int | None = None,
        activation: Activation = "relu",
        norm: Norm = "layer",
        norm_first: bool = False,
        query_norm: Norm | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        checks.heads_fit(type(self).__name__, dim, heads, kv_heads)
        dropout = checks.dropout(type(self).__name__, dropout)
        own = SelfAttention(
            dim, heads, kv_heads=kv_heads, bias=bias, norm=query_norm, dropout=dropout, device=device, dtype=dtype
        )
        super().__init__(
            dim, {"self_attn": own}, hidden=hidden, activation=activation, norm=norm, norm_first=norm_first, dropout=dropout,
            bias=bias, eps=eps, device=device, dtype=dtype,
        )  # fmt: skip

    def forward(
        self,
        x: Tensor,
        *,
        mask: Mask | None = None,
        position: Position | None = None,
        cache: Cache | None = None,
        return_attention: bool = False,
    ) -> Any:
        """The new embeddings, (batch, n, dim), and with return_attention A; arguments as in `SelfAttention`."""
        given = self._into(self.norm1, x)
        found, A = parted(self.self_attn(given, mask=mask, position=position, cache=cache, return_attention=return_attention))
        x = self._out_of(self.norm1, x, found)
        y = self._feedforward(self.norm2, x)
        return (y, A) if return_attention else y


class Encoder(nn.Module):
    """Layers one after the other; with mask=causal they are a decoder without memory, as in GPT.

    Its parameters are named as those of torch.nn.TransformerEncoder, whose state dict fits.

    Args:
        dim, heads: of every layer. layers: how many.
        position: where tokens stand: added to x at the entry, or told to every layer; None = nowhere.
        final_norm: whether the last layer's output is normalised; None = where layers normalise first.
        options: those of `EncoderLayer`.

    >>> encoder = Encoder(16, heads=4, layers=2, position=regard.nn.sinusoidal())
    >>> y, attentions = encoder(torch.randn(2, 5, 16), return_attention=True)
    >>> y.shape, [tuple(A.shape) for A in attentions]
    (torch.Size([2, 5, 16]), [(2, 4, 5, 5), (2, 4, 5, 5)])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        layers: int,
        *,
        position: Position | None = None,
        final_norm: bool | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__()
        checks.whole_number(type(self).__name__, "layers", layers, least=1)
        checks.position(type(self).__name__, position)
        self.layers = nn.ModuleList([EncoderLayer(dim, heads, **options) for _ in range(layers)])
        self.position = position
        self.norm = last_norm(dim, final_norm, options)

    def caches(self) -> list[Cache]:
        """An empty cache for each layer."""
        return [Cache() for _ in self.layers]

    def forward(
        self,
        x: Tensor,
        *,
        mask: Mask | None = None,
        caches: list[Cache] | None = None,
        return_attention: bool = False,
    ) -> Any:
        """The new embeddings, (batch, n, dim), and with return_attention a tuple of matrices, one for each layer.

        Args:
            x: (batch, n, dim). mask: one of `regard.masks`; None = everyone may meet.
            caches: what the layers saw before, from `caches()`; x goes on from there.
        """
        if caches is not None:
            checks.caches(type(self).__name__, caches, len(self.layers))
        if self.position is not None:
            x = self.position(x, 0 if caches is None else caches[0].length)
        attentions = []
        for n, layer in enumerate(self.layers):
            cache = None if caches is None else caches[n]
            x, A = parted(layer(x, mask=mask, position=self.position, cache=cache, return_attention=return_attention))
            attentions.append(A)
        y = x if self.norm is None else self.norm(x)
        return (y, tuple(attentions)) if return_attention else y


def last_norm(dim: int, wanted: bool | None, options: Options) -> nn.Module | None:
    """The norm after the last layer; None = where the layers normalise first."""
    if not (options.get("norm_first", False) if wanted is None else wanted):
        return None
    kind = options.get("norm", "layer")
    plain = {} if options.get("bias", True) or kind == "rms" else {"bias": False}
    given = {name: options.get(name) for name in ("device", "dtype")}
    return NORMS[kind](dim, eps=options.get("eps", 1e-5), **plain, **given)
