"""PyTorch's fused kernel as a backend: only where it is right, and mended where it is not."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import regard
from regard import backends, biases, scores
from regard.backends.fused import Fused
from regard.backends.tiled import Tiled
from regard.masks import causal, causal_from, dense, documents, full, padding, prefix, window
from regard.readouts import Entropy, LogSumExp, Received, TopK
from regard.testing import cases, check

Q, K, V = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 3)


@st.composite
def fusible(draw):
    """Cases that the kernel can take, or nearly: full, causal from anywhere, masks of keys, sinks, any score."""
    case = draw(cases(most=20))
    batch, keys = case.query.shape[0], case.key.shape[2]
    generator = torch.Generator().manual_seed(case.seed)
    keep = padding(keep=torch.rand(draw(st.sampled_from((1, batch))), keys, generator=generator) < 0.6)
    lengths = padding(draw(st.lists(st.integers(0, keys), min_size=batch, max_size=batch)))
    edge = draw(st.sampled_from((causal, full, causal_from(draw(st.integers(-6, 6))))))
    of_keys = draw(st.sampled_from((full, keep, lengths, ~prefix(draw(st.integers(0, keys))), keep | lengths)))
    offset = draw(st.one_of(st.none(), st.integers(-22, 22)))
    score = None if case.score is not None and "additive" in case.score.expression else case.score
    if score is None and case.query.shape[-1] != case.key.shape[-1]:
        score = scores.bilinear(torch.randn(case.query.shape[-1], case.key.shape[-1], generator=generator))
    mask = edge & of_keys
    return replace(case, mask=mask, offset=offset, score=score, bias=None, softcap=None, drop=None)


@settings(max_examples=250)
@given(case=fusible())
def test_what_is_chosen_meets_the_reference(case):
    """The output by the fused kernel, the rest by tiles with its log-sum-exp; forward and gradients."""
    check(None, case)


@settings(max_examples=100)
@given(case=cases(most=12))
def test_what_is_chosen_meets_the_reference_on_everything_else(case):
    check(None, case)


def test_it_is_really_used():
    seen = [0, 0]

    @settings(max_examples=100)
    @given(case=fusible())
    def look(case):
        A = regard.attention(case.query, case.key, **case.options())
        reasons = Fused().why_not(A.call)
        seen[bool(reasons)] += 1
        assert not reasons or any(word in reasons[0] for word in ("scale", "rough", "offset")), reasons

    look()
    assert seen[0] > seen[1]


class Spy:
    """Counts the readings of every backend."""

    def __init__(self, monkeypatch):
        self.ran: Counter[str] = Counter()
        for kind in (Fused, Tiled):
            read = kind.read

            def counted(backend, call, readouts, log_sum, read=read):
                self.ran[backend.name] += 1
                return read(backend, call, readouts, log_sum)

            monkeypatch.setattr(kind, "read", counted)


QUESTIONS = (
    (),
    (Entropy(),),
    (Received(),),
    (LogSumExp(),),
    (TopK(2), Entropy()),
    (Entropy(), Received()),
)


@pytest.mark.parametrize("mask", [full, causal, window(2), padding([3, 9]), causal & dense(torch.ones(5, 9).bool())], ids=str)
@pytest.mark.parametrize("asked", QUESTIONS, ids=str)
@pytest.mark.parametrize("grad", [False, True])
def test_explain_says_who_really_answers(monkeypatch, mask, asked, grad):
    A = regard.attention(Q.clone().requires_grad_(grad), K, mask=mask)
    said = A.explain(*asked) if asked else A.explain()
    spy = Spy(monkeypatch)
    if asked:
        A.read(*asked)
        expected = {line.backend for line in said.lines} | ({said.first} if said.first else set())
    else:
        _ = A @ V
        expected = {said.lines[0].backend}
    assert set(spy.ran) == expected
    assert all(count == 1 for count in spy.ran.values())


def test_reasons():
    def why(readout=None, **options):
        return "; ".join(Fused().why_not(regard.attention(Q, K, **options).call, readout))

    assert why() == ""
    assert why(mask=causal & padding([4, 9])) == ""
    assert why(mask=window(50)) == ""  # hides nothing here
    assert "not window(1)" in why(mask=window(1))
    assert "not documents" in why(mask=documents(torch.arange(9) // 4))
    assert "no bias" in why(bias=biases.alibi(4))
    assert "no softcap" in why(softcap=1.0)
    assert "Bahdanau" in why(score=scores.additive(torch.randn(8, 3), torch.randn(8, 3), torch.randn(3)))
    assert "scale above 0" in why(scale=-1.0)
    assert "its own offset" in why(offset=torch.tensor([1, 2]), mask=causal)
    assert "not entropy" in why(Entropy())
    assert "no run" in "; ".join(Fused().why_not(regard.attention(Q, K)[:, :, ::2].call))
    assert "the matrix is empty" in "; ".join(Fused().why_not(regard.attention(Q[..., :0, :], K).call))
    with pytest.raises(regard.Unsupported, match=r"backend 'fused' cannot answer: it answers the output .* not entropy"):
        regard.attention(Q, K, backend="fused").entropy()
    with pytest.raises(regard.Unsupported, match="no dropout"):
        _ = regard.attention(Q, K, backend="fused").dropout(0.5, 0) @ V


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_hidden_stays_hidden(bad):
    mask = causal & padding([9, 6])
    k, v = K.clone(), V.clone()
    k[1, :, 7], v[1, :, 8] = bad, bad
    A = regard.attention(Q, k, mask=mask)
    torch.testing.assert_close(A @ v, regard.attention(Q, K, mask=mask) @ V)
    assert "NaN or infinity" in Fused().why_not(A.call)[0]
    seen = regard.attention(Q, k) @ v  # everyone sees it: the kernel may, too
    assert bool(seen[1].isnan().any())
    assert bool(seen[0].isfinite().all())


def test_strides_and_shared_values():
    q, k, v = (t.transpose(-1, -2).contiguous().transpose(-1, -2) for t in (Q, K, V))
    assert q.stride(-1) != 1
    torch.testing.assert_close(regard.attention(q, k, backend="fused") @ v, regard.attention(Q, K, backend="reference") @ V)
    for heads in (1, 2, 4):
        value = torch.randn(2, heads, 9, 3)
        due = regard.attention(Q, K, backend="reference") @ value
        torch.testing.assert_close(regard.attention(Q, K, backend="fused") @ value, due)


@pytest.mark.parametrize("offset", [-7, -5, -2, 0, 1, 4, 7, 8, 20])
def test_parts_and_offsets(offset):
    A = regard.attention(Q, K, mask=causal, offset=offset, backend="fused")
    B = regard.attention(Q, K, mask=causal, offset=offset, backend="reference")
    torch.testing.assert_close(A @ V, B @ V)
    torch.testing.assert_close(A.logsumexp(), B.logsumexp())
    torch.testing.assert_close(A[..., 1:4, 2:7] @ V[..., 2:7, :], B[..., 1:4, 2:7] @ V[..., 2:7, :])


def test_second_derivatives_go_through():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    sinks = torch.randn(2, dtype=torch.float64, requires_grad=True)

    def ask(q, k, v, sinks):
        return regard.attention(q, k, mask=causal, sinks=sinks, backend="fused") @ v

    assert torch.autograd.gradcheck(ask, (q, k, v, sinks))
    assert torch.autograd.gradgradcheck(ask, (q, k, v, sinks))


def test_the_choice_weighs_what_a_mask_saves():
    """A mask of keys saves the kernel nothing: tiles skip what nobody sees."""
    q = torch.randn(1, 1, 2048, 8)
    for keys, name in ((64, "tiled"), (2000, "fused")):
        A = regard.attention(q, q, mask=padding([keys]))
        assert backends.choose(A.call, LogSumExp(), None).name == name
