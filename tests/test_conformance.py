"""Every backend against the float64 reference, over drawn problems; and the suite against backends that are wrong."""

from __future__ import annotations

import os
from dataclasses import replace

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import regard
from regard import biases, products, scores
from regard.backends.reference import Reference, dense
from regard.backends.tiled import Tiled
from regard.dropout import Dropout
from regard.masks import causal, causal_from, full, padding, window
from regard.testing import FAULTS, QUESTIONS, Case, Largest, Mismatch, cases, check
from regard.testing.conformance import answers, compare, questions_for
from regard.testing.faults import Faulty
from regard.testing.strategies import DTYPES

SMALL = Tiled(elements=256, columns=8, grain=4, least_rows=3)  # many tiles even on small problems


def draws(count: int) -> int:
    """How many problems to draw: ten times as many where HYPOTHESIS_PROFILE=long."""
    return count * (10 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 1)


BACKENDS = {"tiled": Tiled(), "tiled, small tiles": SMALL}


@pytest.mark.shapes
@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
@settings(max_examples=draws(100))
@given(case=cases())
def test_meets_the_reference(backend, case):
    """Every question at once."""
    check(backend, case)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=draws(1250))
@given(data=st.data())
def test_thousands_of_calls(dtype, data):
    """mask × bias × score × softcap × sinks × dropout × readout, forward and gradients: 5,000 calls, 50,000 where long."""
    case = data.draw(cases(dtypes=(dtype,), most=12))
    questions = questions_for(case)
    check(SMALL, case, [questions[data.draw(st.integers(0, len(questions) - 1))]])


@pytest.mark.shapes
def test_shapes_in_signatures_are_checked():
    """The marker does something."""
    with pytest.raises(jaxtyping.TypeCheckError, match="columns"):
        products.dots(torch.zeros(1, 1, 2, 3), torch.zeros(1, 2, 3))


@pytest.mark.shapes
@pytest.mark.parametrize("empty", ["batch", "heads", "queries", "keys"])
@pytest.mark.parametrize("mask", [full, causal, padding([2])], ids=str)
def test_zero_sizes(empty, mask):
    size = {"batch": 2, "heads": 2, "queries": 3, "keys": 4} | {empty: 0}
    lead = (size["batch"], size["heads"])
    q, k, v, r = (torch.randn(*lead, size[n], 3) for n in ("queries", "keys", "keys", "queries"))
    questions = [q for q in QUESTIONS if q.name != "rows" or size["queries"]]
    check(SMALL, Case(q, k, v, r, mask, None, None, 0), questions)


def _typical(queries: int = 20, keys: int = 20, mask: regard.masks.Mask = causal, seed: int = 0) -> Case:
    torch.manual_seed(seed)
    q, k = torch.randn(2, 4, queries, 8), torch.randn(2, 2, keys, 8)
    rest = {"bias": biases.alibi(torch.rand(4)), "softcap": 2.0, "sinks": torch.randn(4), "drop": Dropout(0.5, seed)}
    return Case(q, k, torch.randn(2, 2, keys, 5), torch.randn(2, 4, queries, 2), mask, None, None, seed, **rest)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.fault)
def test_planted_faults_are_caught(fault):
    case = _typical(14, 20, causal & window(6))
    check(Tiled(), case)
    with pytest.raises(Mismatch):
        check(fault, case)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.fault)
def test_planted_faults_are_caught_by_drawn_cases(fault):
    """The strategy reaches the places where each fault shows."""

    def caught(case: Case) -> bool:
        try:
            check(fault, case)
        except Mismatch:
            return True
        return False

    seen = [False]

    @settings(max_examples=draws(150))
    @given(case=cases(dtypes=(torch.float32,)))
    def look(case):
        seen.append(any(seen) or caught(case))

    look()
    assert any(seen), f"{fault.fault}: none of {len(seen)} drawn cases shows it"


def test_a_wrong_answer_is_reported_with_error_and_budget():
    with pytest.raises(Mismatch, match=r"error .*, budget "):
        check(Faulty("scale", lambda call: replace(call, scale=0.5)), _typical())


@settings(max_examples=draws(60))
@given(case=cases(dtypes=(torch.float32,)), bad=st.sampled_from((float("nan"), float("inf"))), data=st.data())
def test_what_is_hidden_from_everyone_reaches_nothing(case, bad, data):
    """NaN or inf in keys and values that no query sees: answers and gradients are those of clean tensors."""
    keys = case.key.shape[2]
    hidden = data.draw(st.sets(st.integers(0, keys - 1), min_size=1))
    keep = torch.tensor([[j not in hidden for j in range(keys)]])
    case = replace(case, mask=case.mask & padding(keep=keep))
    key, value = case.key.clone(), case.value.clone()
    key[:, :, ~keep[0]] = bad
    value[:, :, ~keep[0]] = bad
    exact = answers(Reference(), case.with_tensors(*(t.double() for t in case.tensors)), QUESTIONS)
    plain = answers(Reference(), case, QUESTIONS)
    planted = answers(SMALL, replace(case, key=key, value=value), [q for q in QUESTIONS if q.name != "rows"])
    due = [(e, p) for e, p in zip(exact, plain, strict=True) if e.name != "rows"]
    forward = [(e, p, g) for (e, p), g in zip(due, planted, strict=True) if "gradient" not in g.name]
    for e, p, g in forward:
        if "found there" not in g.name:  # the reference cannot look up weights among NaN
            compare(case, e, p, g)
    for g in planted:
        if "gradient" in g.name:
            assert bool(torch.isfinite(g.tensor).all()), g.name


