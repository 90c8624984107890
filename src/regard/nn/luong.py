"""Attention after the step: the decoder moves on, then looks at the source, then answers.

    s_i = cell(E y_{i-1}, s_{i-1}),    A = softmax(score(s, h)),    c_i = Σ_j A_ij h_j
    h~_i = tanh(W_c (c_i, s_i)),       logits_i = W_o h~_i + b_o

With input feeding the step also takes in h~ of the one before, cell((E y_{i-1}, h~_{i-1}), s_{i-1}); without it the decoder
reads all target tokens at once, and all of them attend in one product of the matrix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regard.masks import Mask
from regard.nn import checks
from regard.nn.scores import once
from regard.nn.steps import AttentiveDecoding, Cell, Memory, Reader, State, network
from regard.scores import Score


class LuongSequenceToSequence(AttentiveDecoding):
    """Global attention: any score between the state that a step has reached and those of the encoder.

        LuongSequenceToSequence(…)                              "dot"
        LuongSequenceToSequence(…, score=Bilinear(hidden))      "general"
        LuongSequenceToSequence(…, score=Additive(hidden))      "concat", which is Bahdanau's

    Args:
        source_vocabulary, target_vocabulary: how many tokens there are on either side.
        dim: the size of an embedding. hidden: of a hidden state; None = dim. layers: of the encoder and of the decoder.
        score: a value of `regard.scores`, or a module that makes one; None = the dot product. Scores have no scale.
        cell: "lstm", or "gru".
        input_feeding: whether what the decoder answered last goes into its next step.
        dropout: the probability with which numbers of embeddings, of outputs and between layers are dropped in training.

    Source: Luong, Pham and Manning 2015, "Effective Approaches to Attention-based Neural Machine Translation".

    >>> model = LuongSequenceToSequence(100, 90, 16, score=regard.nn.Bilinear(16))
    >>> source, target = torch.randint(100, (2, 7)), torch.randint(90, (2, 5))
    >>> logits, A = model(source, target, mask=regard.masks.padding([7, 4]), return_attention=True)
    >>> logits.shape, A.shape
    (torch.Size([2, 5, 90]), torch.Size([2, 1, 5, 7]))
    """

    def __init__(
        self,
        source_vocabulary: int,
        target_vocabulary: int,
        dim: int = 256,
        hidden: int | None = None,
        layers: int = 1,
        *,
        score: Score | nn.Module | None = None,
        cell: Cell = "lstm",
        input_feeding: bool = False,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        model = type(self).__name__
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        hidden = dim if hidden is None else hidden
        checks.sizes(model, target_vocabulary=target_vocabulary)
        self.input_feeding = input_feeding
        self.encoder = Reader(model, source_vocabulary, dim, hidden, layers, cell, dropout, made)
        self.embedding = nn.Embedding(target_vocabulary, dim, **made)
        self.decoder = network(model, cell, dim + hidden if input_feeding else dim, hidden, layers, dropout, made)
        self.combine = nn.Linear(2 * hidden, hidden, bias=False, **made)
        self.drop = nn.Dropout(dropout)
        self.output = nn.Linear(hidden, target_vocabulary, **made)
        self.score = score

    def start(self, source: Tensor, mask: Mask | None = None) -> State:
        states, last, keep = self.encoder(source, mask)
        score, keys = once(self.score, states)
        fed = states.new_zeros(len(states), 1, states.shape[-1]) if self.input_feeding else None
        return State(last, Memory(states, keys, keep, score), fed)

    def decode(self, words: Tensor, state: State) -> tuple[Tensor, Tensor]:
        assert state.memory is not None
        queries, answers = [], []
        for part in words.split(1, 1) if self.input_feeding else (words,):
            taken = part if state.fed is None else torch.cat((part, state.fed), -1)
            query, state.hidden = self.decoder(taken, state.hidden)
            answer = torch.tanh(self.combine(torch.cat((state.memory.contexts(query), query), -1)))
            state.fed = answer if self.input_feeding else None
            queries.append(query)
            answers.append(answer)
        return self.output(self.drop(torch.cat(answers, 1))), torch.cat(queries, 1)

    def extra_repr(self) -> str:
        said = [f"score={self.score}"] if isinstance(self.score, Score) else []
        return ", ".join([*said, *(["input_feeding=True"] if self.input_feeding else [])])
