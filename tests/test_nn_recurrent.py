"""Recurrent models: padding, alignment, steps against teacher forcing, what attention buys; scores as modules."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regard
from regard import scores
from regard.masks import padding
from regard.nn.attention import CrossAttention
from regard.nn.bahdanau import BahdanauSequenceToSequence
from regard.nn.luong import LuongSequenceToSequence
from regard.nn.recurrent import RecurrentSequenceToSequence, WordByWord
from regard.nn.scores import Additive, Bilinear
from regard.nn.searches import greedy

SOURCES, TARGETS, HIDDEN = 11, 9, 6
MODELS: dict[str, Callable[..., Any]] = {
    "bottleneck": lambda **o: RecurrentSequenceToSequence(SOURCES, TARGETS, 5, HIDDEN, **o),
    "bottleneck, two lstms": lambda **o: RecurrentSequenceToSequence(SOURCES, TARGETS, 5, HIDDEN, 2, cell="lstm", **o),
    "bahdanau": lambda **o: BahdanauSequenceToSequence(SOURCES, TARGETS, 5, HIDDEN, **o),
    "luong, dot": lambda **o: LuongSequenceToSequence(SOURCES, TARGETS, 5, HIDDEN, **o),
    "luong, general, two layers": lambda **o: LuongSequenceToSequence(
        SOURCES, TARGETS, 5, HIDDEN, 2, score=Bilinear(HIDDEN, **_made(o)), **o
    ),
    "luong, concat, fed": lambda **o: LuongSequenceToSequence(
        SOURCES, TARGETS, 5, HIDDEN, score=Additive(HIDDEN, **_made(o)), cell="gru", input_feeding=True, **o
    ),
}
ATTENTIVE = [name for name in MODELS if "bottleneck" not in name]


def _made(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in ("device", "dtype")}


def given(rows: int = 3, sources: int = 5, targets: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randint(SOURCES, (rows, sources)), torch.randint(TARGETS, (rows, targets))


def made(name: str, **options: Any) -> Any:
    torch.manual_seed(3)
    return MODELS[name](dtype=torch.float64, **options)


every_model = pytest.mark.parametrize("name", MODELS)
every_attentive = pytest.mark.parametrize("name", ATTENTIVE)


# -- what is read -----------------------------------------------------------------------------------------------------


@every_model
def test_padding_on_the_right_changes_nothing(name):
    model = made(name)
    source, target = given()
    lengths = [5, 2, 1]
    logits = model(source, target, padding(lengths))
    other = source.clone()
    other[1, 2:] = (other[1, 2:] + 1) % SOURCES
    torch.testing.assert_close(model(other, target, mask=padding(lengths)), logits)
    for row, length in enumerate(lengths):
        alone = model(source[row : row + 1, :length], target[row : row + 1])
        torch.testing.assert_close(logits[row : row + 1], alone)
    assert not torch.allclose(model(source, target), logits)  # without a mask it would


@every_model
def test_hidden_tokens_are_stepped_over_wherever_they_stand(name):
    model = made(name)
    source, target = given(2, 6)
    keep = torch.tensor([[0, 1, 1, 0, 1, 0], [1, 1, 0, 0, 0, 1]]).bool()
    logits = model(source, target, padding(keep=keep))
    for row in range(2):
        torch.testing.assert_close(logits[row : row + 1], model(source[row, keep[row]][None], target[row : row + 1]))


@every_model
def test_a_mask_that_hides_nothing_is_no_mask(name):
    model = made(name)
    source, target = given()
    torch.testing.assert_close(model(source, target, padding(5)), model(source, target))


def test_the_encoder_of_bahdanau_reads_in_both_directions():
    model = made("bahdanau")
    source, _ = given(1)
    states = model.start(source).memory.states
    for changed, same, other in ((0, slice(HIDDEN, None), slice(HIDDEN)), (4, slice(HIDDEN), slice(HIDDEN, None))):
        moved = source.clone()
        moved[0, changed] = (moved[0, changed] + 1) % SOURCES
        found = model.start(moved).memory.states
        assert torch.equal(found[0, 2, same], states[0, 2, same])
        assert not torch.equal(found[0, 2, other], states[0, 2, other])
    padded = model.start(torch.cat((source, source), 1), padding(5)).memory.states
    torch.testing.assert_close(padded[:, :5], states)
    assert not padded[:, 5:].any()


def test_the_first_state_of_bahdanau_is_of_the_backward_network():
    model = made("bahdanau")
    source, _ = given(2)
    state = model.start(source)
    due = torch.tanh(model.first(state.memory.states[:, 0, HIDDEN:]))
    torch.testing.assert_close(state.hidden[0], due)


# -- steps ------------------------------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("mask", [None, padding([5, 2, 1])], ids=["full", "padded"])
def test_step_by_step_is_teacher_forcing(name, mask):
    model = made(name).eval()
    source, target = given(targets=5)
    logits = model(source, target, mask=mask)
    for cuts in ([1] * 5, [2, 3]):
        state = model.start(source, mask)
        steps = [model.step(tokens, state) for tokens in target.split(cuts, 1)]
        torch.testing.assert_close(torch.cat(steps, 1), logits, rtol=0, atol=1e-10)


@every_model
def test_rows_are_selected_and_repeated(name):
    model = made(name).eval()
    source, target = given()
    rows = torch.tensor([2, 0, 0, 1])
    state = model.start(source, padding([5, 2, 3]))
    model.step(target[:, :2], state)
    state.select(rows)
    assert state.rows == 4
    found = model.step(target[rows, 2:], state)
    torch.testing.assert_close(found, model(source, target, padding([5, 2, 3]))[rows, 2:])


@every_model
def test_gradients_reach_every_parameter(name):
    model = made(name, dropout=0.3)
    source, target = given()
    model(source, target, padding([5, 2, 1])).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@every_model
def test_dropout_drops_in_training_only(name):
    model = made(name, dropout=0.5)
    source, target = given()
    assert not torch.equal(model(source, target), model(source, target))
    model.eval()
    assert torch.equal(model(source, target), model(source, target))


@every_model
def test_a_state_dict_survives_safetensors(name, tmp_path):
    from safetensors.torch import load_file, save_file

    model = made(name)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    torch.manual_seed(4)
    twin = MODELS[name](dtype=torch.float64)
    source, target = given()
    assert not torch.equal(twin(source, target), model(source, target))
    twin.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(twin(source, target), model(source, target))


# -- the alignment ----------------------------------------------------------------------------------------------------


@every_attentive
def test_the_alignment_is_one_lazy_matrix_of_what_was_used(name, monkeypatch):
    model = made(name)
    source, target = given()
    used: list[Tensor] = []
    contexts = regard.nn.steps.Memory.contexts
    monkeypatch.setattr(regard.nn.steps.Memory, "contexts", lambda m, q: used.append(contexts(m, q)) or used[-1])
    logits, A = model(source, target, padding([5, 2, 1]), return_attention=True)
    assert isinstance(A, regard.Attention)
    assert A.shape == (3, 1, 4, 5)
    memory = model.start(source, padding([5, 2, 1])).memory
    torch.testing.assert_close((A @ memory.states[:, None])[:, 0], torch.cat(used, 1))
    dense = A.to_dense()
    torch.testing.assert_close(dense.sum(-1), torch.ones(3, 1, 4, dtype=torch.float64))
    assert not dense[1, :, :, 2:].any()
    torch.testing.assert_close(dense[2, :, :, 0], torch.ones(1, 4, dtype=torch.float64))
    torch.testing.assert_close(model(source, target, padding([5, 2, 1])), logits)


def test_every_step_of_bahdanau_is_that_of_the_paper():
    model = made("bahdanau")
    source, target = given()
    logits, A = model(source, target, return_attention=True)
    state = model.start(source)
    h, s = state.memory.states, state.hidden[0]
    for i, word in enumerate(model.embedding(target).unbind(1)):
        e = torch.tanh((s @ model.score.w_query[0])[:, None] + h @ model.score.w_key[0]) @ model.score.v[0]
        torch.testing.assert_close(A.to_dense()[:, 0, i], e.softmax(-1))
        context = (e.softmax(-1)[..., None] * h).sum(1)
        s = model.decoder(torch.cat((word, context), -1), s)
        pairs = model.deep(torch.cat((s, word, context), -1))  # unit m is the larger one of m and m + 5
        torch.testing.assert_close(logits[:, i], model.output(torch.stack((pairs[:, :5], pairs[:, 5:])).amax(0)))


@pytest.mark.parametrize("name", ["luong, dot", "luong, general, two layers"])
def test_the_alignment_of_luong_is_not_scaled(name):
    model = made(name)
    source, target = given()
    _, A = model(source, target, return_attention=True)
    state = model.start(source)
    query, _ = model.decoder(model.embedding(target), state.hidden)
    key = state.memory.states if model.score is None else state.memory.states @ model.score.weight[0].mT
    torch.testing.assert_close(A.to_dense()[:, 0], (query @ key.mT).softmax(-1))


def test_what_is_answered_is_fed_into_the_next_step():
    model = made("luong, concat, fed")
    source, target = given()
    state = model.start(source)
    assert not state.fed.any()
    model.step(target[:, :1], state)
    context = state.memory.contexts(state.hidden[-1][:, None])
    due = torch.tanh(model.combine(torch.cat((context, state.hidden[-1][:, None]), -1)))
    torch.testing.assert_close(state.fed, due)


def test_no_alignment_is_stored():
    """A matrix that would take 549 MiB in float32 is handed out, and 12,000 · (6 + 6) numbers are kept for it."""
    model = made("luong, dot")
    source, target = torch.randint(SOURCES, (1, 12_000)), torch.randint(TARGETS, (1, 12_000))
    with torch.no_grad():
        _, A = model(source, target, return_attention=True)
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in A.call.tensors}
    assert A.shape == (1, 1, 12_000, 12_000)
    assert sum(held.values()) < 4 * 2**20
    assert A[0, 0, 5].shape == (12_000,)


def test_projected_keys_are_computed_once(monkeypatch):
    model = made("bahdanau")
    calls = []
    project = Additive.project
    monkeypatch.setattr(Additive, "project", lambda self, key: calls.append(1) or project(self, key))
    model(*given(), return_attention=True)
    assert len(calls) == 1


# -- word by word -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("vocabulary", [None, 9])
def test_word_by_word_knows_the_past_only(cell, vocabulary):
    torch.manual_seed(1)
    model = WordByWord(3, 2, vocabulary=vocabulary, hidden=4, layers=2, cell=cell)
    x = torch.randn(2, 6, 3) if vocabulary is None else torch.randint(9, (2, 6))
    y = model(x)
    assert y.shape == (2, 6, 2)
    later = x.clone()
    later[:, 4:] = torch.randn(2, 2, 3) if vocabulary is None else (x[:, 4:] + 1) % 9
    assert torch.equal(model(later)[:, :4], y[:, :4])
    assert not torch.equal(model(later)[:, 4:], y[:, 4:])
    state, answers = None, []
    for part in x.split([1, 1, 4], 1):
        answer, state = model.step(part, state)
        answers.append(answer)
    torch.testing.assert_close(torch.cat(answers, 1), y)


def test_word_by_word_learns_a_series():
    torch.manual_seed(0)
    model = WordByWord(1, 1, hidden=16)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    wave = torch.sin(torch.linspace(0, 20, 81) + torch.rand(16, 1) * 6)[..., None]
    for _ in range(60):
        loss = (model(wave[:, :-1]) - wave[:, 1:])[:, 5:].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.02  # standing still would cost 0.03, the mean 0.5


# -- what attention buys ----------------------------------------------------------------------------------------------

BEGIN, END = 0, 1


def backwards(rows: int, least: int, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sources of 2 … 8, their lengths, and what is to be written: the same from its end, and END."""
    lengths = torch.randint(least, most + 1, (rows, 1))
    source, place = torch.randint(2, TARGETS, (rows, most)), torch.arange(most)
    back = source.gather(1, (lengths - 1 - place).clamp(min=0)).where(place < lengths, END)
    return source, lengths[:, 0], torch.cat((back, torch.full((rows, 1), END)), 1)


