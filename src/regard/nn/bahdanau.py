"""The encoder-decoder that learns to align: every step of the decoder attends to the source.

h_j = (forward GRU state, backward GRU state) of source token j,      s_0 = tanh(W_s h←_1 + b_s)
e_ij = v · tanh(W_q s_{i-1} + W_k h_j),    A = softmax(e),            c_i = Σ_j A_ij h_j
s_i = GRU((E y_{i-1}, c_i), s_{i-1}),      logits_i = W_o maxout(U_o s_i + V_o E y_{i-1} + C_o c_i) + b_o
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regard.masks import Mask
from regard.nn import checks
from regard.nn.scores import Additive, once
from regard.nn.steps import AttentiveDecoding, Memory, Reader, State


class BahdanauSequenceToSequence(AttentiveDecoding):
    """The first attention: a bidirectional encoder, and a decoder that looks at all of its states before every word.

    Args:
        source_vocabulary, target_vocabulary: how many tokens there are on either side.
        dim: the size of an embedding, and of the maxout layer. hidden: of a hidden state, one direction; None = dim.
        dropout: the probability with which numbers of embeddings and of the maxout layer are dropped in training.

    Recurrent matrices begin orthogonal and biases at 0, as in the paper; all others as PyTorch's layers begin, for with the
    paper's deviation of 0.01 small models learn nothing for long. PyTorch's GRU multiplies by the reset gate after its matrix,
    the paper's before.

    Source: Bahdanau, Cho and Bengio 2015, "Neural Machine Translation by Jointly Learning to Align and Translate".

    >>> model = BahdanauSequenceToSequence(100, 90, 16)
    >>> source, target = torch.randint(100, (2, 7)), torch.randint(90, (2, 5))
    >>> logits, A = model(source, target, mask=regard.masks.padding([7, 4]), return_attention=True)
    >>> logits.shape, A.shape, A.argmax(-1).shape  # the source token that each word looks at
    (torch.Size([2, 5, 90]), torch.Size([2, 1, 5, 7]), torch.Size([2, 1, 5]))
    """

    def __init__(
        self,
        source_vocabulary: int,
        target_vocabulary: int,
        dim: int = 256,
        hidden: int | None = None,
        *,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        model = type(self).__name__
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        hidden = dim if hidden is None else hidden
        checks.sizes(model, target_vocabulary=target_vocabulary)
        self.encoder = Reader(model, source_vocabulary, dim, hidden, 1, "gru", dropout, made, both=True)
        self.first = nn.Linear(hidden, hidden, **made)
        self.score = Additive(hidden, 2 * hidden, hidden, **made)
        self.embedding = nn.Embedding(target_vocabulary, dim, **made)
        self.decoder = nn.GRUCell(dim + 2 * hidden, hidden, **made)
        self.deep = nn.Linear(dim + 3 * hidden, 2 * dim, **made)
        self.drop = nn.Dropout(dropout)
        self.output = nn.Linear(dim, target_vocabulary, **made)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Orthogonal matrices where a state meets itself, biases 0."""
        for name, parameter in self.named_parameters():
            if "bias" in name:
                nn.init.zeros_(parameter)
            elif "weight_hh" in name:
                for gate in parameter.detach().chunk(3):
                    nn.init.orthogonal_(gate)

    def start(self, source: Tensor, mask: Mask | None = None) -> State:
        states, last, keep = self.encoder(source, mask)
        score, keys = once(self.score, states)
        first = torch.tanh(self.first(last[1:]))  # the backward network's, which has read the first token last
        return State(first, Memory(states, keys, keep, score))

    def decode(self, words: Tensor, state: State) -> tuple[Tensor, Tensor]:
        assert state.memory is not None
        assert isinstance(state.hidden, Tensor)
        hidden = state.hidden[0]
        queries, contexts, answers = [], [], []
        for word in words.unbind(1):
            queries.append(hidden)
            contexts.append(state.memory.contexts(hidden[:, None])[:, 0])
            hidden = self.decoder(torch.cat((word, contexts[-1]), -1), hidden)
            answers.append(hidden)
        state.hidden = hidden[None]
        known = torch.cat((torch.stack(answers, 1), words, torch.stack(contexts, 1)), -1)
        deep = torch.maximum(*self.deep(known).chunk(2, -1))
        return self.output(self.drop(deep)), torch.stack(queries, 1)
