"""What recurrent encoder-decoders are made of: a reader, a state that moves on step by step, and what a search asks of it.

state = model.start(source, mask)       reads the source once
logits = model.step(tokens, state)      (rows, new) -> (rows, new, vocabulary), and the state moves on
state.select(rows)                      keeps or repeats rows
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import regard
from regard.checks import mask_fits
from regard.masks import Mask, padding
from regard.nn import checks
from regard.nn.block import looked_up
from regard.scores import Score, dot

Cell = Literal["gru", "lstm"]
Hidden = Tensor | tuple[Tensor, Tensor]  # (layers, rows, hidden); of an LSTM two of them
CELLS: dict[str, type[nn.GRU] | type[nn.LSTM]] = {"gru": nn.GRU, "lstm": nn.LSTM}


def network(
    model: str, cell: str, dim: int, hidden: int, layers: int, dropout: float, made: dict[str, Any], both: bool = False
) -> nn.GRU | nn.LSTM:
    """A recurrent network, with dropout between its layers."""
    checks.choice(model, "cell", cell, tuple(CELLS))
    checks.sizes(model, dim=dim, hidden=hidden, layers=layers)
    between = checks.dropout(model, dropout) if layers > 1 else 0.0
    return CELLS[cell](dim, hidden, layers, batch_first=True, dropout=between, bidirectional=both, **made)


def selected(hidden: Hidden, rows: Tensor) -> Hidden:
    """These rows of a hidden state."""
    if isinstance(hidden, Tensor):
        return hidden.index_select(1, rows)
    return hidden[0].index_select(1, rows), hidden[1].index_select(1, rows)


@dataclass(frozen=True, eq=False)
class Memory:
    """What an encoder has read, for a decoder that attends to it."""

    states: Tensor  # (rows, sources, dim)
    keys: Tensor  # the same, as the score takes them
    keep: Tensor | None  # (rows, sources), the tokens that are seen; None = all
    score: Score | None
    mask: Mask | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mask", None if self.keep is None else padding(keep=self.keep))

    def matrix(self, query: Tensor) -> regard.Attention:
        """How queries (rows, targets, dim) attend to the source: (rows, 1, targets, sources), the score without a scale."""
        return regard.attention(query[:, None], self.keys[:, None], mask=self.mask, score=self.score, scale=1.0)

    def contexts(self, query: Tensor) -> Tensor:
        """What each query is given: the states' weighted averages, (rows, targets, dim)."""
        score = dot() if self.score is None else self.score
        if query.shape[1] == 1 and not score.misfits(1, 1, query.shape[-1], self.keys.shape[-1]):
            return self._context(query, score)
        y: Tensor = torch.matmul(self.matrix(query), self.states[:, None])  # type: ignore[arg-type]
        return y[:, 0]

    def _context(self, query: Tensor, score: Score) -> Tensor:
        """The same for one query, whose row of weights is small: at each step of a decoding a sweep would cost more."""
        wide = torch.promote_types(query.dtype, torch.float32)
        with torch.autocast(query.device.type, enabled=False):
            q, k = score.reduced(query[:, None].to(wide), self.keys[:, None].to(wide))  # (rows, 1, 1 or sources, dim)
            v = score.combine
            scores = (q @ k.mT if v is None else ((q + k).tanh() @ v.to(wide).mT).mT)[:, 0]
            if self.keep is not None:
                scores = scores.masked_fill(~self.keep[:, None], float("-inf"))
            return (scores.softmax(-1) @ self.states.to(wide)).to(self.states.dtype)

    def select(self, rows: Tensor) -> Memory:
        """These rows; a row may come more than once."""
        states, keys = self.states.index_select(0, rows), self.keys.index_select(0, rows)
        return Memory(states, keys, None if self.keep is None else self.keep.index_select(0, rows), self.score)


@dataclass
class State:
    """Where a decoding stands. `select` keeps or repeats its rows; nothing else is asked of it."""

    hidden: Hidden
    memory: Memory | None = None
    fed: Tensor | None = None  # (rows, 1, dim), what goes into the next step beside the word

    @property
    def rows(self) -> int:
        """How many sentences, or beams of them, there are."""
        return (self.hidden if isinstance(self.hidden, Tensor) else self.hidden[0]).shape[1]

    def select(self, rows: Tensor) -> None:
        """Keeps these rows, in this order; a row may come more than once."""
        self.hidden = selected(self.hidden, rows)
        self.memory = None if self.memory is None else self.memory.select(rows)
        self.fed = None if self.fed is None else self.fed.index_select(0, rows)