def learned(model: nn.Module, steps: int) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(steps):
        source, lengths, due = backwards(32, 2, 8)
        target = torch.cat((torch.full((32, 1), BEGIN), due[:, :-1]), 1)
        seen = torch.arange(due.shape[1]) <= lengths[:, None]
        loss = nn.functional.cross_entropy(model(source, target, padding(lengths))[seen], due[seen])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def share_right(model: Any, length: int) -> float:
    source, _, due = backwards(100, length, length)
    found = greedy(model, source, begin=BEGIN, end=END, limit=length + 1).tokens
    found = nn.functional.pad(found, (0, length + 1 - found.shape[1]), value=END)
    return (found == due)[:, :length].float().mean().item()


def test_attention_learns_to_align_where_one_state_is_too_small():
    torch.manual_seed(0)
    attentive = learned(BahdanauSequenceToSequence(TARGETS, TARGETS, 32), 120)
    bottleneck = learned(RecurrentSequenceToSequence(TARGETS, TARGETS, 32), 120)
    assert share_right(attentive, 8) > 0.8
    assert share_right(bottleneck, 8) < 0.5
    assert share_right(attentive, 3) > 0.95
    source, _, due = backwards(50, 8, 8)
    target = torch.cat((torch.full((50, 1), BEGIN), due[:, :-1]), 1)
    _, A = attentive(source, target, return_attention=True)
    beside = (A.argmax(-1)[:, 0, :8] - torch.arange(7, -1, -1)).abs()  # states know their neighbours as well
    assert (beside <= 1).float().mean() > 0.95


