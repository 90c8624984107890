"""The Transformer's decoder: layers of self-attention, cross-attention to a memory, and feed-forward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

import regard
from regard.masks import Mask, causal
from regard.nn import checks
from regard.nn.attention import CrossAttention, Norm, SelfAttention
from regard.nn.block import Activation, Block, parted
from regard.nn.cache import Cache
from regard.nn.encoder import last_norm

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from regard.nn.block import Options
    from regard.nn.positions import Position


class LayerCache(NamedTuple):
    """What a decoder's layer keeps: its own keys and values, and those of the memory.

    >>> regard.nn.Decoder(16, heads=4, layers=2).caches()[0]
    LayerCache(own=Cache(empty), memory=Cache(empty))
    """

    own: Cache
    memory: Cache

    def select(self, rows: Tensor) -> None:
        """Keeps these rows of the batch, in this order."""
        self.own.select(rows)
        self.memory.select(rows)


class LayerAttention(NamedTuple):
    """The matrices of a decoder's layer: to its own tokens, and to the memory.

    >>> y, both = DecoderLayer(16, 4)(torch.randn(2, 5, 16), torch.randn(2, 7, 16), return_attention=True)
    >>> both.own.shape, both.memory.shape
    (torch.Size([2, 4, 5, 5]), torch.Size([2, 4, 5, 7]))
    """

    own: regard.Attention
    memory: regard.Attention


class DecoderLayer(Block):
    """Self-attention, then cross-attention to a memory, then a feed-forward network, each with a way around it.

        post:  x ← norm(x + own(x)),    x ← norm(x + cross(x, memory)),    x ← norm(x + feedforward(x))
        pre:   x ← x + own(norm(x)),    x ← x + cross(norm(x), memory),    x ← x + feedforward(norm(x))

    Its parameters are named as those of torch.nn.TransformerDecoderLayer, whose state dict fits. Arguments are those of
    `EncoderLayer`, and memory_dim, the size of the memory's embeddings (None = dim).

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.1.

    >>> layer = DecoderLayer(16, heads=4)
    >>> y, (own, cross) = layer(torch.randn(2, 5, 16), torch.randn(2, 7, 16), return_attention=True)
    >>> own.shape, cross.shape
    (torch.Size([2, 4, 5, 5]), torch.Size([2, 4, 5, 7]))
    """

    self_attn: SelfAttention
    multihead_attn: CrossAttention
    norm1: nn.Module
    norm2: nn.Module
    norm3: nn.Module

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        memory_dim: int | None = None,
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
        across = CrossAttention(
            dim, heads, memory_dim=memory_dim, kv_heads=kv_heads, bias=bias, norm=query_norm, dropout=dropout,
            device=device, dtype=dtype,
        )  # fmt: skip
        super().__init__(
            dim, {"self_attn": own, "multihead_attn": across}, hidden=hidden, activation=activation, norm=norm,
            norm_first=norm_first, dropout=dropout, bias=bias, eps=eps, device=device, dtype=dtype,
        )  # fmt: skip

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        *,
        mask: Mask | None = causal,
        memory_mask: Mask | None = None,
        position: Position | None = None,
        cache: LayerCache | None = None,
        return_attention: bool = False,
    ) -> Any:
        """The new embeddings, (batch, n, dim); with return_attention also a `LayerAttention` of two matrices.

        Args:
            x: (batch, n, dim). memory: (batch, keys, memory_dim).
            mask: who may meet among the own tokens; None = everyone. memory_mask: who may meet what in the memory.
            position: that of the decoder. cache: what the layer saw before.
        """
        own, known = (None, None) if cache is None else cache
        given = self._into(self.norm1, x)
        found, A = parted(self.self_attn(given, mask=mask, position=position, cache=own, return_attention=return_attention))
        x = self._out_of(self.norm1, x, found)
        given = self._into(self.norm2, x)
        found, B = parted(self.multihead_attn(given, memory, mask=memory_mask, cache=known, return_attention=return_attention))
        x = self._out_of(self.norm2, x, found)
        y = self._feedforward(self.norm3, x)
        return (y, LayerAttention(A, B)) if return_attention else y


class Decoder(nn.Module):
    """Decoder layers one after the other, causal unless told otherwise.

    Its parameters are named as those of torch.nn.TransformerDecoder, whose state dict fits.

    Args:
        dim, heads: of every layer. layers: how many. memory_dim: the size of the memory's embeddings; None = dim.
        position: where tokens stand: added to x at the entry, or told to every layer; None = nowhere.
        final_norm: whether the last layer's output is normalised; None = where layers normalise first.
        options: those of `EncoderLayer`.

    >>> decoder = Decoder(16, heads=4, layers=2)
    >>> y, attentions = decoder(torch.randn(2, 5, 16), torch.randn(2, 7, 16), return_attention=True)
    >>> attentions[1].memory.shape
    torch.Size([2, 4, 5, 7])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        layers: int,
        *,
        memory_dim: int | None = None,
        position: Position | None = None,
        final_norm: bool | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__()
        checks.whole_number(type(self).__name__, "layers", layers, least=1)
        checks.position(type(self).__name__, position)
        self.layers = nn.ModuleList([DecoderLayer(dim, heads, memory_dim=memory_dim, **options) for _ in range(layers)])
        self.position = position
        self.norm = last_norm(dim, final_norm, options)

    def caches(self) -> list[LayerCache]:
        """An empty cache for each layer."""
        return [LayerCache(Cache(), Cache()) for _ in self.layers]

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        *,
        mask: Mask | None = causal,
        memory_mask: Mask | None = None,
        caches: list[LayerCache] | None = None,
        return_attention: bool = False,
    ) -> Any:
        """The new embeddings, (batch, n, dim); with return_attention also a tuple of `LayerAttention`, one for each layer."""
        if caches is not None:
            checks.caches(type(self).__name__, caches, len(self.layers))
        if self.position is not None:
            x = self.position(x, 0 if caches is None else caches[0].own.length)
        attentions = []
        for n, layer in enumerate(self.layers):
            found = layer(
                x, memory, mask=mask, memory_mask=memory_mask, position=self.position,
                cache=None if caches is None else caches[n], return_attention=return_attention,
            )  # fmt: skip
            x, both = parted(found)
            attentions.append(both)
        y = x if self.norm is None else self.norm(x)
        return (y, tuple(attentions)) if return_attention else y
