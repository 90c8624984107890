"""Mass, columns, pooled pictures and long top-k: their meaning, gradients, parts, padding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import regard
from regard.backends.tiled import Tiled
from regard.masks import causal, causal_from, full, padding, window
from regard.readouts import Columns, Mass, Pool, Readout, Received, Rows, TopK
from regard.testing import Case, cases, check
from regard.testing.conformance import made_to_measure

SMALL = Tiled(elements=256, columns=8, grain=4, least_rows=3)
BACKENDS = (SMALL, "reference")
POOLS = (Pool((1, 1), "max"), Pool((3, 2), "max"), Pool((30, 4), "max"), Pool((4, 30), "sum"), Pool((2, 3)))


def qk(*shape: int, keys: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    *lead, queries, dim = shape
    return torch.randn(*lead, queries, dim, dtype=dtype), torch.randn(*lead, keys, dim, dtype=dtype)


@pytest.mark.shapes
@settings(max_examples=40)
@given(case=cases(), picked=st.integers(0, 7))
def test_each_alone_meets_the_reference(case: Case, picked: int):
    """Answers and gradients, each question alone, so that no other's gradient can hide a fault."""
    questions = (*POOLS, *made_to_measure(case))
    check(SMALL, case, [questions[picked]])


@pytest.mark.parametrize("mask", [full, causal, window(2, 1), causal_from(-2)], ids=str)
@pytest.mark.parametrize(
    "question",
    [Mass([0, 2, 2, 0, 1, 4, 0]), Mass(torch.tensor([[0, 1] * 3 + [1], [1] * 7]), 3), Columns((5, 0, 5)), Rows((1, 1, 4)),
     Pool((2, 3), "max"), Pool((2, 3)), Pool((9, 2), "sum"), Pool((1, 1), "max")],
    ids=str,
)  # fmt: skip
def test_gradcheck(question: Readout, mask: regard.masks.Mask):
    query, key = (t.requires_grad_() for t in qk(2, 2, 5, 3, keys=7, dtype=torch.float64))

    def ask(query, key):
        A = regard.attention(query, key, mask=mask, backend=Tiled(elements=24, columns=3, grain=1, least_rows=2))
        return A.read(question)[question]

    assert torch.autograd.gradcheck(ask, (query, key))


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
def test_mass_of_documents_by_hand(backend):
    A = regard.attention(*qk(2, 3, 4, 8, keys=6), mask=causal, backend=backend)
    W = A.to_dense()
    segments = torch.tensor([0, 0, 3, 1, 1, 1])
    mass = A.read(Mass(segments, 5)).mass
    assert mass.shape == (2, 3, 4, 5)
    assert_close(mass, torch.stack([W[..., segments == s].sum(-1) for s in range(5)], -1))
    assert (mass[..., [2, 4]] == 0).all()
    assert_close(mass.sum(-1), torch.ones(2, 3, 4))
    own = torch.stack([segments, segments.flip(0)]).to(torch.int32)
    assert_close(A.read(Mass(own)).mass[1], torch.stack([W[1][..., own[1] == s].sum(-1) for s in range(4)], -1))


@pytest.mark.parametrize("count", [3, 60, 300])
def test_many_segments_in_a_tile(count):
    """Few are multiplied with an indicator, many added cell by cell, of shared or own rows."""
    query, key = qk(2, 2, 40, 8, keys=300)
    A = regard.attention(query, key, mask=causal)
    for rows in (1, 2):
        segments = torch.randint(0, count, (rows, 300))
        exact = regard.attention(query, key, mask=causal, backend="reference").read(Mass(segments, count)).mass
        assert_close(A.read(Mass(segments, count)).mass, exact)


def test_the_segments_of_a_mass_are_its_own():
    segments = torch.tensor([0, 1, 1])
    question = Mass(segments)
    segments.zero_()
    A = regard.attention(*qk(2, 4, keys=3))
    assert question.count == 2
    assert_close(A.read(question).mass[..., 0], A.to_dense()[..., 0])
    assert repr(question) == "Mass(count=2)"


def test_mass_without_keys():
    A = regard.attention(torch.zeros(2, 4), torch.zeros(0, 4))
    assert A.read(Mass([])).mass.shape == (2, 0)
    assert A.read(Mass([], 3)).mass.tolist() == [[0, 0, 0]] * 2


def test_a_row_without_keys_has_no_mass_and_no_gradient():
    query, key = (t.requires_grad_() for t in qk(1, 1, 4, 8, keys=4))
    A = regard.attention(query, key, mask=causal_from(-2), backend=SMALL)
    reading = A.read(Mass([0, 1, 1, 0]), Columns((0, 3)), Pool((4, 4), "max"))
    assert (reading.mass[..., :2, :] == 0).all()
    assert (reading.columns[..., :2, :] == 0).all()
    assert (reading.pool[..., :2, :] == 0).all()
    gradients = torch.autograd.grad(sum(answer.square().sum() for _, answer in reading.items()), (query, key))
    assert (gradients[0][..., :2, :] == 0).all()
    assert all(bool(g.isfinite().all()) and bool(g.any()) for g in gradients)


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
def test_parts_of_the_matrix_have_their_own_segments_and_columns(backend):
    A = regard.attention(*qk(3, 2, 9, 8, keys=11), mask=causal, backend=backend)
    W = A.to_dense()
    segments = torch.randint(0, 4, (3, 11))
    assert_close(A.read(Mass(segments, 4)).mass[1:, :, 2:5], A[1:, :, 2:5].read(Mass(segments[1:], 4)).mass)
    cut = A[..., 3:8]  # keeps the log-sum-exp of all keys
    due = torch.stack([torch.where(segments[:, None, None, 3:8] == s, W[..., 3:8], 0).sum(-1) for s in range(4)], -1)
    assert_close(cut.read(Mass(segments[:, 3:8], 4)).mass, due)
    assert_close(cut.read(Columns((4, 0))).columns, W[..., [7, 3]])
    assert_close(cut.read(Pool((1, 1), "max")).pool[..., 0, 0], W[..., 3:8].amax((-1, -2)))
    with pytest.raises(regard.ShapeError, match="one entry for each of 5 keys"):
        cut.read(Mass(segments, 4))