# -- compiled ---------------------------------------------------------------------------------------------------------


COMPILED = """
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from regard.masks import padding
from regard.nn.bahdanau import BahdanauSequenceToSequence
from regard.nn.luong import LuongSequenceToSequence
from regard.nn.steps import State

torch.manual_seed(0)
torch._dynamo.config.allow_rnn = True  # without it PyTorch's compiler stops at every nn.LSTM


def check(kind):
    def step(tokens, hidden):
        return model.step(tokens, State(hidden, memory))

    source, target = torch.randint(11, (3, 5)), torch.randint(9, (3, 2))
    model, counter = kind(11, 9, 8).eval(), CompileCounterWithBackend("aot_eager")
    with torch.no_grad():
        state = model.start(source, padding([5, 2, 1]))
        memory = state.memory
        compiled = torch.compile(step, backend=counter, fullgraph=True)
        for one in target.split(1, 1):
            torch.testing.assert_close(compiled(one, state.hidden), model.step(one, state))
    assert counter.frame_count == 1


check(BahdanauSequenceToSequence)
check(LuongSequenceToSequence)
print("one graph")
"""


def test_a_step_compiles_as_one_graph(tmp_path):
    """In a process of its own, without the checks of shapes that the test runner puts around regard."""
    script = tmp_path / "compiled.py"
    script.write_text(COMPILED)
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert ran.stdout == "one graph\n", ran.stderr