class Reader(nn.Module):
    """Reads tokens: a hidden state for each, (batch, n, directions · hidden), and the last one of every layer.

    Tokens that the mask hides are stepped over, wherever they stand: they change nothing, and their states are 0.
    """

    def __init__(
        self,
        model: str,
        vocabulary: int,
        dim: int,
        hidden: int,
        layers: int,
        cell: Cell,
        dropout: float,
        made: dict[str, Any],
        both: bool = False,
    ) -> None:
        super().__init__()
        checks.sizes(model, source_vocabulary=vocabulary)
        self.model = model
        self.network = network(model, cell, dim, hidden, layers, dropout, made, both)
        self.embedding = nn.Embedding(vocabulary, dim, **made)
        self.drop = nn.Dropout(checks.dropout(model, dropout))

    def forward(self, source: Tensor, mask: Mask | None) -> tuple[Tensor, Hidden, Tensor | None]:
        """The states, the last ones, and which tokens were seen, (batch, n), None = all."""
        checks.tokens(self.model, "source", source)
        keep = self._seen(source, mask)
        if keep is None:
            states, last = self.network(self.drop(looked_up(self.model, "source", self.embedding, source)))
            return states, last, None
        order = (~keep).long().argsort(stable=True, dim=1)  # the seen ones first
        embedded = self.drop(looked_up(self.model, "source", self.embedding, source.gather(1, order)))
        packed = pack_padded_sequence(embedded, keep.sum(1).cpu(), batch_first=True, enforce_sorted=False)
        states, last = self.network(packed)
        states, _ = pad_packed_sequence(states, batch_first=True, total_length=source.shape[1])
        return states.gather(1, order.argsort(1)[..., None].expand_as(states)), last, keep

    def _seen(self, source: Tensor, mask: Mask | None) -> Tensor | None:
        """Which tokens the mask leaves, (batch, n)."""
        checks.mask(self.model, "mask", mask)
        if mask is None:
            return None
        batch, n = source.shape
        mask = mask_fits(mask, batch, 1, n, n, source.device)
        b, ends, j = (torch.tensor(x, device=source.device) for x in (range(batch), (0, n - 1), range(n)))
        first, last = mask.allows(b[:, None, None], 0, ends[:, None], j).unbind(1)
        if not torch.equal(first, last):
            checks.of_sources(self.model, mask.expression)
        if not bool(first.any(1).all()):
            checks.nothing_to_read(self.model, (~first.any(1)).nonzero().flatten().tolist())
        return first


class RecurrentDecoding(nn.Module, ABC):
    """A recurrent encoder-decoder: what `greedy` and `beam_search` ask of a model, and teacher forcing."""

    embedding: nn.Embedding
    drop: nn.Dropout

    @abstractmethod
    def start(self, source: Tensor, mask: Mask | None = None) -> State:
        """Reads the source, (batch, sources), once; mask: which of its tokens are seen, such as padding(lengths)."""

    @abstractmethod
    def decode(self, words: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """Logits after each of these embedded words, and what attended, (rows, new, hidden); advances the state."""

    def step(self, tokens: Tensor, state: State) -> Tensor:
        """Logits for what comes next, (rows, new, vocabulary), after tokens (rows, new); advances the state."""
        return self._step(tokens, state, "tokens")[0]

    def forward(self, source: Tensor, target: Tensor, mask: Mask | None = None) -> Any:
        """Teacher forcing: logits for what follows each target token, (batch, targets, vocabulary).

        Args:
            source: (batch, sources). target: (batch, targets), the begin-of-sequence token first.
            mask: which tokens of the source are seen, such as padding(lengths); None = all.
        """
        return self._step(target, self.start(source, mask), "target")[0]

    def _step(self, tokens: Tensor, state: State, name: str) -> tuple[Tensor, Tensor]:
        checks.tokens(type(self).__name__, name, tokens)
        checks.same_batch(type(self).__name__, name, tokens, state.rows)
        words = looked_up(type(self).__name__, name, self.embedding, tokens)
        return self.decode(self.drop(words), state)


class AttentiveDecoding(RecurrentDecoding):
    """A recurrent encoder-decoder whose every step attends to the states of the encoder."""

    def forward(self, source: Tensor, target: Tensor, mask: Mask | None = None, return_attention: bool = False) -> Any:
        """Teacher forcing: logits for what follows each target token, (batch, targets, vocabulary).

        Args:
            source: (batch, sources). target: (batch, targets), the begin-of-sequence token first.
            mask: which tokens of the source are seen, such as padding(lengths); None = all.
            return_attention: also gives the alignment A, one lazy matrix (batch, 1, targets, sources): how much of each source
                token went into each answer.
        """
        state = self.start(source, mask)
        logits, queries = self._step(target, state, "target")
        if not return_attention or state.memory is None:
            return logits
        return logits, state.memory.matrix(queries)