def test_padding_changes_no_mass():
    query, key = qk(2, 3, 9, 8, keys=9)
    segments = torch.randint(0, 3, (2, 9))
    padded = regard.attention(query, key, mask=padding((9, 5)), backend=SMALL).read(Mass(segments, 3), Columns((1, 4)))
    for b, n in enumerate((9, 5)):
        alone = regard.attention(query[b, :, :n], key[b, :, :n]).read(Mass(segments[b, :n], 3), Columns((1, 4)))
        assert_close(padded.mass[b, :, :n], alone.mass)
        assert_close(padded.columns[b, :, :n], alone.columns)


def test_columns_and_rows_are_those_of_the_matrix():
    A = regard.attention(*qk(2, 3, 9, 8, keys=11), mask=causal, backend=SMALL)
    reading = A.read(Columns((10, 0, 10)), Rows((8, 0, 8)), Received())
    assert_close(reading.columns, A.to_dense()[..., [10, 0, 10]])
    assert_close(reading.rows, A.to_dense()[..., [8, 0, 8], :])
    assert A.read(Columns(())).columns.shape == (2, 3, 9, 0)


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
def test_of_equal_maxima_one_cell_gets_the_gradient(backend):
    """All weights are equal: the first cell of the first column is taken, whatever the tiles."""
    query, key = torch.zeros(20, 1, requires_grad=True), torch.ones(20, 1, requires_grad=True)
    picture = regard.attention(query, key, backend=backend).pool((1, 2), "max")
    assert_close(picture, torch.full((1, 2), 0.05))
    (gradient,) = torch.autograd.grad(picture[0, 1], query, retain_graph=True)
    assert gradient.shape == (20, 1)
    (gradient,) = torch.autograd.grad(picture[0, 1], key)
    assert (gradient == 0).all()  # the query is 0
    key = torch.ones(20, 1)
    query = torch.ones(20, 1, requires_grad=True)
    weights = torch.linspace(0, 1, 20)[:, None]
    other = torch.cat((key, weights), 1).requires_grad_()
    asked = torch.cat((query, torch.zeros(20, 1)), 1)
    picture = regard.attention(asked, other, backend=backend).pool((1, 1), "max")
    (gradient,) = torch.autograd.grad(picture.sum(), other)
    assert gradient[:, 0].abs().argmax() == 0
    assert gradient[0, 0] > 0
    assert (gradient[1:, 0] < 0).all()


def test_a_maximum_reaches_the_query_that_has_it():
    query, key = (t.requires_grad_() for t in qk(1, 1, 12, 4, keys=12))
    A = regard.attention(query, key, mask=causal, backend=SMALL)
    place = int(A.to_dense()[0, 0, 6:].detach().amax(-1).argmax()) + 6
    (gradient,) = torch.autograd.grad(A.pool((2, 1), "max")[0, 0, 1, 0], query)
    assert gradient[0, 0].abs().sum(-1).nonzero()[:, 0].tolist() in ([place], [])
    dense = A.to_dense()
    (due,) = torch.autograd.grad(dense[0, 0, 6:].max(), query)
    assert_close(gradient, due)


def test_what_a_query_may_not_see_reaches_no_bin_of_others():
    query, key = qk(20, 4, keys=20)
    key[13] = float("nan")
    A = regard.attention(query, key, mask=causal, backend=SMALL)
    clean = regard.attention(query[:13], key[:13], mask=causal)
    for how in ("sum", "mean", "max"):
        found = A.pool((20, 20), how)
        assert_close(found[:13, :13], clean.to_dense())
        assert found[13:, :13].isnan().all()
        assert (found[:13, 13:] == 0).all()
    assert A.pool((4, 4))[:2].isfinite().all()


def test_pictures_of_long_texts_need_no_matrix():
    n = 3000
    x = torch.randn(n, 4, requires_grad=True)
    with regard.testing.Largest() as largest:
        reading = regard.attention(x, x, mask=causal & window(100, 0), backend=Tiled(elements=1 << 13, columns=64)).read(
            Pool((64, 64), "max"), Mass(torch.arange(n) // 10), Columns((0, n - 1))
        )
        (reading.pool.sum() + reading.mass.square().sum() + reading.columns.sum()).backward()
    assert largest.elements <= n * n // 10  # the mass itself, 300 segments


def test_more_of_the_strongest_than_there_are_keys():
    A = regard.attention(*qk(2, 4, keys=3), backend=SMALL)
    strongest = A.topk(1000)
    assert strongest.indices.shape == (2, 1000)
    assert (strongest.indices[:, 3:] == -1).all()
    for backend in BACKENDS:
        with pytest.raises(regard.TooLarge, match="ask for k = 3 at most"):
            regard.attention(*qk(2, 4, keys=3), backend=backend).read(TopK(10**12))