# -- scores as modules ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [1, 4])
def test_scores_are_those_of_their_parameters(heads):
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 6, 7)
    bilinear, additive = Bilinear(5, 7, heads), Additive(5, 7, 8, heads)
    assert bilinear() == scores.bilinear(bilinear.weight if heads > 1 else bilinear.weight[0]) or heads == 1
    torch.testing.assert_close(bilinear().between(query, key), query @ bilinear.weight @ key.mT)
    due = torch.tanh((query @ additive.w_query)[..., :, None, :] + (key @ additive.w_key)[..., None, :, :])
    due = (due * additive.v[:, None, None]).sum(-1)
    torch.testing.assert_close(additive().between(query, key), due)
    torch.testing.assert_close(additive(projected=True).between(query, additive.project(key)), due)


@pytest.mark.parametrize("make", [lambda: Bilinear(16, 24), lambda: Additive(16, 24, 32), lambda: Additive(16)])
def test_scores_begin_with_a_variance_near_one(make):
    torch.manual_seed(0)
    score = make()
    found = score().between(torch.randn(1, 1, 200, 16), torch.randn(1, 1, 200, score.key_dim))
    assert 0.3 < found.std() < 1.5


@pytest.mark.parametrize("score", [Bilinear(4, heads=2), Additive(4, heads=2), Additive(4, 4, 9)], ids=repr)
def test_scores_are_learned_in_a_layer(score):
    layer = CrossAttention(8, 2, score=score)
    layer(torch.randn(2, 3, 8), torch.randn(2, 5, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in score.parameters())
    assert {name.split(".")[0] for name in layer.state_dict()} >= {"score"}


def test_representations():
    assert repr(Bilinear(4, 6, 2)) == "Bilinear(dim=4, key_dim=6, heads=2)"
    assert repr(Additive(4, 6, 8)) == "Additive(dim=4, key_dim=6, hidden=8, heads=1)"
    assert "input_feeding=True" in repr(made("luong, concat, fed"))
    assert "score=cosine(0.5)" in repr(LuongSequenceToSequence(5, 5, 4, score=scores.cosine(0.5)))
