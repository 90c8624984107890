"""The Transformer of "Attention Is All You Need": an encoder, and a decoder that attends to what it made."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

import regard
from regard.masks import Mask, causal
from regard.nn.block import parted
from regard.nn.decoder import Decoder, LayerAttention
from regard.nn.encoder import Encoder

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from regard.nn.block import Options
    from regard.nn.positions import Position


class TransformerAttention(NamedTuple):
    """The matrices of an encoder and a decoder, layer by layer.

    >>> model = Transformer(16, heads=4, layers=2)
    >>> y, attentions = model(torch.randn(2, 7, 16), torch.randn(2, 5, 16), return_attention=True)
    >>> len(attentions.encoder), attentions.decoder[1].memory.shape
    (2, torch.Size([2, 4, 5, 7]))
    """

    encoder: tuple[regard.Attention, ...]
    decoder: tuple[LayerAttention, ...]


class Transformer(nn.Module):
    """An encoder and a decoder, from embeddings to embeddings; for words on both sides see `SequenceToSequence`.

    Its parameters are named as those of torch.nn.Transformer, whose state dict fits.

    Args:
        dim, heads: of every layer. layers: of the encoder; decoder_layers: of the decoder, None = as many.
        position: where tokens stand, for the encoder, and a copy of it for the decoder; None = nowhere.
        options: those of `EncoderLayer`.

    Source: Vaswani et al. 2017, "Attention Is All You Need".

    >>> model = Transformer(16, heads=4, layers=2, position=regard.nn.sinusoidal())
    >>> source, target = torch.randn(2, 7, 16), torch.randn(2, 5, 16)
    >>> y, attentions = model(source, target, source_mask=regard.masks.padding([7, 4]), return_attention=True)
    >>> y.shape, attentions.encoder[0].shape, attentions.decoder[0].memory.shape
    (torch.Size([2, 5, 16]), torch.Size([2, 4, 7, 7]), torch.Size([2, 4, 5, 7]))
    """

    def __init__(
        self,
        dim: int = 512,
        heads: int = 8,
        layers: int = 6,
        *,
        decoder_layers: int | None = None,
        position: Position | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__()
        depth = layers if decoder_layers is None else decoder_layers
        self.encoder = Encoder(dim, heads, layers, position=position, final_norm=True, **options)
        self.decoder = Decoder(dim, heads, depth, position=deepcopy(position), final_norm=True, **options)

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        *,
        source_mask: Mask | None = None,
        mask: Mask | None = causal,
        return_attention: bool = False,
    ) -> Any:
        """The target's new embeddings, (batch, targets, dim); with return_attention also a `TransformerAttention`.

        Args:
            source: (batch, sources, dim). target: (batch, targets, dim).
            source_mask: which tokens of the source may be met, by the source and by the target, such as padding(lengths).
            mask: who may meet among the target's tokens.
        """
        memory, encoder = parted(self.encoder(source, mask=source_mask, return_attention=return_attention))
        y, decoder = parted(self.decoder(target, memory, mask=mask, memory_mask=source_mask, return_attention=return_attention))
        return (y, TransformerAttention(encoder, decoder)) if return_attention else y
