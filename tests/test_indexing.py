"""A[…] against the same index on the dense matrix: numbers, lazy parts, every readout of a part, and gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import regard
from regard.backends.tiled import Tiled
from regard.checks import TooLarge
from regard.masks import Mask, causal, full, padding, window
from regard.readouts import Diagonal, Entropy, LogSumExp, Max, Pool, Received, TopK
from regard.testing.strategies import Sizes, drawn_masks

SMALL = Tiled(elements=64, columns=4, grain=2, least_rows=2)  # several tiles even in a small matrix

MANY = settings(max_examples=2 * settings.default.max_examples)
SHAPES = {  # leading dimensions of query and key
    "plain": ((), ()),
    "3-D": ((3,), (3,)),
    "4-D": ((2, 3), (2, 3)),
    "5-D": ((2, 2, 2), (2, 2, 2)),
    "grouped": ((2, 4), (2, 2)),
    "grouped 6-D": ((1, 2, 2, 4), (1, 2, 2, 2)),
    "one key head": ((3,), (1,)),
}


@dataclass(frozen=True)
class Problem:
    """A lazy matrix and all that a dense one knows: weights, log-sum-exp, who is seen, positions and key numbers."""

    A: regard.Attention
    known: dict[str, Tensor]  # each of the matrix's shape
    inputs: tuple[Tensor, Tensor]

    def __getitem__(self, index: Any) -> Problem:
        return Problem(self.A[index], {name: t[in_torch(index)] for name, t in self.known.items()}, self.inputs)


def in_torch(index: Any) -> Any:
    """The index as torch takes it: lists as tensors."""
    items = index if isinstance(index, tuple) else (index,)
    return tuple(
        torch.as_tensor(i, dtype=None if len(i) else torch.int64) if isinstance(i, list | np.ndarray) else i for i in items
    )


@dataclass(frozen=True)
class Drawn:
    """What a matrix is built of."""

    q: Tensor
    k: Tensor
    mask: Mask
    offset: int | Tensor | None

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        shapes = f"query {tuple(self.q.shape)}, key {tuple(self.k.shape)}"
        printer.text(f"Drawn({shapes}, {self.mask.expression}, offset {self.offset})")


def built(drawn: Drawn) -> Problem:
    """Built in the test, not while it is drawn: what is drawn must not depend on how the matrix is checked."""
    q, k, mask, offset = drawn.q, drawn.k, drawn.mask, drawn.offset
    A = regard.attention(q, k, mask=mask, offset=offset, backend=SMALL)
    R = regard.attention(q, k, mask=mask, offset=offset, backend="reference")
    weights = R.to_dense()
    batch, heads, queries, keys = A.call.shape
    shift = keys - queries if offset is None else offset
    shift = shift.reshape(-1, 1, 1, 1) if isinstance(shift, Tensor) else shift
    place = (torch.arange(queries)[:, None] + shift).expand(batch, heads, queries, keys).reshape(A.shape)
    seen = mask.to_dense(queries, keys, batch, heads, offset).reshape(A.shape)
    number = torch.arange(keys).expand(A.shape)
    return Problem(
        A,
        {
            "weights": weights,
            "lse": R.logsumexp()[..., None].expand(A.shape),
            "seen": seen,
            "place": place,
            "number": number,
        },
        (q, k),
    )


@st.composite
def problems(draw, shapes=tuple(SHAPES), gradients: bool = False) -> Drawn:
    lead, key_lead = SHAPES[draw(st.sampled_from(shapes))]
    queries, keys, dim = draw(st.integers(1, 7)), draw(st.integers(1, 7)), draw(st.integers(1, 4))
    batch, heads = math.prod(lead[:-1]), lead[-1] if lead else 1
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    q = torch.randn(*lead, queries, dim, generator=generator, dtype=torch.float64).requires_grad_(gradients)
    k = torch.randn(*key_lead, keys, dim, generator=generator, dtype=torch.float64).requires_grad_(gradients)
    numbers = st.integers(-queries, keys)
    per_row = st.lists(numbers, min_size=batch, max_size=batch).map(torch.tensor)
    mask = draw(drawn_masks(Sizes(batch, heads, 1, queries, keys, 1, 1)))
    return Drawn(q, k, mask, draw(st.none() | numbers | per_row))


@st.composite
def slices(draw, size: int) -> slice:
    if draw(st.booleans()):  # any, among them empty ones and those that reach beyond
        ends = st.none() | st.integers(-size - 2, size + 2)
        return slice(draw(ends), draw(ends), draw(st.none() | st.integers(1, 3)))
    start = draw(st.integers(0, max(size - 1, 0)))
    return slice(start, draw(st.integers(start + 1, size + 1)), draw(st.sampled_from((None, 1, 2))))


def integers(size: int) -> st.SearchStrategy[Any]:
    return st.integers(-size, size - 1).flatmap(lambda i: st.sampled_from((i, torch.tensor(i), np.int64(i))))


@st.composite
def picks(draw, size: int, most: int = 2) -> Any:
    """Several places along a dimension of that size."""
    kind = draw(st.sampled_from(("list", "tensor", "array", "marked", "marked list") + ("table",) * (most > 1)))
    if kind.startswith("marked"):
        marks = draw(st.lists(st.booleans(), min_size=size, max_size=size))
        return marks if kind == "marked list" and size else torch.tensor(marks, dtype=torch.bool)
    if kind == "table":
        shape = draw(st.sampled_from(((2, 2), (1, 3), (2, 1), (0, 2))))
        count = math.prod(shape)
        numbers = draw(st.lists(st.integers(-size, size - 1), min_size=count, max_size=count)) if size else []
        return torch.tensor(numbers, dtype=torch.int64).reshape(shape if size else (0, 2))
    numbers = draw(st.lists(st.integers(-size, size - 1), max_size=4)) if size else []
    if kind == "list":
        return numbers
    return torch.tensor(numbers, dtype=torch.int64) if kind == "tensor" else np.array(numbers, dtype=np.int64)


@st.composite
def indices(draw, shape: tuple[int, ...], lazy: bool = False) -> tuple:
    """An index for a matrix of that shape; lazy ones keep queries and keys as slices."""
    last = len(shape) - 2
    items: list[Any] = [
        draw(slices(n) | integers(n) if n and not (lazy and dim >= last) else slices(n)) for dim, n in enumerate(shape)
    ]
    how = draw(st.sampled_from(("none", "one") if lazy else ("none", "one", "pair")))
    if how == "pair":
        rows = draw(picks(shape[-2], most=1))
        count = len(in_torch(rows)[0].nonzero() if torch.as_tensor(rows).dtype == torch.bool else rows)
        places = draw(st.lists(st.integers(-shape[-1], shape[-1] - 1), min_size=count, max_size=count))
        columns = torch.tensor(places, dtype=torch.int64)
        items[-2:] = [
            rows,
            draw(st.sampled_from((columns, columns[:, None], columns[:1])) if count else st.just(columns)),
        ]
    elif how == "one" and (last or not lazy):
        dim = draw(st.integers(0, (last if lazy else len(shape)) - 1))
        items[dim] = draw(picks(shape[dim], most=1 if dim == last - 1 else 2))
    if how != "pair" and draw(st.booleans()):  # leave some out, by an ellipsis or at the end
        first = draw(st.integers(0, len(shape)))
        stop = draw(st.integers(first, len(shape)))
        return (*items[:first], ..., *items[stop:])
    return tuple(items[: draw(st.integers(1, len(items)))] if how == "none" else items)


def same(found: Any, due: Tensor, tolerance: float = 1e-12, name: str = "") -> None:
    assert tuple(found.shape) == tuple(due.shape), name
    torch.testing.assert_close(found, due, rtol=1e-9, atol=tolerance, msg=lambda text: f"{name}: {text}")


# -- numbers ----------------------------------------------------------------------------------------------------------


@MANY
@given(problems(), st.booleans(), st.data())
def test_an_index_means_what_it_means_on_the_dense_matrix(drawn, warm, data):
    """Whether or not the matrix has remembered its log-sum-exp."""
    problem = built(drawn)
    if warm:
        problem.A.logsumexp()
    assume(all(problem.A.shape))
    index = data.draw(indices(tuple(problem.A.shape)))
    found, due = problem.A[index], problem.known["weights"][in_torch(index)]
    if isinstance(found, regard.Attention):
        assert found.shape == due.shape
        found = found.to_dense()
    same(found, due)


@given(problems(), st.data())
def test_numbers_where_queries_or_keys_are_picked_and_lazy_elsewhere(drawn, data):
    problem = built(drawn)
    index = data.draw(indices(tuple(problem.A.shape), lazy=True))
    part = problem.A[index]
    assert isinstance(part, regard.Attention)
    assert part.dtype == problem.A.dtype
    assert part.backend is problem.A.backend
    for one in ((0, slice(None)), (slice(None), [0]), (slice(None), -1), ([0, 0], [0, 0])):
        if part.shape[-1] and part.shape[-2]:
            assert isinstance(part[(..., *one)], Tensor)


def test_indices_by_name():
    """What people write, written out."""
    torch.manual_seed(0)
    q, k = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 6, 8)
    A = regard.attention(q, k, mask=causal)
    W = regard.attention(q, k, mask=causal, backend="reference").to_dense()
    for found, due in (
        (A[0, 3, 2], W[0, 3, 2]),
        (A[0, 3, 2, 1], W[0, 3, 2, 1]),
        (A[..., 4], W[..., 4]),
        (A[..., [0, 2], :], W[..., [0, 2], :]),
        (A[..., [0, 2], 3], W[..., [0, 2], 3]),
        (A[..., 3, [0, 2]], W[..., 3, [0, 2]]),
        (A[..., [0, 2], [1, 3]], W[..., [0, 2], [1, 3]]),
        (A[0, :, [0, 2], 1:4], W[0, :, [0, 2], 1:4]),
        (A[:, 1, [[0], [2]], [1, 3, 5]], W[:, 1, [[0], [2]], [1, 3, 5]]),
        (A[1, 1, range(3)], W[1, 1, 0:3]),
        (A[-1, -2][-1, -3], W[-1, -2, -1, -3]),
    ):
        same(found, due, 1e-6)


def test_many_pairs_are_looked_up_in_batches():
    torch.manual_seed(0)
    q, k = torch.randn(2, 300, 4, dtype=torch.float64), torch.randn(2, 310, 4, dtype=torch.float64)
    A = regard.attention(q, k, mask=causal & window(100, 0))
    W = A.to_dense()
    i, j = torch.randint(300, (7, 50)), torch.randint(310, (50,))
    same(A[..., i, j], W[..., i, j])


def test_iterating_is_indexing():
    x = torch.randn(2, 3, 4, 5)
    A = regard.attention(x, x)
    heads = [head for row in A for head in row]
    assert len(A) == 2
    assert [h.shape for h in heads] == [(4, 4)] * 6
    same(torch.stack([h.to_dense() for h in heads]), A.to_dense().flatten(0, 1))
    same(torch.stack(list(heads[0])), A.to_dense()[0, 0])


# -- parts ------------------------------------------------------------------------------------------------------------


def parts(problem: Problem, data: st.DataObject, depth: int) -> Problem:
    """A slice of a slice, each perhaps after the matrix has remembered its log-sum-exp."""
    for _ in range(depth):
        if data.draw(st.booleans()):
            problem.A.entropy()
        problem = problem[data.draw(indices(tuple(problem.A.shape), lazy=True))]
    return problem


DIAGONALS = (0, -1)
POOLS = (((2, 3), "mean"), ((5, 1), "sum"), ((3, 2), "max"))


def by_definition(known: dict[str, Tensor], v: Tensor, r: Tensor) -> dict[str, Tensor]:
    """Every readout of a part, from the weights that the parent gave it."""
    W, seen = known["weights"], known["seen"]
    lead, (queries, keys) = W.shape[:-2], W.shape[-2:]
    logs = torch.where(seen, (W.clamp_min(1e-300)).log(), 0.0)
    padded = torch.nn.functional.pad(torch.where(seen, W, -1.0), (0, 3), value=-1.0)
    top, order = padded.sort(dim=-1, descending=True, stable=True)
    top, order = top[..., :3], torch.where(top[..., :3] < 0, -1, order[..., :3])
    answers = {
        "A @ v": W @ v,
        "A.mT @ r": W.mT @ r,
        "sum(-1)": W.sum(-1),
        "sum(-2)": W.sum(-2),
        "entropy": -(W * logs).sum(-1),
        "topk values": top.clamp_min(0),
        "topk indices": order,
        "amax": top[..., 0].clamp_min(0),
        "argmax": order[..., 0],
        "dense": W,
    }
    for o in DIAGONALS:
        answers[f"diagonal({o})"] = torch.where(known["number"] == known["place"] + o, W, 0).sum(-1)
    if queries:
        answers["mean(-2)"] = W.mean(-2)
    if keys:
        answers["mean(-1)"] = W.mean(-1)
        answers["logsumexp"] = known["lse"][..., 0]
    for bins, reduce in POOLS:
        rows, columns = (
            [slice(a * n // b, (a + 1) * n // b) for a in range(b)] for n, b in zip((queries, keys), bins, strict=True)
        )
        of = {"sum": torch.sum, "mean": torch.mean, "max": torch.amax}[reduce]
        cells = [W[..., i, j] for i in rows for j in columns]
        numbers = [of(cell, (-2, -1)) if cell.shape[-2] * cell.shape[-1] else W.new_zeros(lead) for cell in cells]
        answers[f"pool {bins} {reduce}"] = torch.stack(numbers, -1).unflatten(-1, bins)
    return answers


def asked(A: regard.Attention, v: Tensor, r: Tensor, maxima: bool = True) -> dict[str, Tensor]:
    """The same of the lazy matrix."""
    top = A.topk(3)
    answers = {
        "A @ v": A @ v,
        "A.mT @ r": A.mT @ r,
        "sum(-1)": A.sum(-1),
        "sum(-2)": A.sum(-2),
        "entropy": A.entropy(),
        "topk values": top.values,
        "topk indices": top.indices,
        "amax": A.amax(-1),
        "argmax": A.argmax(-1),
        "dense": A.to_dense(),
        **{f"diagonal({o})": A.diagonal(o) for o in DIAGONALS},
        **{f"pool {bins} {reduce}": A.pool(bins, reduce) for bins, reduce in POOLS if maxima or reduce != "max"},
    }
    if A.shape[-2]:
        answers["mean(-2)"] = A.mean(-2)
    if A.shape[-1]:
        answers |= {"mean(-1)": A.mean(-1), "logsumexp": A.logsumexp()}
    return answers


def columns_for(W: Tensor, rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(*W.shape[:-2], rows, 2, generator=generator, dtype=torch.float64)


@MANY
@given(problems(), st.integers(1, 3), st.data())
def test_every_readout_of_a_part_is_that_of_the_dense_part(drawn, depth, data):
    problem = built(drawn)
    part = parts(problem, data, depth)
    W = part.known["weights"]
    v, r = columns_for(W, W.shape[-1]), columns_for(W, W.shape[-2])
    due, found = by_definition(part.known, v, r), asked(part.A, v, r)
    assert due.keys() == found.keys()
    for name, answer in found.items():
        same(answer, due[name], name=name)


@given(problems(), st.data())
def test_several_questions_at_once_are_answered_as_alone(drawn, data):
    problem = built(drawn)
    part = parts(problem, data, 1).A
    questions = (Entropy(), TopK(2), Max(), LogSumExp(), Received(), Diagonal(-1), Pool((2, 2)))
    v = columns_for(part, part.shape[-1])
    reading = part.read(*questions, value=v)
    same(reading.output, part @ v)
    same(reading.entropy, part.entropy())
    same(reading.topk.indices, part.topk(2).indices)
    same(reading.topk.values, part.topk(2).values)
    same(reading.max.values, part.amax(-1))
    same(reading.logsumexp, part.logsumexp())
    same(reading.received, part.sum(-2))
    same(reading.diagonal, part.diagonal(-1))
    same(reading.pool, part.pool((2, 2)))


def test_weights_of_a_part_of_the_keys_are_the_parents():
    torch.manual_seed(0)
    x = torch.randn(2, 6, 4, dtype=torch.float64)
    A = regard.attention(x, x, mask=causal)
    left, right = A[..., :2], A[..., 2:]
    same(left.logsumexp(), A.logsumexp())
    same(left.sum(-1) + right.sum(-1), torch.ones(2, 6, dtype=torch.float64))
    same(left @ x[:, :2] + right @ x[:, 2:], A @ x)
    same(left.entropy() + right.entropy(), A.entropy())
    assert (right[:, :2].sum(-1) == 0).all()
    assert right.topk(2).indices[0].tolist()[:3] == [[-1, -1], [-1, -1], [0, -1]]  # keys count from the part's first


def test_a_part_answers_from_its_parents_memory():
    """A part of a matrix that knows its log-sum-exp sweeps nothing but its own keys."""
    x = torch.randn(2, 6, 4)
    A = regard.attention(x, x)
    lse = A.logsumexp()
    part = A[1:, 2:, 1:3]
    assert torch.equal(part._memo[0][0], lse[1:, 2:])
    assert torch.equal(part.logsumexp(), lse[1:, 2:])


# -- gradients --------------------------------------------------------------------------------------------------------


def gradients(answers: dict[str, Tensor], inputs: tuple[Tensor, ...], seed: int) -> list[Tensor]:
    """Of one drawn number per answer, so that none can hide behind another."""
    generator = torch.Generator().manual_seed(seed)
    loss = torch.zeros((), dtype=torch.float64)
    for name in sorted(answers):
        answer = answers[name]
        if answer.is_floating_point() and answer.requires_grad:
            weight = torch.randn(answer.shape, generator=generator, dtype=torch.float64)
            loss = loss + torch.where(answer.isfinite(), answer * weight, 0).sum()
    found = (
        torch.autograd.grad(loss, inputs, allow_unused=True, retain_graph=True) if loss.requires_grad else [None] * len(inputs)
    )
    return [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, found, strict=True)]


@given(problems(gradients=True), st.integers(1, 2), st.data())
def test_gradients_through_parts_are_those_of_the_dense_part(drawn, depth, data):
    problem = built(drawn)
    q, k = problem.inputs
    part = parts(problem, data, depth)
    W = part.known["weights"]
    v, r = (columns_for(W, n).requires_grad_() for n in (W.shape[-1], W.shape[-2]))
    due = {n: a for n, a in by_definition(part.known, v, r).items() if not n.endswith("max") or n == "amax"}
    found = asked(part.A, v, r, maxima=False)
    found = {n: found[n] for n in due if n in found}
    chosen = data.draw(st.sampled_from(sorted(found)) | st.none())
    for name in found if chosen is None else [chosen]:
        one, other = ({name: answers[name]} for answers in (found, due))
        for g, d in zip(gradients(one, (q, k, v, r), 1), gradients(other, (q, k, v, r), 1), strict=True):
            same(g, d, 1e-9, name)


@given(problems(shapes=("plain", "4-D", "grouped"), gradients=True), st.data())
def test_gradients_through_numbers_are_those_of_the_dense_matrix(drawn, data):
    problem = built(drawn)
    q, k = problem.inputs
    index = data.draw(indices(tuple(problem.A.shape)))
    found, due = problem.A[index], problem.known["weights"][in_torch(index)]
    found = found.to_dense() if isinstance(found, regard.Attention) else found
    for g, d in zip(gradients({"": found}, (q, k), 1), gradients({"": due}, (q, k), 1), strict=True):
        same(g, d, 1e-9)


# -- refusals ---------------------------------------------------------------------------------------------------------

MARKS = torch.ones(4, dtype=torch.bool)
REFUSED = [  # of a matrix (2, 4, 5, 6)
    (2, IndexError, "A[…]: index 2 is out of range for 2 batch rows."),
    ((0, -5), IndexError, "A[…]: index -5 is out of range for 4 heads."),
    ((..., 5, slice(None)), IndexError, "A[…]: index 5 is out of range for 5 queries."),
    ((..., -7), IndexError, "A[…]: index -7 is out of range for 6 keys."),
    ((0, 0, 0, 6), IndexError, "A[…]: index 6 is out of range for 6 keys."),
    ([0, 2], IndexError, "A[…]: index 2 is out of range for 2 batch rows."),
    ((..., [0, 9], slice(None)), IndexError, "A[…]: index 9 is out of range for 5 queries."),
    ((0, 0, 0, [6]), IndexError, "A[…]: index 6 is out of range for 6 keys."),
    ((..., [0], [-7]), IndexError, "A[…]: index -7 is out of range for 6 keys."),
    ((0, 0, 0, 0, 0), IndexError, "A[…]: at most 4 indices and one ellipsis; got (0, 0, 0, 0, 0)."),
    ((..., ...), IndexError, "A[…]: at most 4 indices and one ellipsis; got (Ellipsis, Ellipsis)."),
    (slice(None, None, -1), ValueError, "A[…]: a slice must step forward; got step -1."),
    ((..., slice(None, None, 0)), ValueError, "A[…]: a slice must step forward; got step 0."),
    (None, IndexError, "A[…]: takes integers, slices, an ellipsis and index tensors; got None."),
    (True, IndexError, "A[…]: takes integers, slices, an ellipsis and index tensors; got True."),
    (np.True_, IndexError, "takes integers, slices, an ellipsis and index tensors; got np.True_."),
    (1.0, IndexError, "A[…]: takes integers, slices, an ellipsis and index tensors; got 1.0."),
    ("head", IndexError, "A[…]: takes integers, slices, an ellipsis and index tensors; got 'head'."),
    (["head"], IndexError, "A[…]: an index tensor holds integers; got ['head']."),
    ([[0, 1], [0]], IndexError, "A[…]: an index tensor holds integers; got [[0, 1], [0]]."),
    ([0.0, 1.0], IndexError, "A[…]: an index tensor holds integers; got torch.float32 of shape (2,)."),
    (torch.tensor(True), IndexError, "A[…]: an index tensor holds integers; got torch.bool of shape ()."),
    ((0, 0, MARKS[:, None]), IndexError, "A[…]: an index tensor holds integers; got torch.bool of shape (4, 1)."),
    (MARKS, IndexError, "A[…]: a boolean index has one entry for each of 2 batch rows; got 4."),
    ((0, 0, MARKS), IndexError, "A[…]: a boolean index has one entry for each of 5 queries; got 4."),
    ((0, 0, 0, MARKS), IndexError, "A[…]: a boolean index has one entry for each of 6 keys; got 4."),
    ((0, 0, [0, 1], [0, 1, 2]), IndexError, "must broadcast together; got shapes (2,) and (3,)."),
    (([0], [0]), IndexError, "A[…]: index tensors on more than one dimension go on queries and keys together"),
    (([0], slice(None), [0]), IndexError, "A[…]: index tensors on more than one dimension go on queries and keys"),
    ((0, [0], [0], [0]), IndexError, "A[…]: index tensors on more than one dimension go on queries and keys"),
    ((0, [[0], [1]]), IndexError, "A[…]: an index tensor on heads has one dimension; got shape (2, 1)."),
]


@pytest.mark.parametrize(("index", "kind", "sentence"), REFUSED, ids=[repr(r[0])[:40] for r in REFUSED])
def test_refused_indices_are_named(index, kind, sentence):
    A = regard.attention(torch.zeros(2, 4, 5, 3), torch.zeros(2, 2, 6, 3))
    with pytest.raises(kind) as refused:
        A[index]
    assert sentence in str(refused.value)


def test_axes_are_named_as_they_are():
    x = torch.zeros(2, 3, 4, 5)
    for matrix, sentence in (
        (regard.attention(x[0, 0], x[0, 0]), "for 4 queries"),
        (regard.attention(x[0], x[0]), "for 3 heads"),
        (regard.attention(x, x), "for 2 batch rows"),
        (regard.attention(x, x)[0], "for 3 heads"),
        (regard.attention(x, x)[:, 0], "for 2 batch rows"),
    ):
        with pytest.raises(IndexError, match=sentence):
            matrix[9]


def test_rows_that_would_not_fit_are_refused_before_they_are_computed():
    x = torch.zeros(1 << 15, 1)
    A = regard.attention(x, x)
    with pytest.raises(TooLarge, match=r"matrix of shape \(32768, 32768\) would take 4 GiB, above the limit of 1 GiB"):
        A[torch.arange(1 << 15)]
    with pytest.raises(TooLarge):
        A[:].to_dense()
    assert A[torch.arange(2)].shape == (2, 1 << 15)


@pytest.mark.parametrize("mask", [full, padding([3, 2])], ids=str)
def test_empty_parts(mask):
    x = torch.randn(2, 3, 4, 5)
    A = regard.attention(x, x, mask=mask)
    for part in (A[:0], A[:, :0], A[..., :0, :], A[..., 4:], A[..., [], :], A[..., []], A[0, 0, [], []]):
        assert 0 in part.shape
        if isinstance(part, regard.Attention):
            assert part.to_dense().shape == part.shape
            assert part.entropy().shape == part.shape[:-1]
            assert part.sum(-2).shape == (*part.shape[:-2], part.shape[-1])
            assert part.logsumexp().shape == part.shape[:-1]
            assert (part @ torch.randn(part.shape[-1], 2)).shape == (*part.shape[:-1], 2)
