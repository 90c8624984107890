"""Recurrent networks, before attention: one that answers word by word, and one that encodes all, then decodes.

h_t = cell(x_t, h_{t-1}),    y_t = W h_t + b
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regard.masks import Mask
from regard.nn import checks
from regard.nn.block import looked_up
from regard.nn.steps import Cell, Hidden, Reader, RecurrentDecoding, State, network


class WordByWord(nn.Module):
    """A network that answers at every step, knowing what it has read so far: y_t = W h_t + b, h_t = cell(x_t, h_{t-1}).

    It suits series in which each answer follows from the past, such as a price day by day. A sentence that is translated like
    this keeps the order of its words. What comes later changes nothing, so padding on the right needs no mask.

    Args:
        dim: the size of what it reads at each step. outputs: the size of an answer.
        vocabulary: how many tokens there are, whose embeddings of size dim are learned; None = it reads numbers.
        hidden: the size of its hidden state; None = dim. layers: how many networks stand on one another.
        cell: "gru" (Cho et al. 2014) or "lstm" (Hochreiter and Schmidhuber 1997).
        dropout: the probability with which numbers of inputs, of outputs and between layers are dropped in training.

    >>> model = WordByWord(1, 1, hidden=16)
    >>> prices = torch.randn(2, 30, 1)
    >>> tomorrow = model(prices)  # (2, 30, 1): after every day
    >>> state = None
    >>> for day in prices.split(1, 1):
    ...     answer, state = model.step(day, state)
    >>> torch.testing.assert_close(answer, tomorrow[:, -1:])
    """

    def __init__(
        self,
        dim: int,
        outputs: int,
        *,
        vocabulary: int | None = None,
        hidden: int | None = None,
        layers: int = 1,
        cell: Cell = "gru",
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        hidden = dim if hidden is None else hidden
        checks.sizes("WordByWord", outputs=outputs, vocabulary=1 if vocabulary is None else vocabulary)
        self.network = network("WordByWord", cell, dim, hidden, layers, dropout, made)
        self.embedding = None if vocabulary is None else nn.Embedding(vocabulary, dim, **made)
        self.drop = nn.Dropout(checks.dropout("WordByWord", dropout))
        self.output = nn.Linear(hidden, outputs, **made)

    def forward(self, x: Tensor) -> Tensor:
        """An answer at each step, (batch, n, outputs), to x: tokens (batch, n), or numbers (batch, n, dim)."""
        return self.step(x, None)[0]

    def step(self, x: Tensor, state: Hidden | None = None) -> tuple[Tensor, Hidden]:
        """The answers to what comes next, and the state from which it goes on; None = from the beginning."""
        if self.embedding is None:
            checks.embeddings("WordByWord", "x", x, self.network.input_size, least=3)
        else:
            checks.tokens("WordByWord", "x", x)
            x = looked_up("WordByWord", "x", self.embedding, x)
        y, state = self.network(self.drop(x), state)
        return self.output(self.drop(y)), state


class RecurrentSequenceToSequence(RecurrentDecoding):
    """Encodes all, then decodes from the last hidden state alone: whatever the source says has to fit into it.

        s_0 = h_sources,    s_t = cell(E y_{t-1}, s_{t-1}),    logits_t = W s_t + b

    Args:
        source_vocabulary, target_vocabulary: how many tokens there are on either side.
        dim: the size of an embedding. hidden: of a hidden state; None = dim. layers: of the encoder and of the decoder.
        cell: "gru" (Cho et al. 2014) or "lstm" (Sutskever et al. 2014).
        dropout: the probability with which numbers of embeddings, of outputs and between layers are dropped in training.

    Sources: Sutskever, Vinyals and Le 2014, "Sequence to Sequence Learning with Neural Networks"; Cho et al. 2014, "Learning
    Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation".

    >>> model = RecurrentSequenceToSequence(100, 90, 16)
    >>> source, target = torch.randint(100, (2, 7)), torch.randint(90, (2, 5))
    >>> model(source, target, mask=regard.masks.padding([7, 4])).shape
    torch.Size([2, 5, 90])
    """

    def __init__(
        self,
        source_vocabulary: int,
        target_vocabulary: int,
        dim: int = 256,
        hidden: int | None = None,
        layers: int = 1,
        *,
        cell: Cell = "gru",
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        model = type(self).__name__
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        hidden = dim if hidden is None else hidden
        checks.sizes(model, target_vocabulary=target_vocabulary)
        self.encoder = Reader(model, source_vocabulary, dim, hidden, layers, cell, dropout, made)
        self.embedding = nn.Embedding(target_vocabulary, dim, **made)
        self.decoder = network(model, cell, dim, hidden, layers, dropout, made)
        self.drop = nn.Dropout(dropout)
        self.output = nn.Linear(hidden, target_vocabulary, **made)

    def start(self, source: Tensor, mask: Mask | None = None) -> State:
        _, last, _ = self.encoder(source, mask)
        return State(last)

    def decode(self, words: Tensor, state: State) -> tuple[Tensor, Tensor]:
        y, state.hidden = self.decoder(words, state.hidden)
        return self.output(self.drop(y)), y