@settings(max_examples=draws(80))
@given(case=cases(dtypes=(torch.float32,)), data=st.data())
def test_what_is_hidden_from_a_query_does_not_reach_it(case, data):
    """NaN in a key and its value: rows that do not see the key are untouched, rows that do are NaN."""
    j = data.draw(st.integers(0, case.key.shape[2] - 1))
    arguments = {**case.options(), "backend": SMALL}
    clean = regard.attention(case.query, case.key, **arguments)
    seen = dense(clean.call, None).seen[..., j]
    key, value = case.key.clone(), case.value.clone()
    key[:, :, j] = float("nan")
    value[:, :, j] = float("nan")
    for A in (regard.attention(case.query, key, **arguments), clean):
        got, due = A @ value, clean @ case.value
        assert torch.equal(got[~seen], due[~seen])
        assert bool(got[seen].isnan().all())


SIZE = 600


@pytest.mark.parametrize(
    "mask",
    [full, causal, causal_from(5), window(40), padding([SIZE - 7]), ~causal, causal & window(30) | padding([9]),
     regard.masks.dense(torch.rand(SIZE, SIZE) < 0.5), regard.masks.where(lambda b, h, i, j: (i + j) % 3 > 0)],
    ids=lambda m: m.expression,
)  # fmt: skip
def test_no_operator_returns_a_matrix(mask):
    """Forward and backward of every question: no tensor of queries × keys elements, nor of a quarter of it."""
    x = torch.randn(1, 1, SIZE, 4, requires_grad=True)
    A = regard.attention(x, x, mask=mask, backend=Tiled(elements=1 << 13, columns=64, grain=32))
    with Largest() as largest:
        reading = A.read(*(q for q in QUESTIONS if q.name != "weights"), value=x)
        tensors = [(A.mT @ x), A[..., 3:9].entropy(), A[0, 0, 5]]
        for question, answer in reading.items():
            if getattr(question, "reduce", None) != "max":
                tensors.append(answer if isinstance(answer, torch.Tensor) else answer.values)
        sum(t.masked_fill(t.isneginf(), 0).sum() for t in tensors).backward()
    assert largest.elements < SIZE * SIZE // 4, largest.by


def test_the_watch_sees_a_matrix():
    x = torch.randn(1, 1, SIZE, 4)
    with Largest() as largest:
        regard.attention(x, x, backend="reference").entropy()
    assert largest.elements == SIZE * SIZE


def test_gradcheck():
    """The hand-written backward against finite differences, for output, A.mT @ r, log-sum-exp, entropy and received."""
    torch.manual_seed(0)
    q, k = torch.randn(1, 2, 5, 3, dtype=torch.float64), torch.randn(1, 1, 6, 3, dtype=torch.float64)
    v, r = torch.randn(1, 2, 6, 2, dtype=torch.float64), torch.randn(1, 2, 5, 2, dtype=torch.float64)
    for t in (q, k, v, r):
        t.requires_grad_()

    def ask(q, k, v, r):
        A = regard.attention(q, k, mask=window(2, 1), backend=SMALL)
        reading = A.read(regard.readouts.LogSumExp(), regard.readouts.Entropy(), regard.readouts.Received(), value=v)
        return reading.output, A.mT @ r, reading.logsumexp, reading.entropy, reading.received

    assert torch.autograd.gradcheck(ask, (q, k, v, r))


SCORES = {
    "dot": lambda t: None,
    "cosine": lambda t: scores.cosine(t(2).abs() + 0.5),
    "bilinear": lambda t: scores.bilinear(t(2, 3, 3)),
    "distance": lambda t: scores.distance(),
    "additive": lambda t: scores.additive(t(2, 3, 4), t(3, 4), t(4)),
}


@pytest.mark.parametrize("part", [False, True], ids=["whole", "part of the keys"])
@pytest.mark.parametrize("of", SCORES)
def test_gradcheck_and_gradgradcheck(of, part):
    """Output and log-sum-exp by everything that they are made of: first and second derivatives."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    q, k, v, sinks, table = drawn(1, 2, 4, 3), drawn(1, 1, 5, 3), drawn(1, 1, 5, 2), drawn(2), drawn(2, 5)
    score = SCORES[of](drawn)
    held = score.tensors() if score else ()
    slopes = drawn(2)

    def ask(q, k, v, sinks, table, slopes, *held):
        bias = biases.relative(table) + biases.alibi(slopes) + biases.alibi(2)
        own = score.with_tensors(*held) if score else None
        A = regard.attention(q, k, mask=window(2, 1), bias=bias, score=own, softcap=2.0, sinks=sinks, backend=SMALL)
        A = A.dropout(0.3, 5)
        if part:
            A, v = A[..., 1:4], v[..., 1:4, :]
        reading = A.read(regard.readouts.LogSumExp(), value=v)
        return reading.output, reading.logsumexp

    tensors = [t.clone().requires_grad_() for t in (q, k, v, sinks, table, slopes, *held)]
    assert torch.autograd.gradcheck(ask, tensors)
    assert torch.autograd.gradgradcheck(ask, tensors)


def test_third_derivatives_and_second_ones_of_other_questions_are_refused_not_wrong():
    x = torch.randn(4, 3, requires_grad=True)
    A = regard.attention(x, x, backend="tiled")
    (first,) = torch.autograd.grad((A @ x).pow(2).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(2).sum(), x, create_graph=True)
    with pytest.raises(regard.Unsupported, match="first and second derivatives of the output"):
        second.sum().backward()
    (first,) = torch.autograd.grad(A.entropy().sum(), x, create_graph=True)
    with pytest.raises(regard.Unsupported, match="gradients of gradients of the output and the log-sum-exp only"):
        first.sum().backward()
    A = regard.attention(x, x, backend="reference")
    (first,) = torch.autograd.grad(A.entropy().sum(), x, create_graph=True)
    first.sum().backward()
    assert x.grad is not None
