"""From tokens to embeddings, and from embeddings to the next token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regard.masks import Mask, causal, padding
from regard.nn import checks
from regard.nn.block import looked_up, parted
from regard.nn.cache import Cache
from regard.nn.encoder import Encoder
from regard.nn.pooling import there
from regard.nn.positions.base import adds

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from regard.nn.block import Options
    from regard.nn.positions import Position


class TokenEmbedding(nn.Module):
    """A learned vector for each token of a vocabulary: x_i = √dim · E[token_i], E (vocabulary, dim).

    E begins with normal numbers of deviation 1/√dim, so that embeddings begin with variance 1, as large as the waves of
    `sinusoidal`, and so do the logits y Eᵀ of normalised y, where E is also what a model writes with.

    Args:
        vocabulary: how many tokens there are. dim: the size of an embedding.
        dropout: the probability with which numbers are dropped in training.

    Raises:
        TypeError: tokens that are no int64 or int32. ShapeError: tokens that are not (batch, n). IndexError: tokens beyond the
            vocabulary. ValueError: sizes below 1, dropout outside [0, 1).

    Sources: Vaswani et al. 2017, "Attention Is All You Need", section 3.4; Press and Wolf 2017, "Using the Output Embedding to
    Improve Language Models".

    >>> words = TokenEmbedding(100, 16)
    >>> x = words(torch.randint(100, (2, 5)))
    >>> x.shape, words.logits(x).shape
    (torch.Size([2, 5, 16]), torch.Size([2, 5, 100]))
    """

    def __init__(
        self,
        vocabulary: int,
        dim: int,
        *,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.sizes("TokenEmbedding", vocabulary=vocabulary, dim=dim)
        self.vocabulary, self.dim = vocabulary, dim
        self.weight = nn.Parameter(torch.empty(vocabulary, dim, device=device, dtype=dtype))
        self.dropout = nn.Dropout(checks.dropout("TokenEmbedding", dropout))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal numbers of deviation 1/√dim."""
        nn.init.normal_(self.weight, std=self.dim**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, n) → (batch, n, dim)."""
        checks.tokens("TokenEmbedding", "tokens", tokens)
        x = looked_up("TokenEmbedding", "tokens", self.weight, tokens)
        return self.dropout(x * math.sqrt(self.dim))

    def logits(self, y: Tensor) -> Tensor:
        """y Eᵀ: how well each token fits an embedding, (…, dim) → (…, vocabulary)."""
        return F.linear(y, self.weight)

    def extra_repr(self) -> str:
        return f"vocabulary={self.vocabulary}, dim={self.dim}"


class TextEncoder(nn.Module):
    """Tokens to contextualised embeddings: an embedding for each, then an `Encoder`: y = encoder(√dim · E[token_i]).

    Args:
        vocabulary: how many tokens there are. dim, heads, layers: of the encoder.
        position: where tokens stand, such as `sinusoidal()`; None = nowhere: a text is a bag of words.
        dropout: of embeddings, before positions are added to them, and of the encoder's layers.
        final_norm, options: those of `Encoder`.

    Raises:
        ValueError: sizes below 1; also whatever `TokenEmbedding` and `Encoder` raise.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.

    >>> model = TextEncoder(100, 16, heads=4, layers=2, position=regard.nn.sinusoidal())
    >>> tokens, mask = torch.randint(100, (2, 7)), regard.masks.padding([7, 4])
    >>> y, attentions = model(tokens, mask=mask, return_attention=True)
    >>> y.shape, attentions[0].shape
    (torch.Size([2, 7, 16]), torch.Size([2, 4, 7, 7]))
    """

    def __init__(
        self,
        vocabulary: int,
        dim: int,
        heads: int,
        layers: int,
        *,
        position: Position | None = None,
        final_norm: bool | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__()
        self.embedding = embedding(vocabulary, dim, options)
        self.encoder = Encoder(dim, heads, layers, position=position, final_norm=final_norm, **options)

    def forward(
        self,
        tokens: Tensor,
        *,
        mask: Mask | None = None,
        caches: list[Cache] | None = None,
        return_attention: bool = False,
    ) -> Any:
        """(batch, n) → (batch, n, dim), and with return_attention a tuple of matrices, one for each layer.

        Args:
            tokens: whole numbers below vocabulary. mask: who may meet, such as padding(lengths); None = everyone.
            caches: what the layers saw before, from `encoder.caches()`; the tokens go on from there.
        """
        return self.encoder(self.embedding(tokens), mask=mask, caches=caches, return_attention=return_attention)


@dataclass
class Writing:
    """Where a language model stands: what its layers saw, and which of those tokens there are, (rows, seen), None = all."""

    caches: list[Cache]
    keep: Tensor | None = None

    def select(self, rows: Tensor) -> None:
        """Keeps these rows, in this order; a row may come more than once."""
        for cache in self.caches:
            cache.select(rows)
        self.keep = None if self.keep is None else self.keep.index_select(0, rows)


class LanguageModel(nn.Module):
    """How likely each token of a vocabulary is at each place: a `TextEncoder`, and logits y Eᵀ.

        mask=causal    token i tells token i + 1, as in GPT: the model can write
        mask=None      every token sees every other, as in BERT: the model fills in what was masked

    Args:
        vocabulary: how many tokens there are. dim, heads, layers: of the encoder.
        mask: who may meet, always; such as causal, or causal & window(w - 1, 0).
        position: where tokens stand, such as `rotary()`; None = nowhere.
        tied: whether the logits are made with the embeddings' own E; otherwise with a matrix of their own.
        dropout: of embeddings, before positions are added to them, and of the encoder's layers.
        final_norm, options: those of `Encoder`.

    Raises:
        TypeError: a mask that is none of `regard.masks`. Unsupported: to write with a model that sees what comes.
            Also whatever `TokenEmbedding` and `Encoder` raise.

    Sources: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training"; Devlin et al. 2019, "BERT".

    >>> model = LanguageModel(100, 16, heads=4, layers=2, position=regard.nn.rotary(), norm_first=True).eval()
    >>> tokens = torch.randint(100, (2, 7))
    >>> logits = model(tokens)  # (2, 7, 100): after every token
    >>> state = model.start(tokens[:, :6])
    >>> torch.testing.assert_close(model.step(tokens[:, 6:], state), logits[:, 6:])
    """

    def __init__(
        self,
        vocabulary: int,
        dim: int,
        heads: int,
        layers: int,
        *,
        mask: Mask | None = causal,
        position: Position | None = None,
        tied: bool = True,
        final_norm: bool | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__()
        checks.mask("LanguageModel", "mask", mask)
        self.mask = mask
        self.body = TextEncoder(vocabulary, dim, heads, layers, position=position, final_norm=final_norm, **options)
        self.output = None if tied else unembedding(vocabulary, dim, options)

    def forward(self, tokens: Tensor, *, mask: Mask | None = None, return_attention: bool = False) -> Any:
        """Logits, (batch, n, vocabulary); with return_attention also a tuple of matrices, one for each layer.

        mask: which pairs of those that the model's own mask leaves, such as padding(lengths); None = all.
        """
        checks.mask("LanguageModel", "mask", mask)
        y, attentions = parted(self.body(tokens, mask=both(self.mask, mask), return_attention=return_attention))
        logits = self._logits(y)
        return (logits, attentions) if return_attention else logits

    def start(self, source: Tensor, mask: Mask | None = None) -> Writing:
        """Reads a beginning, (batch, n), which may be empty: what comes next is asked of `step`.

        mask: which of its tokens there are, padding(keep=…). Beginnings of unlike length are padded on the left; rotary, alibi
        and relative positions do not notice. Unsupported for positions that would count the padding, and for models that see
        what comes.
        """
        checks.writes("LanguageModel", self.mask)
        checks.beginning("LanguageModel", source)
        state = Writing(self.body.encoder.caches(), there("LanguageModel", mask, source))
        position = self.body.encoder.position
        if state.keep is not None and adds(position) and not bool(state.keep.all()):
            checks.counts_padding("LanguageModel", position)
        if source.shape[-1]:
            self.body(source, mask=self._mask(state.keep), caches=state.caches)
        return state

    def step(self, tokens: Tensor, state: Writing) -> Tensor:
        """Logits for what comes next, (rows, new, vocabulary), after tokens (rows, new); advances the state."""
        keep = None if state.keep is None else F.pad(state.keep, (0, tokens.shape[-1]), value=True)
        logits = self._logits(self.body(tokens, mask=self._mask(keep), caches=state.caches))
        state.keep = keep
        return logits

    def _mask(self, keep: Tensor | None) -> Mask | None:
        return both(self.mask, None if keep is None else padding(keep=keep))

    def _logits(self, y: Tensor) -> Tensor:
        logits: Tensor = (self.body.embedding.logits if self.output is None else self.output)(y)
        return logits

    def extra_repr(self) -> str:
        return f"mask={self.mask}, tied={self.output is None}"


def both(a: Mask | None, b: Mask | None) -> Mask | None:
    """Pairs that both masks leave; None = all."""
    return b if a is None else a if b is None else a & b


def embedding(vocabulary: int, dim: int, options: Options) -> TokenEmbedding:
    """Embeddings with the dropout, the device and the dtype of the layers behind them."""
    drop, device, dtype = options.get("dropout", 0.0), options.get("device"), options.get("dtype")
    return TokenEmbedding(vocabulary, dim, dropout=drop, device=device, dtype=dtype)


def unembedding(vocabulary: int, dim: int, options: Options) -> nn.Linear:
    """From embeddings to logits, by a matrix of its own that begins as that of `TokenEmbedding` does."""
    output = nn.Linear(dim, vocabulary, bias=False, device=options.get("device"), dtype=options.get("dtype"))
    nn.init.normal_(output.weight, std=dim**-0.5)
    return output
