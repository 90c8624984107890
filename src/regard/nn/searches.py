"""How a model that predicts the next token writes a sentence: the likeliest token each time, or several beginnings at once.

Every model that can be searched has the same verbs, recurrent or not:

    state = model.start(source, mask)       reads the source, once
    logits = model.step(tokens, state)      (rows, 1) -> (rows, 1, vocabulary), and the state moves on
    state.select(rows)                      keeps or repeats rows
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from regard.masks import Mask
from regard.nn import checks

NEVER = float("-inf")


class Searchable(Protocol):
    """A model that writes one token after the other."""

    def start(self, source: Tensor, mask: Mask | None = None, /) -> Any:
        """A state that stands at the beginning."""

    def step(self, tokens: Tensor, state: Any, /) -> Tensor:
        """Logits of the next token, (rows, 1, vocabulary)."""


class Found(NamedTuple):
    """What a search found for each source.

    >>> model = regard.nn.BahdanauSequenceToSequence(9, 9, 16).eval()
    >>> tokens, lengths, scores = greedy(model, torch.randint(9, (2, 7)), begin=1, end=2, limit=10)
    >>> lengths.shape, scores.shape
    (torch.Size([2]), torch.Size([2]))
    """

    tokens: Tensor  # (batch, n), without the begin; what comes after the end is the end again
    lengths: Tensor  # (batch,), how many of them there are, the end included
    scores: Tensor  # (batch,)


@torch.no_grad()
def greedy(model: Searchable, source: Tensor, *, mask: Mask | None = None, begin: int, end: int, limit: int) -> Found:
    """The likeliest token each time, until the end or until there are `limit` tokens. Its scores are ln p(tokens | source).

    Args:
        model: one that has `start` and `step`; call model.eval() first, or it drops at random as in training.
        source: (batch, sources). mask: which of its tokens are seen, such as padding(lengths).
        begin, end: the tokens with which a target begins and ends.

    >>> model, source = regard.nn.BahdanauSequenceToSequence(9, 9, 16).eval(), torch.randint(9, (2, 7))
    >>> found = greedy(model, source, begin=1, end=2, limit=10)
    >>> found.scores.shape
    torch.Size([2])
    """
    checks.search("greedy", begin, end, limit, 1, 0.0)
    state = model.start(source, mask)
    live = torch.arange(len(source), device=source.device)  # the sentences that go on
    tokens = torch.full((len(source), limit), end, device=source.device)
    lengths, scores = torch.full_like(live, limit), None
    last = torch.full_like(live, begin)
    for n in range(limit):
        logs = _logs(model.step(last[:, None], state), end, "greedy")
        log, last = logs.max(-1)
        scores = logs.new_zeros(len(source)) if scores is None else scores
        scores[live] += log
        tokens[live, n] = last
        lengths[live[last == end]] = n + 1
        going = (last != end).nonzero().flatten()
        if not len(going):
            break
        if len(going) < len(live):
            state.select(going)
            live, last = live[going], last[going]
    assert scores is not None
    return Found(tokens[:, : int(lengths.max())], lengths, scores)


@torch.no_grad()
def beam_search(
    model: Searchable,
    source: Tensor,
    *,
    mask: Mask | None = None,
    begin: int,
    end: int,
    limit: int,
    beams: int = 4,
    length_penalty: float = 0.6,
) -> Found:
    """Keeps the likeliest `beams` beginnings at each step, and returns the best sentence: ln p / ((5 + n) / 6)^length_penalty.

    A sentence ends with `end`, which counts among its n tokens, or at `limit` tokens. It is looked for until `beams` sentences
    have ended and the best of them is as good as every beginning is so far, or until no beginning can become better: p can only
    fall, and the penalty is known. All sources and beams go through the model in one step; sources that are decided leave it.

    Args:
        model: one that has `start` and `step`; call model.eval() first, or it drops at random as in training.
        source: (batch, sources). mask: which of its tokens are seen, such as padding(lengths).
        begin, end: the tokens with which a target begins and ends.
        beams: how many beginnings are kept for each source; 1 = `greedy`.
        length_penalty: 0 compares probabilities, which favours short sentences; above 0 longer ones are favoured.

    Source: Wu et al. 2016, "Google's Neural Machine Translation System", section 7 (without its coverage penalty).

    >>> model, source = regard.nn.BahdanauSequenceToSequence(9, 9, 16).eval(), torch.randint(9, (2, 7))
    >>> found = beam_search(model, source, begin=1, end=2, limit=10, beams=3)
    >>> found.tokens.shape[0], found.scores.shape
    (2, torch.Size([2]))
    """
    checks.search("beam_search", begin, end, limit, beams, length_penalty)
    state = model.start(source, mask)
    live = torch.arange(len(source), device=source.device)  # the sources that are undecided
    best = torch.full((len(source), limit), end, device=source.device)
    lengths, best_scores = torch.zeros_like(live), None
    ended = torch.zeros_like(live)  # how many sentences of each live source
    tokens = torch.empty((len(source), 1, 0), dtype=torch.int64, device=source.device)  # of the beams: (live, beams, n)
    last = torch.full((len(source), 1), begin, device=source.device)
    total = torch.zeros((len(source), 1), device=source.device)  # ln p of the beams, (live, beams)
    for n in range(1, limit + 1):
        logs = _logs(model.step(last.flatten()[:, None], state), end, "beam_search")
        best_scores = logs.new_full((len(source),), NEVER) if best_scores is None else best_scores
        width, vocabulary = total.shape[1], logs.shape[-1]
        # Each beam may end once, so that 2 · beams candidates have as many that go on.
        onward = (total[..., None] + logs.unflatten(0, total.shape)).flatten(1)
        total, place = onward.topk(min(2 * beams, onward.shape[1]))
        parent, token = place // vocabulary, place % vocabulary
        tokens = torch.cat((tokens.gather(1, parent[..., None].expand(-1, -1, n - 1)), token[..., None]), -1)
        over = token == end if n < limit else torch.ones_like(token, dtype=torch.bool)
        finished = over[:, :beams] & (total[:, :beams] > NEVER)
        ended = ended + finished.sum(1)
        score, place = (total[:, :beams] / _penalty(n, length_penalty)).masked_fill(~finished, NEVER).max(1)
        better = (score > best_scores[live]).nonzero().flatten()
        best[live[better], :n] = tokens[better, place[better]]
        lengths[live[better]] = n
        best_scores[live[better]] = score[better]
        total, place = total.masked_fill(over, NEVER).topk(min(beams, total.shape[1]))
        hope = total[:, 0] / max(_penalty(n + 1, length_penalty), _penalty(limit, length_penalty))
        ahead = (ended < beams) | (total[:, 0] / _penalty(n, length_penalty) > best_scores[live])
        going = (ahead & (hope > best_scores[live])).nonzero().flatten()
        if not len(going):
            break
        place = place[going]
        state.select((going[:, None] * width + parent[going].gather(1, place)).flatten())
        live, ended, total, last = live[going], ended[going], total[going], token[going].gather(1, place)
        tokens = tokens[going].gather(1, place[..., None].expand(-1, -1, n))
    assert best_scores is not None
    return Found(best[:, : int(lengths.max())], lengths, best_scores)


def _logs(logits: Tensor, end: int, operation: str) -> Tensor:
    """ln p of every next token, (rows, vocabulary), in no less than float32."""
    checks.in_vocabulary(operation, end, logits.shape[-1])
    return logits[:, -1].log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _penalty(n: int, strength: float) -> float:
    """What ln p of n tokens is divided by."""
    return float(((5 + n) / 6) ** strength)
