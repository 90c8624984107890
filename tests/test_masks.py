"""Masks against their definitions, pair by pair in plain Python; the algebra; boxes; pictures; the refusals."""

from __future__ import annotations

import copy
import math
import pickle
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import regard
from regard import masks
from regard.checks import ShapeError
from regard.masks import Mask, causal, causal_from, dense, documents, full, padding, prefix, where, window
from regard.masks.algebra import EMPTY, FULL, MIXED, And, Box, Not, Or
from regard.picture import SYMBOLS


@dataclass(frozen=True)
class Sizes:
    batch: int
    heads: int
    queries: int
    keys: int


@dataclass(frozen=True)
class Drawn:
    """A mask and its meaning: whether (batch, head, query, key) may meet, p the position of the query."""

    mask: Mask
    sees: Callable[[int, int, int, int, int], bool]

    def __repr__(self) -> str:
        return self.mask.expression


FUNCTIONS: tuple[Callable, ...] = (  # the same text on tensors and on integers, of all or of few of its arguments
    lambda b, h, i, j: (b + 2 * h + 3 * i + j) % 4 != 0,
    lambda b, h, i, j: j % 2 == 0,
    lambda b, h, i, j: i >= j,
    lambda b, h, i, j: h == b,
)

sizes = st.builds(Sizes, st.integers(1, 3), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7))
bits = st.integers(0, 2**20).map(lambda seed: torch.Generator().manual_seed(seed))


@st.composite
def plain_leaves(draw, size: Sizes) -> Drawn:
    """A mask that is a value: no tensor and no function in it."""
    reach = st.integers(0, size.keys + 1)
    kind = draw(st.sampled_from(("full", "causal", "causal_from", "window", "symmetric window", "prefix", "length", "lengths")))
    if kind == "causal_from":
        start = draw(st.integers(-size.queries, size.keys))
        return Drawn(causal_from(start), lambda b, h, i, j, p: j <= i + start)
    if kind == "window":
        left, right = draw(reach), draw(reach)
        return Drawn(window(left, right), lambda b, h, i, j, p: p - left <= j <= p + right)
    if kind == "symmetric window":
        left = draw(reach)
        return Drawn(window(left), lambda b, h, i, j, p: abs(p - j) <= left)
    if kind == "prefix":
        first = draw(reach)
        return Drawn(prefix(first), lambda b, h, i, j, p: j < first)
    if kind == "length":
        length = draw(st.integers(0, size.keys + 2))
        return Drawn(padding(length), lambda b, h, i, j, p: j < length)
    if kind == "lengths":
        lengths = draw(st.lists(st.integers(0, size.keys + 2), min_size=size.batch, max_size=size.batch))
        return Drawn(padding(lengths), lambda b, h, i, j, p: j < lengths[b])
    return {
        "full": Drawn(full, lambda b, h, i, j, p: True),
        "causal": Drawn(causal, lambda b, h, i, j, p: j <= p),
    }[kind]


@st.composite
def held_leaves(draw, size: Sizes) -> Drawn:
    """A mask with a tensor or a function in it."""
    kind = draw(st.sampled_from(("lengths", "keep of all", "keep", "documents", "cross", "dense", "where")))
    generator = draw(bits)
    rows = draw(st.sampled_from((1, size.batch)))
    if kind == "lengths":
        lengths = torch.randint(0, size.keys + 3, (rows,), generator=generator)
        return Drawn(padding(lengths), lambda b, h, i, j, p: j < lengths.tolist()[b if rows > 1 else 0])
    if kind == "keep of all":
        line = torch.rand(size.keys, generator=generator) < 0.6
        return Drawn(padding(keep=line), lambda b, h, i, j, p: line.tolist()[j])
    if kind == "keep":
        lines = torch.rand(rows, size.keys, generator=generator) < 0.6
        return Drawn(padding(keep=lines), lambda b, h, i, j, p: lines.tolist()[b if rows > 1 else 0][j])
    if kind in ("documents", "cross"):
        ids, seen = draw(document_ids(size.batch, size.keys))
        if kind == "documents":
            return Drawn(documents(ids), lambda b, h, i, j, p: 0 <= p < size.keys and seen[b][j].item() == seen[b][p].item())
        query_ids, own = draw(document_ids(size.batch, size.queries))
        return Drawn(documents(ids, query_ids), lambda b, h, i, j, p: seen[b][j].item() == own[b][i].item())
    if kind == "dense":
        whole = (size.batch, size.heads, size.queries, size.keys)
        shape = tuple(n if draw(st.booleans()) else 1 for n in whole)[draw(st.integers(0, 3)) :]
        stored = torch.rand(shape, generator=generator) < 0.5
        spread = stored.expand(whole).tolist()
        return Drawn(dense(stored), lambda b, h, i, j, p: spread[b][h][i][j])
    fn = draw(st.sampled_from(FUNCTIONS))
    return Drawn(where(fn), lambda b, h, i, j, p: fn(b, h, i, j))


