"""The Transformer with words on both sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from regard.masks import Mask, padding
from regard.nn import checks
from regard.nn.block import parted
from regard.nn.decoder import LayerCache
from regard.nn.pooling import counted
from regard.nn.text import embedding, unembedding
from regard.nn.transformer import Transformer, TransformerAttention

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from regard.nn.block import Options
    from regard.nn.positions import Position


@dataclass
class Translating:
    """Where a translation stands: what was read, (rows, sources, dim), which tokens there are, and what the layers saw."""

    memory: Tensor
    keep: Tensor | None
    caches: list[LayerCache]

    def select(self, rows: Tensor) -> None:
        """Keeps these rows, in this order; a row may come more than once."""
        self.memory = self.memory.index_select(0, rows)
        self.keep = None if self.keep is None else self.keep.index_select(0, rows)
        for cache in self.caches:
            cache.select(rows)


class SequenceToSequence(nn.Module):
    """Reads one sequence of tokens and writes another, as in translation: embeddings, a `Transformer`, and logits y Eᵀ.

    `greedy` and `beam_search` write with it.

    Args:
        source_vocabulary: how many tokens there are to read.
        target_vocabulary: how many there are to write; None = one vocabulary, and one embedding, for both sides.
        dim, heads: of every layer. layers: of the encoder; decoder_layers: of the decoder, None = as many.
        position: where tokens stand on either side, such as `sinusoidal()`; None = nowhere.
        tied: whether the logits are made with the target's embeddings; otherwise with a matrix of their own.
        dropout: of embeddings, before positions are added to them, and of all layers.
        options: those of `EncoderLayer`.

    Raises:
        ShapeError: a target with another number of rows than the source. What `TokenEmbedding` and `Transformer` do.

    Source: Vaswani et al. 2017, "Attention Is All You Need".

    >>> model = SequenceToSequence(100, 90, 16, heads=4, layers=2, position=regard.nn.sinusoidal())
    >>> source, target = torch.randint(100, (2, 7)), torch.randint(90, (2, 5))
    >>> mask = regard.masks.padding([7, 4])
    >>> logits, attentions = model(source, target, mask=mask, return_attention=True)
    >>> logits.shape, attentions.decoder[-1].memory.shape
    (torch.Size([2, 5, 90]), torch.Size([2, 4, 5, 7]))
    """

    def __init__(
        self,
        source_vocabulary: int,
        target_vocabulary: int | None,
        dim: int = 512,
        heads: int = 8,
        layers: int = 6,
        *,
        decoder_layers: int | None = None,
        position: Position | None = None,
        tied: bool = True,
        **options: Unpack[Options],
    ) -> None:
        super().__init__()
        self.target = embedding(source_vocabulary if target_vocabulary is None else target_vocabulary, dim, options)
        self.source = None if target_vocabulary is None else embedding(source_vocabulary, dim, options)
        self.transformer = Transformer(dim, heads, layers, decoder_layers=decoder_layers, position=position, **options)
        self.output = None if tied else unembedding(self.target.vocabulary, dim, options)

    def forward(self, source: Tensor, target: Tensor, mask: Mask | None = None, return_attention: bool = False) -> Any:
        """Teacher forcing: logits for what follows each target token, (batch, targets, vocabulary).

        Args:
            source: (batch, sources). target: (batch, targets), the begin-of-sequence token first.
            mask: who may meet among the source's tokens, such as padding(lengths); None = everyone. The target sees those
                that may attend to themselves.
            return_attention: also gives a `TransformerAttention`; its decoder[-1].memory is how the last layer's targets
                attend to the source, (batch, heads, targets, sources).
        """
        state, encoder = self._read(source, mask, return_attention)
        logits, decoder = self._write("target", target, state, return_attention)
        return (logits, TransformerAttention(encoder, decoder)) if return_attention else logits

    def start(self, source: Tensor, mask: Mask | None = None) -> Translating:
        """Reads the source, (batch, sources), once; mask: as in `forward`."""
        state, _ = self._read(source, mask)
        state.caches = self.transformer.decoder.caches()
        return state

    def step(self, tokens: Tensor, state: Translating) -> Tensor:
        """Logits for what comes next, (rows, new, vocabulary), after tokens (rows, new); advances the state."""
        return self._write("tokens", tokens, state)[0]

    def _read(self, source: Tensor, mask: Mask | None, return_attention: bool = False) -> tuple[Translating, Any]:
        """A state without caches, and how the encoder attended if that was asked."""
        checks.tokens("SequenceToSequence", "source", source)
        x = (self.target if self.source is None else self.source)(source)
        memory, attentions = parted(self.transformer.encoder(x, mask=mask, return_attention=return_attention))
        return Translating(memory, counted("SequenceToSequence", mask, source), []), attentions

    def _write(self, name: str, tokens: Tensor, state: Translating, return_attention: bool = False) -> tuple[Tensor, Any]:
        """Logits, and how the decoder attended if that was asked."""
        checks.tokens("SequenceToSequence", name, tokens)
        checks.same_batch("SequenceToSequence", name, tokens, len(state.memory))
        x = self.target(tokens)
        seen = None if state.keep is None else padding(keep=state.keep)
        written = self.transformer.decoder(
            x, state.memory, memory_mask=seen, caches=state.caches or None, return_attention=return_attention
        )
        y, attentions = parted(written)
        return (self.target.logits if self.output is None else self.output)(y), attentions

    def extra_repr(self) -> str:
        return f"shared={self.source is None}, tied={self.output is None}"
