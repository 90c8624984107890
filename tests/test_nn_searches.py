"""Searches against every sentence there is, against a beam search in plain words, and against teacher forcing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from regard.masks import padding
from regard.nn.bahdanau import BahdanauSequenceToSequence
from regard.nn.luong import LuongSequenceToSequence
from regard.nn.recurrent import RecurrentSequenceToSequence
from regard.nn.searches import beam_search, greedy

BEGIN, END, TOKENS = 0, 1, 4
ENDS = {"begin": BEGIN, "end": END}
MODELS: dict[str, Callable[..., Any]] = {
    "bottleneck": lambda **o: RecurrentSequenceToSequence(6, TOKENS, 5, 8, cell="lstm", **o),
    "bahdanau": lambda **o: BahdanauSequenceToSequence(6, TOKENS, 5, 8, **o),
    "luong": lambda **o: LuongSequenceToSequence(6, TOKENS, 5, 8, input_feeding=True, **o),
}
every_model = pytest.mark.parametrize("name", MODELS)


def made(name: str, seed: int) -> Any:
    """A model that is sure of something: its last weights are large."""
    torch.manual_seed(seed)
    model = MODELS[name](dtype=torch.float64).eval()
    with torch.no_grad():
        model.output.weight.mul_(12)
    return model


def asked(rows: int = 4) -> tuple[Tensor, Any]:
    return torch.randint(6, (rows, 5)), padding([5, 2, 4, 1][:rows])


def penalty(n: int, strength: float) -> float:
    return ((5 + n) / 6) ** strength


def log_probabilities(model: Any, source: Tensor, mask: Any, sentence: tuple[int, ...]) -> Tensor:
    """ln p of a sentence for every source, by teacher forcing."""
    target = torch.tensor([(BEGIN, *sentence[:-1])]).expand(len(source), -1)
    with torch.no_grad():
        logs = model(source, target, mask=mask).log_softmax(-1)
    return logs.gather(-1, torch.tensor([sentence]).expand(len(source), -1)[..., None]).sum((1, 2))


def every_sentence(limit: int) -> list[tuple[int, ...]]:
    words = [t for t in range(TOKENS) if t != END]
    ended = [(*start, END) for n in range(limit) for start in product(words, repeat=n)]
    return ended + list(product(words, repeat=limit))


@torch.no_grad()
def next_of(model: Any, source: Tensor, mask: Any, row: int, start: tuple[int, ...]) -> Tensor:
    """ln p of each next token of one source."""
    return model(source, torch.tensor([(BEGIN, *start)] * len(source)), mask=mask)[row, -1].log_softmax(-1)


def plain_beam_search(steps: Callable[[tuple[int, ...]], Tensor], limit: int, beams: int, strength: float) -> tuple[Any, float]:
    """One source; steps gives ln p of each next token after a beginning."""
    beginnings: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    ended: list[tuple[float, tuple[int, ...]]] = []
    for n in range(1, limit + 1):
        onward = sorted(((s + log, (*b, t)) for s, b in beginnings for t, log in enumerate(steps(b).tolist())), reverse=True)
        for score, sentence in onward[:beams]:
            if sentence[-1] == END or n == limit:
                ended.append((score / penalty(n, strength), sentence))
        beginnings = [one for one in onward if one[1][-1] != END][:beams]
        if len(ended) >= beams and not any(score / penalty(n, strength) > max(ended)[0] for score, _ in beginnings):
            break
    score, sentence = max(ended)
    return sentence, score


def sentences(found: Any) -> list[tuple[int, ...]]:
    return [tuple(row[:n]) for row, n in zip(found.tokens.tolist(), found.lengths.tolist(), strict=True)]


# -- against everything there is --------------------------------------------------------------------------------------


@every_model
def test_a_beam_that_is_wide_enough_finds_the_best_sentence(name):
    everything = every_sentence(4)
    for seed in range(2):
        model = made(name, seed)
        source, mask = asked()
        logs = torch.stack([log_probabilities(model, source, mask, sentence) for sentence in everything])
        torch.testing.assert_close(logs.exp().sum(0), torch.ones(4, dtype=torch.float64))
        for strength in (0.0, 0.6, 2.0, -1.0):
            penalties = torch.tensor([penalty(len(sentence), strength) for sentence in everything])
            best, place = (logs / penalties[:, None]).max(0)
            found = beam_search(model, source, mask=mask, **ENDS, limit=4, beams=len(everything), length_penalty=strength)
            assert sentences(found) == [everything[n] for n in place.tolist()]
            torch.testing.assert_close(found.scores, best)


@every_model
@pytest.mark.parametrize("beams", [1, 2, 3])
def test_a_narrow_beam_is_the_plain_one(name, beams):
    for seed in range(2):
        model = made(name, seed)
        source, mask = asked()
        found = beam_search(model, source, mask=mask, **ENDS, limit=6, beams=beams, length_penalty=0.8)
        for row in range(4):
            sentence, score = plain_beam_search(partial(next_of, model, source, mask, row), 6, beams, 0.8)
            assert sentences(found)[row] == sentence
            assert found.scores[row].item() == pytest.approx(score, abs=1e-10)


@every_model
def test_greedy_takes_the_likeliest_token_each_time(name):
    for seed in range(4):
        model = made(name, seed)
        source, mask = asked()
        found = greedy(model, source, mask=mask, **ENDS, limit=8)
        assert found.tokens.shape == (4, int(found.lengths.max()))
        for row, sentence in enumerate(sentences(found)):
            target = torch.tensor([(BEGIN, *sentence[:-1])] * 4)
            logits = model(source, target, mask=mask)[row]
            assert tuple(logits.argmax(-1).tolist()) == sentence
            assert (sentence[-1] == END) or len(sentence) == 8
            assert END not in sentence[:-1]
            assert (found.tokens[row, len(sentence) :] == END).all()
            torch.testing.assert_close(found.scores[row], log_probabilities(model, source, mask, sentence)[row])


@every_model
def test_one_beam_is_greedy(name):
    for seed in range(6):
        model = made(name, seed)
        source, mask = asked()
        one = greedy(model, source, mask=mask, **ENDS, limit=8)
        for strength in (0.0, 1.0):
            found = beam_search(model, source, mask=mask, **ENDS, limit=8, beams=1, length_penalty=strength)
            assert torch.equal(found.tokens, one.tokens)
            assert torch.equal(found.lengths, one.lengths)
            torch.testing.assert_close(found.scores, one.scores / ((5 + one.lengths) / 6) ** strength)


@every_model
def test_sources_do_not_meet(name):
    model = made(name, 1)
    source, mask = asked()
    together = beam_search(model, source, mask=mask, **ENDS, limit=6, beams=3)
    for row, length in enumerate([5, 2, 4, 1]):
        alone = beam_search(model, source[row : row + 1, :length], **ENDS, limit=6, beams=3)
        assert sentences(alone)[0] == sentences(together)[row]
        torch.testing.assert_close(alone.scores[0], together.scores[row])


def test_a_search_leaves_no_graph():
    model = made("bahdanau", 0)
    source, mask = asked()
    assert not greedy(model, source, mask=mask, **ENDS, limit=3).scores.requires_grad
    assert not beam_search(model, source, mask=mask, **ENDS, limit=3).scores.requires_grad


# -- a model of a few numbers -----------------------------------------------------------------------------------------


@dataclass
class Chain:
    """The next token depends on the source, the step and the last token, by a table (sources, steps or 1, tokens, tokens)."""

    table: Tensor
    rows: list[int] = field(default_factory=list)  # how many went through each step

    def start(self, source: Tensor, mask: Any = None, /) -> Any:
        self.which = source[:, 0]
        return self

    def step(self, tokens: Tensor, state: Any, /) -> Tensor:
        n = len(self.rows) % self.table.shape[1]
        self.rows.append(len(tokens))
        return self.table[self.which, n, tokens[:, -1]].log()[:, None]

    def select(self, rows: Tensor, /) -> None:
        self.which = self.which[rows]


def chain(*after: dict[int, list[float]]) -> Chain:
    """For each source what follows a token; END after all others."""
    table = torch.zeros(len(after), 1, TOKENS, TOKENS)
    table[..., END] = 1
    for source, rows in enumerate(after):
        for token, p in rows.items():
            table[source, 0, token] = torch.tensor(p)
    return Chain(table)


def search(model: Chain, **options: Any) -> Any:
    return beam_search(model, torch.arange(len(model.table))[:, None], **ENDS, **options)


@pytest.mark.parametrize("beams", [1, 2, 3, 4])
@pytest.mark.parametrize("strength", [0.0, 1.0, 4.0])
def test_beams_are_filled_and_counted_as_in_the_plain_search(beams, strength):
    torch.manual_seed(beams)
    table = torch.rand(60, 6, TOKENS, TOKENS, dtype=torch.float64).pow(3)
    table = table / table.sum(-1, keepdim=True)
    found = search(Chain(table), limit=6, beams=beams, length_penalty=strength)
    for row in range(len(table)):
        logs = table[row].log()
        sentence, score = plain_beam_search(lambda start, logs=logs: logs[len(start), (BEGIN, *start)[-1]], 6, beams, strength)
        assert sentences(found)[row] == sentence
        assert found.scores[row].item() == pytest.approx(score)


def test_what_cannot_be_is_no_sentence():
    """Beams of p = 0 end as often as others; they are not counted among those that have ended."""
    table = torch.zeros(1, 10, TOKENS, TOKENS)
    table[:, :8, :, 2] = 1
    table[:, 8] = torch.tensor([0, 0.4, 0, 0.6])
    table[:, 9, :, END] = 1
    for beams in (2, 3, 4):
        found = search(Chain(table), limit=12, beams=beams, length_penalty=2.0)
        assert sentences(found) == [(2,) * 8 + (3, END)]


def test_what_has_ended_first_may_be_beaten():
    after = {BEGIN: [0, 0.52, 0.48, 0]}
    short = search(chain(after), limit=9, beams=2, length_penalty=0.0)
    longer = search(chain(after), limit=9, beams=2, length_penalty=1.0)
    assert sentences(short) == [(END,)]
    assert sentences(longer) == [(2, END)]
    assert longer.scores.item() == pytest.approx(math.log(0.48) / (7 / 6))


def test_a_beam_finds_what_greed_does_not():
    after = {BEGIN: [0, 0, 0.6, 0.4], 2: [0.25, 0.25, 0.25, 0.25]}
    model = chain(after)
    assert sentences(search(model, limit=5, beams=2, length_penalty=0.0)) == [(3, END)]
    assert sentences(greedy(model, torch.zeros(1, 1, dtype=torch.int64), **ENDS, limit=1)) == [(2,)]


def test_it_stops_when_nothing_open_can_win_and_decided_sources_leave():
    sure, unsure = {BEGIN: [0, 0.9, 0.05, 0.05], 2: [0, 0, 1, 0], 3: [0, 0, 1, 0]}, {BEGIN: [0, 0, 1, 0], 2: [0, 0.1, 0.8, 0.1]}
    model = chain(sure, unsure)
    found = search(model, limit=20, beams=2, length_penalty=0.0)
    assert sentences(found)[0] == (END,)
    assert model.rows[0] == 2
    assert model.rows[1] == 2  # the two beams of one source
    alone = chain(sure)
    search(alone, limit=20, beams=2, length_penalty=0.0)
    assert alone.rows == [1]
    search(alone := chain(sure), limit=20, beams=2, length_penalty=3.0)
    assert len(alone.rows) > 1  # ln 0.05 / penalty(20) could still win


def test_greedy_lets_decided_sources_leave():
    model = chain({BEGIN: [0, 1, 0, 0]}, {BEGIN: [0, 0, 1, 0], 2: [0, 0, 0, 1]})
    found = greedy(model, torch.tensor([[0], [1]]), **ENDS, limit=9)
    assert sentences(found) == [(END,), (2, 3, END)]
    assert model.rows == [2, 1, 1]
    assert found.tokens.tolist() == [[END, END, END], [2, 3, END]]


def test_the_limit_cuts_what_does_not_end():
    model = chain({BEGIN: [0, 0, 1, 0], 2: [0, 0, 1, 0]})
    assert sentences(search(model, limit=3)) == [(2, 2, 2)]
    assert sentences(greedy(model, torch.zeros(1, 1, dtype=torch.int64), **ENDS, limit=3)) == [(2, 2, 2)]


def test_scores_of_half_precision_are_summed_in_float32():
    model = chain({BEGIN: [0, 0.3, 0.7, 0]})
    model.table = model.table.bfloat16()
    assert search(model, limit=3).scores.dtype == torch.float32
    assert greedy(model, torch.zeros(1, 1, dtype=torch.int64), **ENDS, limit=3).scores.dtype == torch.float32


class OneWay(torch.nn.Module):
    """One sentence is nearly certain, and whatever leaves it ends at once."""

    WAY = (1, 3, 4, 5, 2)

    class State:
        def __init__(self, rows: int) -> None:
            self.said = torch.zeros(rows, 0, dtype=torch.int64)

        def select(self, rows: torch.Tensor) -> None:
            self.said = self.said[rows]

    def start(self, source: torch.Tensor, mask: object = None) -> State:
        return self.State(len(source))

    def step(self, tokens: torch.Tensor, state: State) -> torch.Tensor:
        state.said = torch.cat([state.said, tokens], 1)
        likely = torch.full((len(tokens), 6), 1e-4)
        for row, said in enumerate(state.said.tolist()):
            on_the_way = tuple(said) == self.WAY[: len(said)] and len(said) < len(self.WAY)
            likely[row, self.WAY[len(said)] if on_the_way else 2] = 1
        return likely.log()[:, None]


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.5])
@pytest.mark.parametrize("beams", range(1, 7))
def test_many_that_end_early_do_not_stop_the_search_for_the_best(beams, length_penalty):
    found = beam_search(OneWay(), torch.zeros(2, 3), begin=1, end=2, limit=8, beams=beams, length_penalty=length_penalty)
    assert found.tokens.tolist() == [[3, 4, 5, 2]] * 2