@st.composite
def document_ids(draw, batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Ids end to end or interleaved, and the same ones spread over the batch."""
    rows = draw(st.sampled_from(((), (1,), (batch,))))
    dtype = draw(st.sampled_from((torch.int64, torch.int32, torch.uint8, torch.uint16)))
    ids = torch.randint(0, 4, (*rows, length), generator=draw(bits)) * draw(st.sampled_from((1, 50)))
    if draw(st.booleans()):
        ids = ids.sort(-1, descending=draw(st.booleans())).values
    return ids.to(dtype), ids.expand(batch, length)


def composed(leaves: st.SearchStrategy[Drawn]) -> st.SearchStrategy[Drawn]:
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.builds(lambda x, y: Drawn(x.mask & y.mask, lambda *at: x.sees(*at) and y.sees(*at)), inner, inner),
            st.builds(lambda x, y: Drawn(x.mask | y.mask, lambda *at: x.sees(*at) or y.sees(*at)), inner, inner),
            st.builds(lambda x: Drawn(~x.mask, lambda *at: not x.sees(*at)), inner),
        ),
        max_leaves=5,
    )


def every_mask(size: Sizes) -> st.SearchStrategy[Drawn]:
    return composed(plain_leaves(size) | held_leaves(size))


@st.composite
def drawn(draw, count: int = 1) -> tuple:
    """Sizes, that many masks that lie on them, and an offset: None, an int, or one per batch row."""
    size = draw(sizes)
    numbers = st.integers(-size.queries - 1, size.keys + 1)
    per_row = st.lists(numbers, min_size=size.batch, max_size=size.batch).map(torch.tensor)
    offset = draw(st.one_of(st.none(), numbers, per_row))
    return (size, offset, *(draw(every_mask(size)) for _ in range(count)))


def by_definition(size: Sizes, offset: int | Tensor | None, sees: Callable) -> Tensor:
    shift = size.keys - size.queries if offset is None else offset
    shifts = shift.tolist() if isinstance(shift, Tensor) else [shift] * size.batch
    shape = (size.batch, size.heads, size.queries, size.keys)
    pairs = [bool(sees(b, h, i, j, i + shifts[b])) for b, h, i, j in product(*map(range, shape))]
    return torch.tensor(pairs).reshape(shape)


def stored(mask: Mask, size: Sizes, offset: int | Tensor | None = None) -> Tensor:
    return mask.to_dense(size.queries, size.keys, size.batch, size.heads, offset)


# -- what a mask means ------------------------------------------------------------------------------------------------


@settings(max_examples=3 * settings.default.max_examples)
@given(drawn())
def test_dense_form_is_the_definition(problem):
    size, offset, one = problem
    found = stored(one.mask, size, offset)
    assert found.dtype == torch.bool
    assert torch.equal(found, by_definition(size, offset, one.sees))


@given(drawn(), st.data())
def test_allows_answers_any_pairs(problem, data):
    """On index tensors of any broadcastable shapes, among them plain integers."""
    size, offset, one = problem
    offset = 0 if offset is None else offset
    indices = []
    for count, shape in zip((size.batch, size.heads, size.queries, size.keys), ((3, 1), (), (4,), (3, 4)), strict=True):
        flat = data.draw(st.lists(st.integers(0, count - 1), min_size=math.prod(shape), max_size=math.prod(shape)))
        indices.append(torch.tensor(flat).reshape(shape) if shape else flat[0])
    found = one.mask.allows(*indices, offset)
    assert found.shape == (3, 4)
    whole = by_definition(size, offset, one.sees)
    assert torch.equal(found, whole[tuple(indices)])
    first = tuple(int(torch.as_tensor(x).flatten()[0]) for x in indices)
    assert bool(one.mask.allows(*first, offset)) == bool(whole[first])


def test_default_offset_puts_the_queries_last():
    assert causal.to_dense(2, 5)[0, 0].tolist() == [[True] * 4 + [False], [True] * 5]
    assert causal.to_dense(2, 5, offset=0)[0, 0].int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0]]
    assert causal_from(0).to_dense(2, 5)[0, 0].int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0]]
    assert not causal.to_dense(5, 2)[0, 0, :3].any()  # the first three queries come before every key


def test_numbers_from_numpy_are_numbers():
    assert padding(np.int64(3)) == padding(3)
    assert padding(np.array([3, 2])) == padding([np.int32(3), 2]) == padding([3, 2])
    assert window(np.int64(3), np.int8(1)) == window(3, 1)
    assert causal_from(np.int64(-2)) == causal_from(-2)


def test_sliding_window_of_w_keys():
    seen = (causal & window(3, 0)).to_dense(9, 9)[0, 0]
    assert seen.sum(-1).tolist() == [1, 2, 3, 4, 4, 4, 4, 4, 4]
    assert seen.diagonal().all()


# -- the algebra ------------------------------------------------------------------------------------------------------


@given(drawn(3))
def test_laws(problem):
    size, offset, x, y, z = problem
    a, b, c = x.mask, y.mask, z.mask

    def same(one: Mask, other: Mask) -> bool:
        return torch.equal(stored(one, size, offset), stored(other, size, offset))

    assert same(~(a & b), ~a | ~b)
    assert same(~(a | b), ~a & ~b)
    assert same(a & b, b & a)
    assert same((a & b) & c, a & (b & c))
    assert same(a & (b | c), (a & b) | (a & c))
    assert same(a | (b & c), (a | b) & (a | c))
    assert same(a & (a | b), a)
    assert not stored(a & ~a, size, offset).any()
    assert stored(a | ~a, size, offset).all()


@given(drawn())
def test_simplifications_return_the_mask_itself(problem):
    m = problem[-1].mask
    assert (full & m) is m
    assert (m & full) is m
    assert (full | m) is full
    assert (m | full) is full
    assert (m & m) is m
    assert (m | m) is m
    assert ~~m == m
    assert isinstance(m, Not) or ~~m is m


def test_composites_are_flat_and_hold_each_part_once():
    a, b, c = causal, window(2), padding(3)
    assert (a & b) & (c & a) == And((a, b, c)) == a & (b & c)
    assert (a | b) | (c | a) == Or((a, b, c)) == a | (b | c)


@given(st.data())
def test_expression_is_python_that_builds_an_equal_mask(data):
    m = data.draw(composed(plain_leaves(data.draw(sizes)))).mask
    again = eval(m.expression, vars(masks))
    assert again == m
    assert hash(again) == hash(m)
    assert str(m) == m.expression


def test_equal_by_value():
    assert causal_from(2) == causal_from(2) != causal_from(3)
    assert window(3) == window(3, 3) != window(3, 0)
    assert padding(3) == padding([3]) != padding([3, 3])
    assert causal & window(3) == causal & window(3) != causal | window(3)
    assert ~causal == ~causal != causal
    assert len({causal & window(3), causal & window(3), window(3), window(3, 3), causal_from(0), causal}) == 4
    assert where(FUNCTIONS[0]) == where(FUNCTIONS[0]) != where(FUNCTIONS[1])


@pytest.mark.parametrize(
    ("make", "tensor"),
    [
        (dense, torch.ones(3, 3, dtype=torch.bool)),
        (lambda t: padding(keep=t), torch.ones(3, dtype=torch.bool)),
        (padding, torch.tensor([3, 2])),
        (lambda t: causal & ~dense(t), torch.ones(3, 3, dtype=torch.bool)),
    ],
    ids=["dense", "keep", "lengths", "composite"],
)
def test_tensors_are_equal_by_identity_and_version(make, tensor):
    before = make(tensor)
    assert before == make(tensor)
    assert hash(before) == hash(make(tensor))
    assert before != make(tensor.clone())
    tensor[0] = 0
    assert before != make(tensor)
    assert make(tensor) == make(tensor)


@pytest.mark.parametrize("use", [lambda m: m and full, lambda m: m or full, lambda m: not m, bool])
def test_and_or_not_are_refused_with_the_hint(use):
    with pytest.raises(TypeError, match=r"with & \| ~ instead of and, or, not; got `causal & window\(3\)`"):
        use(causal & window(3))


@pytest.mark.parametrize("other", [None, True, 1, torch.ones(2, 2, dtype=torch.bool)])
def test_masks_combine_with_masks_only(other):
    said = "True keeps or drops" if isinstance(other, torch.Tensor) else f"masks only; got {type(other).__name__}"
    for combine in (lambda: causal & other, lambda: causal | other, lambda: other & causal, lambda: other | causal):
        with pytest.raises(TypeError, match=said):
            combine()


def test_masks_are_frozen():
    for mask, name in ((window(2), "left"), (causal_from(1), "start"), (causal & window(2), "masks")):
        with pytest.raises(AttributeError, match="cannot assign"):
            setattr(mask, name, 5)


# -- boxes ------------------------------------------------------------------------------------------------------------


def truth(pairs: Tensor) -> int:
    return FULL if bool(pairs.all()) else MIXED if bool(pairs.any()) else EMPTY


@st.composite
def boxes(draw, size: Sizes, shifts: list[int]) -> Box:
    """Several rectangles at once, over some batch rows and heads."""

    def ends(count: int) -> tuple[np.ndarray, np.ndarray]:
        pairs = [sorted(draw(st.tuples(*[st.integers(0, count - 1)] * 2))) for _ in range(4)]
        return tuple(np.array(line, np.int64) for line in zip(*pairs, strict=True))

    batch = draw(st.sets(st.integers(0, size.batch - 1), min_size=1).map(tuple))
    heads = draw(st.sets(st.integers(0, size.heads - 1), min_size=1).map(tuple))
    offsets = [shifts[b] for b in batch]
    return Box(batch, heads, *ends(size.queries), *ends(size.keys), min(offsets), max(offsets))


@settings(max_examples=3 * settings.default.max_examples)
@given(drawn(), st.data())
def test_a_box_that_is_called_empty_or_full_is(problem, data):
    size, offset, one = problem
    shift = size.keys - size.queries if offset is None else offset
    shifts = shift.tolist() if isinstance(shift, Tensor) else [shift] * size.batch
    box = data.draw(boxes(size, shifts))
    kinds = one.mask.box(box)
    assert kinds.dtype == np.int8
    assert kinds.shape == box.key_low.shape
    seen = by_definition(size, offset, one.sees)[list(box.batch)][:, list(box.heads)]
    for n, kind in enumerate(kinds):
        rows = slice(box.query_low[n], box.query_high[n] + 1)
        columns = slice(box.key_low[n], box.key_high[n] + 1)
        assert kind in (MIXED, truth(seen[:, :, rows, columns]))


@pytest.mark.parametrize(
    "mask",
    [
        full,
        causal,
        causal_from(-1),
        window(2, 1),
        window(0),
        padding(4),
        padding([4, 6]),
        padding(torch.tensor([1, 5])),
        padding(keep=torch.tensor([1, 1, 0, 1, 0, 0, 1]).bool()),
        padding(keep=torch.tensor([[1, 1, 0, 1, 0, 0, 1], [1, 0, 0, 1, 1, 0, 1]]).bool()),
        prefix(3),
        documents([4, 4, 4, 2, 2, 9, 9]),
        documents([4, 4, 4, 2, 2, 9, 9], [4, 2, 2, 9, 9, 7]),
        dense(torch.tensor([True, False])[:, None, None, None]),
    ],
    ids=str,
)
@pytest.mark.parametrize("offset", [-2, 0, 3])
def test_boxes_of_plain_masks_are_not_cautious(mask, offset):
    """A sweep skips what is called EMPTY: caution would cost it n², not a wrong answer."""
    queries, keys = 6, 7
    ends = [(a, b) for a in range(queries) for b in range(a, queries)]
    lines = [(a, b) for a in range(keys) for b in range(a, keys)]
    corners = np.array([(*rows, *columns) for rows in ends for columns in lines], np.int64)
    for batch in ((0,), (1,), (0, 1)):
        kinds = mask.box(Box(batch, (0,), *corners.T, offset, offset))
        seen = mask.to_dense(queries, keys, batch=2, offset=offset)[list(batch)]
        due = [truth(seen[..., top : bottom + 1, left : right + 1]) for top, bottom, left, right in corners]
        assert kinds.tolist() == due


def test_a_switch_per_head_is_known_without_looking():
    switch = dense(torch.tensor([True, False, False])[:, None, None])
    corner = np.zeros(1, np.int64)
    for heads, kind in (((0,), FULL), ((1, 2), EMPTY), ((2, 0), MIXED)):
        assert switch.box(Box((0, 1), heads, corner, corner + 5, corner, corner + 5, 0, 0)).tolist() == [kind]
        assert (~switch).box(Box((0, 1), heads, corner, corner + 5, corner, corner + 5, 0, 0)).tolist() == [2 - kind]


def test_more_runs_than_blocks_are_answered_for_together(monkeypatch):
    """Cautious, never wrong: every box of interleaved ids, with one block for every three runs."""
    monkeypatch.setattr(sys.modules["regard.masks.documents"], "BLOCKS", 7)  # the package's name for it is the mask's
    ids = torch.tensor([0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 3, 3, 3, 3, 3, 3, 4, 5, 6, 7, 8, 8, 9])
    mask = documents(ids)
    seen = (ids[:, None] == ids).numpy()
    ends = [(a, b) for a in range(len(ids)) for b in range(a, len(ids))]
    corners = np.array([(*rows, *columns) for rows in ends for columns in ends], np.int64)
    summed = np.pad(seen.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    top, bottom, left, right = corners.T
    pairs = summed[bottom + 1, right + 1] - summed[top, right + 1] - summed[bottom + 1, left] + summed[top, left]
    due = np.where(pairs == 0, EMPTY, np.where(pairs == (bottom + 1 - top) * (right + 1 - left), FULL, MIXED))
    kinds = mask.box(Box((0,), (0,), top, bottom, left, right, 0, 0))
    assert ((kinds == MIXED) | (kinds == due)).all()
    assert (kinds == EMPTY).sum() > 0.5 * (due == EMPTY).sum()


def test_documents_that_change_in_place_are_answered_for_anew():
    ids = torch.tensor([0, 0, 1, 1])
    mask = documents(ids)
    low = np.zeros(1, np.int64)
    assert mask.box(Box((0,), (0,), low, low + 1, low, low + 1, 0, 0)).tolist() == [FULL]
    ids[1] = 5
    assert mask.box(Box((0,), (0,), low, low + 1, low, low + 1, 0, 0)).tolist() == [MIXED]
    with torch.inference_mode():
        ids = torch.tensor([0, 0, 1, 1])
        mask = documents(ids)
        assert mask.box(Box((0,), (0,), low, low + 1, low, low + 1, 0, 0)).tolist() == [FULL]
        ids[1] = 5
        assert mask.box(Box((0,), (0,), low, low + 1, low, low + 1, 0, 0)).tolist() == [MIXED]


# -- what papers build of them ----------------------------------------------------------------------------------------

N, HEADS = 60, 4
Q, K = np.arange(N)[:, None], np.arange(N)
STARTS = np.array([0, 7, 8, 25, 40])
OF = np.searchsorted(STARTS, np.arange(N), "right")  # which of five documents a token is in
CROSS = np.searchsorted([0, 30, 30, 31, 50], np.arange(N), "right")
SOME_HEADS = np.array([True, False, False, True])[:, None, None]
BUILT = [
    (window(6) | prefix(4), (abs(Q - K) <= 6) | (K < 4)),
    ((window(6, 0) | prefix(4)) & causal, (K <= Q) & ((K >= Q - 6) | (K < 4))),
    (documents(torch.arange(N) % 3), (Q - K) % 3 == 0),
    (documents(torch.arange(N) % 3) & causal & window(12, 0), ((Q - K) % 3 == 0) & (K <= Q) & (Q - K <= 12)),
    (documents(torch.arange(N) // 8), Q // 8 == K // 8),
    (
        documents(torch.arange(N) // 8) | where(lambda b, h, i, j: (i // 8 * 5 + j // 8) % 3 == 0),
        (Q // 8 == K // 8) | ((Q // 8 * 5 + K // 8) % 3 == 0),
    ),
    (documents(OF) & causal, (OF[:, None] == OF) & (K <= Q)),
    (documents.from_cu_seqlens([*STARTS, N]) & causal, (OF[:, None] == OF) & (K <= Q)),
    (documents.from_cu_seqlens([*STARTS, N], [0, 30, 30, 31, 50, N]), CROSS[:, None] == OF),
    (documents(OF, CROSS) & ~window(3), (CROSS[:, None] == OF) & (abs(Q - K) > 3)),
    (~documents(OF) & causal, (OF[:, None] != OF) & (K <= Q)),
    (
        (dense(torch.tensor(SOME_HEADS)) & causal) | (~dense(torch.tensor(SOME_HEADS)) & window(5)),
        np.where(SOME_HEADS, K <= Q, abs(Q - K) <= 5),
    ),
    (dense(torch.tensor(SOME_HEADS)) | documents(OF), SOME_HEADS | (OF[:, None] == OF)),
]


@pytest.mark.parametrize(("mask", "formula"), BUILT, ids=[str(m) for m, _ in BUILT])
def test_what_is_built_of_them_is_its_formula(mask, formula):
    due = torch.tensor(np.broadcast_to(formula, (1, HEADS, N, N)).copy())
    assert torch.equal(mask.to_dense(N, N, heads=HEADS), due)
    assert mask.draw(N, N) == picture(due[0, 0], 16)
    assert torch.equal((~mask).to_dense(N, N, heads=HEADS), ~due)
    x, v = torch.randn(HEADS, N, 4), torch.randn(HEADS, N, 3)
    scores = (x @ x.mT / 2).masked_fill(~due[0], -math.inf)
    assert torch.allclose(regard.attention(x, x, mask=mask) @ v, scores.softmax(-1).nan_to_num(0) @ v, atol=1e-5)


@pytest.mark.parametrize("packed", [documents(OF), documents(np.stack([OF, OF[::-1]]))], ids=["shared", "per row"])
def test_documents_and_the_place_of_the_queries(packed):
    """One offset per batch row, among them places outside the keys, which see nothing."""
    offset, queries = torch.tensor([50, -3]), 14
    position = np.arange(queries)[None] + offset.numpy()[:, None]
    inside = (position >= 0) & (position < N)
    ids = np.broadcast_to(OF, (2, N)) if packed.tensors()[0].ndim == 1 else np.stack([OF, OF[::-1]])
    own = np.take_along_axis(ids, position.clip(0, N - 1), 1)
    due = inside[:, :, None] & (own[:, :, None] == ids[:, None])
    assert not due.all(-1).any()
    assert torch.equal(packed.to_dense(queries, N, batch=2, offset=offset)[:, 0], torch.tensor(due))


def test_documents_of_nothing():
    empty = documents.from_cu_seqlens([0])
    assert empty.to_dense(3, 0).shape == (1, 1, 3, 0)
    assert documents(empty.tensors()[0], [1, 2]).to_dense(2, 0).shape == (1, 1, 2, 0)
    assert repr(empty) == f"{empty}\n(nothing to draw)"
    assert documents.from_cu_seqlens([0, 2, 2, 3]).tensors()[0].tolist() == [0, 0, 2]


def test_documents_are_copied_from_numpy():
    """A change of an array would go unnoticed: arrays count no versions."""
    array = np.array([0, 0, 1])
    mask = documents(array)
    array[:] = 7
    assert mask.tensors()[0].tolist() == [0, 0, 1]


# -- copies -----------------------------------------------------------------------------------------------------------

COPIED = (window(3) | prefix(2)) & documents([0, 0, 1, 1, 1, 2], [0, 1, 1]) & ~dense(torch.eye(3, 6, dtype=torch.bool))


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_mean_the_same(again):
    causal_documents = copy.deepcopy(COPIED)
    due = causal_documents.to_dense(3, 6)
    corner = np.zeros(1, np.int64)
    box = Box((0,), (0,), corner, corner + 1, corner, corner + 1, 3, 3)
    causal_documents.box(box)  # prepares what it holds
    other = again(causal_documents)
    assert str(other) == str(causal_documents)
    assert torch.equal(other.to_dense(3, 6), due)
    assert other.box(box).tolist() == causal_documents.box(box).tolist()
    held = next(t for t in other.tensors() if t.dtype == torch.int64)
    for place in (0, 1, 0):  # a copy counts the changes of its own tensors
        held[place] += 1
        assert other.box(box)[0] in (MIXED, truth(other.to_dense(3, 6)[0, 0, :2, :2]))


def test_to_moves_every_tensor_and_nothing_else():
    lengths = padding(torch.tensor([4]))
    mask = COPIED | (lengths & ~padding(keep=torch.ones(6, dtype=torch.bool)) & where(FUNCTIONS[0]))
    assert mask.to("cpu") is mask
    away = mask.to("meta")
    assert {t.device.type for t in away.tensors()} == {"meta"}
    assert {t.device.type for t in mask.tensors()} == {"cpu"}
    assert str(away) == str(mask)
    assert [t.shape for t in away.tensors()] == [t.shape for t in mask.tensors()]
    for plain in (causal, window(3) & ~prefix(2), padding([3, 4])):
        assert plain.to("meta") is plain
    both = causal & lengths
    assert both.to(torch.device("meta")).masks[0] is causal


# -- pictures ---------------------------------------------------------------------------------------------------------


def picture(seen: Tensor, cells: int) -> str:
    """A (queries, keys) matrix drawn by looking at every pair."""
    queries, keys = seen.shape
    tall, wide = max(1, math.ceil(queries / cells)), max(1, math.ceil(keys / cells))
    lines = [
        " ".join(SYMBOLS[truth(seen[i : i + tall, j : j + wide])] for j in range(0, keys, wide))
        for i in range(0, queries, tall)
    ]
    scale = "" if tall == wide == 1 else f", one cell = {tall} × {wide}"
    return "\n".join([*lines, f"{queries} queries × {keys} keys{scale}"])


@given(drawn(), st.integers(1, 4))
def test_every_symbol_is_exact(problem, cells):
    size, offset, one = problem
    offset = int(offset[0]) if isinstance(offset, Tensor) else offset
    seen = by_definition(size, offset, one.sees)[0, 0]
    assert one.mask.draw(size.queries, size.keys, offset, cells) == picture(seen, cells)


SIEVE = torch.ones(300, 280, dtype=torch.bool)
SIEVE[200:, 100:] = False
SIEVE[37, 41] = False


@pytest.mark.parametrize(
    "mask",
    [
        causal & window(40, 0),
        ~causal | padding(70),
        dense(SIEVE),
        ~dense(SIEVE),
        where(lambda b, h, i, j: (i >= 150) | (j == 3)),
        padding(keep=SIEVE[37]),
    ],
    ids=str,
)
@pytest.mark.parametrize("cells", [1, 3, 16])
def test_cells_of_many_pairs_are_exact_too(mask, cells):
    assert mask.draw(300, 280, cells=cells) == picture(mask.to_dense(300, 280)[0, 0], cells)


def test_drawing_a_long_mask_looks_at_few_pairs(monkeypatch):
    looked = 0
    allows = Mask.allows

    def counted(self, *index):
        nonlocal looked
        seen = allows(self, *index)
        looked += seen.numel()
        return seen

    monkeypatch.setattr(Mask, "allows", counted)
    lines = (causal & window(1 << 14, 0)).draw(1 << 20, 1 << 20).splitlines()
    assert lines[:3] == ["▒" + " ·" * 15, "▒ ▒" + " ·" * 14, "· ▒ ▒" + " ·" * 13]
    assert looked < 1 << 20  # of 2⁴⁰


@given(drawn())
def test_repr_is_the_expression_and_a_picture(problem):
    mask = problem[-1].mask
    expression, *_, size = repr(mask).split("\n")
    assert expression == mask.expression
    queries, keys = map(int, re.match(r"(\d+) queries × (\d+) keys", size).groups())
    assert repr(mask) == f"{expression}\n{mask.draw(queries, keys)}"


def test_repr_shows_what_the_mask_does():
    assert repr(causal) == (
        "causal\n■ · · · · · · ·\n■ ■ · · · · · ·\n■ ■ ■ · · · · ·\n■ ■ ■ ■ · · · ·\n■ ■ ■ ■ ■ · · ·\n"
        "■ ■ ■ ■ ■ ■ · ·\n■ ■ ■ ■ ■ ■ ■ ·\n■ ■ ■ ■ ■ ■ ■ ■\n8 queries × 8 keys"
    )
    for mask in (window(100), causal_from(20), causal_from(-20), padding(50), padding([30, 2]), ~causal & window(9)):
        assert len(set(repr(mask)) & set(SYMBOLS.values())) > 1, f"{mask} is drawn so small that it hides nothing"


@pytest.mark.parametrize(
    ("mask", "queries", "keys"),
    [
        (causal & padding(keep=torch.ones(5, dtype=torch.bool)), 8, 5),
        (padding(keep=torch.ones(2, 5, dtype=torch.bool)) | window(10), 33, 5),
        (dense(torch.ones(6, 1, dtype=torch.bool)) & causal, 6, 8),
        (dense(torch.ones(2, 3, 6, 9, dtype=torch.bool)) & padding([3, 4]), 6, 9),
    ],
    ids=str,
)
def test_repr_takes_the_size_that_the_tensors_have(mask, queries, keys):
    assert repr(mask).splitlines()[-1].startswith(f"{queries} queries × {keys} keys")


def test_repr_never_fails():
    nowhere = padding(keep=torch.ones(5, dtype=torch.bool)) & dense(torch.ones(3, 4, dtype=torch.bool))
    assert repr(nowhere) == f"{nowhere}\n(no matrix has a size that all of it fits)"
    for empty in (padding(keep=torch.ones(0, 4, dtype=torch.bool)), dense(torch.ones(0, 3, dtype=torch.bool))):
        assert repr(empty) == f"{empty}\n(nothing to draw)"
    assert causal.draw(0, 4) == "0 queries × 4 keys"


# -- what does not fit ------------------------------------------------------------------------------------------------

KEEP = padding(keep=torch.ones(2, 5, dtype=torch.bool))
MISFITS = [
    (documents([0, 0, 1]), (2, 1, 3, 4), "documents has 3 ids and the matrix 4 keys"),
    (documents(torch.zeros(2, 4).long()), (3, 1, 4, 4), "documents has 2 rows of ids and the matrix 3"),
    (documents([0, 1], [0, 1, 1]), (1, 1, 2, 2), "documents has 3 query_ids and the matrix 2 queries"),
    (~documents([0, 1], torch.zeros(3, 2).long()), (2, 1, 2, 2), "documents has 3 rows of query_ids and the matrix 2"),
    (padding([3, 4, 5]), (2, 1, 5, 5), "padding has 3 lengths and the batch 2 rows"),
    (padding(torch.tensor([3, 4])), (1, 1, 5, 5), "padding has 2 lengths and the batch 1 rows"),
    (KEEP, (3, 1, 5, 5), "padding(keep) has 2 rows and the matrix 3"),
    (KEEP, (2, 1, 5, 6), "padding(keep) has 5 keys and the matrix 6"),
    (KEEP, (2, 1, 5, 4), "padding(keep) has 5 keys and the matrix 4"),
    (padding(keep=torch.ones(1, dtype=torch.bool)), (1, 1, 2, 2), "padding(keep) has 1 keys and the matrix 2"),
    (dense(torch.ones(5, 5, dtype=torch.bool)), (1, 1, 5, 6), "shape (5, 5) does not broadcast to (1, 1, 5, 6)"),
    (dense(torch.ones(2, 1, 1, 1, dtype=torch.bool)), (3, 1, 2, 2), "(2, 1, 1, 1) does not broadcast to (3, 1, 2, 2)"),
    (dense(torch.ones(2, 5, 5, dtype=torch.bool)), (1, 3, 5, 5), "(2, 5, 5) does not broadcast to (1, 3, 5, 5)"),
    (~(causal & KEEP), (2, 1, 5, 6), "padding(keep) has 5 keys and the matrix 6"),
    (KEEP | padding([1, 2, 3]), (2, 1, 5, 6), "5 keys and the matrix 6; padding has 3 lengths and the batch 2 rows"),
]


@pytest.mark.parametrize(("mask", "size", "sentence"), MISFITS, ids=[m[2] for m in MISFITS])
def test_a_mask_of_another_size_is_refused(mask, size, sentence):
    batch, heads, queries, keys = size
    sizes = f"(batch {batch}, heads {heads}, queries {queries}, keys {keys})."
    with pytest.raises(ShapeError) as refused:
        mask.to_dense(queries, keys, batch, heads)
    assert str(refused.value).startswith("to_dense: ")
    assert sentence in str(refused.value)
    assert str(refused.value).endswith(sizes)
    with pytest.raises(ShapeError) as refused:
        regard.attention(torch.zeros(batch, heads, queries, 2), torch.zeros(batch, heads, keys, 2), mask=mask)
    assert str(refused.value).startswith("attention: ")
    assert sentence in str(refused.value)
    assert str(refused.value).endswith(sizes)


def test_drawing_refuses_another_size_and_draws_the_first_batch_row():
    with pytest.raises(ShapeError, match=r"draw: padding\(keep\) has 5 keys and the matrix 6 \(queries 3, keys 6\)\."):
        KEEP.draw(3, 6)
    with pytest.raises(ShapeError, match=r"draw: dense mask of shape \(5, 5\) does not broadcast to \(1, 1, 4, 5\)"):
        dense(torch.ones(5, 5, dtype=torch.bool)).draw(4, 5)
    assert padding([2, 5]).draw(1, 5) == "■ ■ · · ·\n1 queries × 5 keys"


def test_a_mask_that_fits_everywhere_has_no_misfits():
    for mask in (full, causal, window(3), causal_from(9), padding(7), where(FUNCTIONS[0]), ~causal | window(1)):
        assert mask.misfits(3, 4, 5, 6) == []


# -- bad inputs -------------------------------------------------------------------------------------------------------

ONES = torch.ones(2, 3)
BAD = [
    (lambda: dense(ONES), TypeError, ["dense: a mask is boolean; got a torch.float32 tensor of shape (2, 3)"]),
    (lambda: dense(ONES.long()), TypeError, ["dense: a mask is boolean; got a torch.int64 tensor of shape (2, 3)"]),
    (lambda: dense([[True]]), TypeError, ["dense: needs a boolean tensor; got list"]),
    (lambda: dense(torch.tensor(True)), ShapeError, ["dense: needs 1 to 4 dimensions; got 0 (shape ())"]),
    (
        lambda: dense(torch.ones(1, 1, 1, 2, 2, dtype=torch.bool)),
        ShapeError,
        ["dense: needs 1 to 4 dimensions; got 5 (shape (1, 1, 1, 2, 2))"],
    ),
    (lambda: padding(keep=ONES), TypeError, ["padding(keep=…): must be boolean, (batch, keys)", "(2, 3)", "tensor.bool()"]),
    (lambda: padding(keep=[True]), TypeError, ["padding(keep=…): needs a boolean tensor; got list"]),
    (
        lambda: padding(keep=torch.ones(1, 2, 3, dtype=torch.bool)),
        ShapeError,
        ["padding(keep=…): needs 1 to 2 dimensions; got 3 (shape (1, 2, 3))"],
    ),
    (lambda: padding(), TypeError, ["padding: give lengths or keep, one of the two"]),
    (lambda: padding(3, keep=ONES.bool()), TypeError, ["padding: give lengths or keep, one of the two"]),
    (lambda: padding([]), ShapeError, ["padding: lengths must name at least one batch row; got none"]),
    (lambda: padding(-1), ValueError, ["padding: length must be at least 0; got -1"]),
    (lambda: padding([3, -2]), ValueError, ["padding: length must be at least 0; got -2"]),
    (lambda: padding([3, 2.5]), TypeError, ["padding: length must be an integer; got 2.5"]),
    (lambda: padding(True), TypeError, ["padding: length must be an integer; got True"]),
    (lambda: padding(torch.tensor([1.0])), TypeError, ["lengths must be integers; got torch.float32 of shape (1,)"]),
    (
        lambda: padding(torch.tensor([True, False])),
        TypeError,
        ["padding: lengths must be integers; got torch.bool of shape (2,)", "padding(keep=tensor)"],
    ),
    (lambda: padding(torch.tensor([[1]])), ShapeError, ["padding: lengths must have shape (batch,); got (1, 1)"]),
    (lambda: padding(torch.tensor(3)), ShapeError, ["padding: lengths must have shape (batch,); got ()"]),
    (lambda: padding(torch.zeros(0).long()), ShapeError, ["padding: lengths must have shape (batch,); got (0,)"]),
    (lambda: window(-1), ValueError, ["window: left must be at least 0; got -1"]),
    (lambda: window(2, -3), ValueError, ["window: right must be at least 0; got -3"]),
    (lambda: window(2.0), TypeError, ["window: left must be an integer; got 2.0"]),
    (lambda: window(2, True), TypeError, ["window: right must be an integer; got True"]),
    (lambda: causal_from("2"), TypeError, ["causal_from: start must be an integer; got '2'"]),
    (lambda: causal_from(None), TypeError, ["causal_from: start must be an integer; got None"]),
    (lambda: where(ONES), TypeError, ["where: needs a function of (batch, head, query, key); got Tensor"]),
    (
        lambda: where(lambda b, h, i, j: j * 1.0).to_dense(2, 3),
        TypeError,
        ["where(<lambda>): the function must return a boolean tensor; got torch.float32"],
    ),
    (
        lambda: where(lambda b, h, i, j: True).to_dense(2, 3),
        TypeError,
        ["where(<lambda>): the function must return a boolean tensor; got bool"],
    ),
    (
        lambda: where(lambda b, h, i, j: torch.ones(5, dtype=torch.bool)).to_dense(2, 3),
        ShapeError,
        ["where(<lambda>)", "must broadcast to (batch, heads, queries, keys) = (1, 1, 2, 3); got (5,)"],
    ),
    (
        lambda: where(lambda b, h, i, j: torch.ones(4, 1, 1, 1, dtype=torch.bool)).to_dense(2, 3),
        ShapeError,
        ["= (1, 1, 2, 3); got (4, 1, 1, 1)"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make", "kind", "fragments"), BAD, ids=[b[2][0] for b in BAD])
def test_bad_inputs_are_named(make, kind, fragments):
    with pytest.raises(kind) as refused:
        make()
    assert type(refused.value) is kind
    for fragment in fragments:
        assert fragment in str(refused.value)
