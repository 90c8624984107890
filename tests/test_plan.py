"""The plan of a mask: no visible pair is missed or met twice, nothing hidden is called seen, and O(n) at any length."""

from __future__ import annotations

import gc
import math
import tracemalloc
import weakref
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import regard
from regard import plan
from regard.masks import Mask, causal, causal_from, dense, documents, full, padding, prefix, where, window
from regard.masks.algebra import Box
from regard.plan import Axes, lay
from regard.testing.strategies import Sizes, drawn_masks

MILLION = 1 << 20
TILE = 64


@st.composite
def axis(draw, count: int, empty: bool = True) -> range | tuple[int, ...]:
    """Some of count indices: all of them, a strided range, or a list in any order."""
    kind = draw(st.sampled_from(("all", "range", "list")))
    if kind == "all":
        return range(count)
    if kind == "range":
        part = range(count)[draw(st.integers(0, count - 1)) :: draw(st.integers(1, 3))]
        return part[: draw(st.integers(0 if empty else 1, len(part)))]
    return tuple(draw(st.lists(st.integers(0, count - 1), min_size=0 if empty else 1, max_size=count)))


@st.composite
def bands(draw, size: Sizes) -> Mask:
    """Masks of few edges, in which most tiles are full or empty: where a plan can be wrong."""
    reach = st.integers(0, size.keys)
    lengths = st.lists(reach, min_size=size.batch, max_size=size.batch)
    edge = draw(st.sampled_from((causal, causal_from(draw(reach) - size.queries // 2), full)))
    band = window(draw(reach), draw(reach))
    ends = padding(draw(st.one_of(lengths, lengths.map(torch.tensor))))
    if draw(st.booleans()):
        starts = torch.tensor(draw(lengths))[:, None]
        ends &= padding(keep=torch.arange(size.keys) >= starts)  # padded on the left
    shape = draw(st.sampled_from((edge, band, ends, edge & band, edge & ends, band | ends, ends & (edge | band))))
    return ~shape if draw(st.booleans()) else shape


@st.composite
def problems(draw) -> tuple:
    """A mask, its sizes, offsets, batch rows, heads, queries and keys; tiles of rows × columns."""
    size = Sizes(draw(st.integers(1, 3)), draw(st.integers(1, 2)), 1, draw(st.integers(1, 24)), draw(st.integers(1, 24)), 1, 1)
    numbers = st.integers(-size.queries, size.keys)
    offset = draw(numbers | st.lists(numbers, min_size=size.batch, max_size=size.batch).map(tuple))
    axes = (axis(size.batch, False), axis(size.heads, False), axis(size.queries), axis(size.keys))
    mask = draw(bands(size) | drawn_masks(size))
    return size, mask, offset, tuple(map(draw, axes)), draw(st.integers(1, 7)), draw(st.integers(1, 7))


@settings(max_examples=5 * settings.default.max_examples)
@given(problems(), st.integers(1, 30))
def test_steps_hold_every_visible_pair_once_and_full_ones_nothing_hidden(problem, widest):
    size, mask, offset, axes, rows, columns = problem
    shifts = torch.tensor([offset] * size.batch if isinstance(offset, int) else offset)
    seen = mask.to_dense(size.queries, size.keys, size.batch, size.heads, shifts)
    for dim, picked in enumerate(axes):
        seen = seen.index_select(dim, torch.tensor(list(picked), dtype=torch.int64))
    laid = lay(mask, Axes(*axes), offset, rows, columns)
    queries, keys = len(axes[2]), len(axes[3])
    assert len(laid) == math.ceil(queries / rows)
    computed = 0
    for row in range(len(laid)):
        band = seen[:, :, row * rows : (row + 1) * rows]
        met = torch.zeros(keys, dtype=torch.int64)
        before = 0
        for step in laid.steps(row, widest):
            assert before <= step.begin < step.end <= keys
            assert step.end - step.begin <= widest
            before = step.end
            met[step.begin : step.end] += 1
            assert step.mixed or bool(band[..., step.begin : step.end].all())
        assert not (met > 1).any()
        assert bool((band.any(2).any(0).any(0) <= met.bool()).all())
        computed += int(met.sum()) * band.shape[2]
    assert laid.visible == computed


@given(problems())
def test_narrow_and_wide_steps_are_the_same_keys(problem):
    _, mask, offset, axes, rows, columns = problem
    laid = lay(mask, Axes(*axes), offset, rows, columns)
    for row in range(len(laid)):
        spans = [[n for s in laid.steps(row, widest) for n in range(s.begin, s.end)] for widest in (1, 5, 1000)]
        assert spans[0] == spans[1] == spans[2]


def test_neighbours_are_joined_up_to_the_widest():
    laid = lay(causal, Axes((0,), (0,), range(64), range(64)), 0, 8, 8)
    assert [(s.begin, s.end, s.mixed) for s in laid.steps(7, 1000)] == [(0, 64, True)]
    assert [(s.begin, s.end, s.mixed) for s in laid.steps(7, 56)] == [(0, 56, False), (56, 64, True)]
    assert [(s.begin, s.end, s.mixed) for s in laid.steps(7, 40)] == [(0, 40, False), (40, 64, True)]
    assert [(s.begin, s.end, s.mixed) for s in laid.steps(0, 1000)] == [(0, 8, True)]


# -- length -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Counted(Mask):
    """A mask that counts the rectangles that it is asked about."""

    mask: Mask
    asked: list[int] = field(default_factory=list, compare=False)

    expression = "counted"

    def _allows(self, batch, head, query, key, position):
        raise AssertionError("a plan is laid without looking at pairs")

    def box(self, box: Box):
        self.asked.append(len(box.key_low))
        return self.mask.box(box)


@pytest.mark.parametrize(
    ("mask", "runs", "least", "band"),
    [
        (full, 1, MILLION**2, 0),
        (causal, 2, MILLION * (MILLION + 1) // 2, 1),
        (causal & window(4095, 0), 3, 4096 * MILLION - 4095 * 4096 // 2, 2),
        (window(1000), 3, 2001 * MILLION - 1000 * 1001, 4),
        (causal & padding(700_001), 2, 700_001 * MILLION - 700_001 * 700_000 // 2, 3),
        (~causal, 2, MILLION * (MILLION - 1) // 2, 1),
        (causal & (prefix(8) | window(1023, 0)), 5, 1024 * MILLION - 1023 * 1024 // 2, 4),
        (causal & (padding(8) | window(1023, 0)), 5, 1024 * MILLION - 1023 * 1024 // 2, 4),
    ],
    ids=str,
)
def test_a_million_tokens_take_runs_and_boxes_in_proportion(mask, runs, least, band):
    """At most `runs` runs in each row of tiles; what is mixed fits into `band` tiles of a row."""
    counted = Counted(mask)
    axes = ((0,), (0,), range(MILLION), range(MILLION))
    tracemalloc.start()
    try:
        laid = lay(counted, Axes(*axes), 0, TILE, TILE)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    tiles = MILLION // TILE
    assert peak <= 1000 * (band + 1) * tiles  # bytes: a few dozen numbers per row of tiles
    assert len(laid) == tiles
    assert len(laid.begin) == len(laid.end) == len(laid.mixed) <= (runs + 2) * tiles  # joined over levels, there are fewer
    assert max(len(laid.runs(row)) for row in range(0, tiles, 7)) <= runs
    assert least <= laid.visible <= least + band * TILE * MILLION
    mixed = int(((laid.end - laid.begin) * laid.heights)[laid.mixed].sum())
    assert mixed <= band * TILE * MILLION
    assert sum(counted.asked) <= 16 * (band + 1) * 4 * tiles / 3 + 1  # of tiles², 268 million


def test_two_million_tokens_take_twice_the_boxes_of_one():
    totals = []
    for length in (MILLION, 2 * MILLION, 4 * MILLION):
        counted = Counted(causal & window(4095, 0))
        lay(counted, Axes((0,), (0,), range(length), range(length)), 0, TILE, TILE)
        totals.append(sum(counted.asked))
    assert totals[2] <= 4.5 * totals[0]
    assert totals[1] < totals[2]


def drawn_documents(count: int, tokens: int) -> torch.Tensor:
    cuts = torch.randperm(tokens - 1, generator=torch.Generator().manual_seed(0))[: count - 1] + 1
    return torch.zeros(tokens, dtype=torch.int64).index_fill_(0, cuts, 1).cumsum(0)


def peak_of(mask: Mask, tokens: int, batch: int = 1) -> tuple[plan.Plan, float]:
    """The plan of tokens × tokens, and the memory that laying it takes at the most, MiB."""
    tracemalloc.start()
    try:
        laid = lay(mask, Axes(range(batch), (0,), range(tokens), range(tokens)), 0, TILE, TILE)
        return laid, tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


def document_tiles(ids: torch.Tensor) -> int:
    """Pairs of tiles that share a document, of ids that never fall."""
    first, last = ids[::TILE].numpy(), ids[TILE - 1 :: TILE].numpy()
    return int((np.searchsorted(first, last, "right") - np.searchsorted(last, first, "left")).sum())


def test_a_million_tokens_in_thousands_of_documents():
    ids = drawn_documents(4000, MILLION)
    laid, peak = peak_of(documents(ids), MILLION)
    assert peak <= 64
    assert laid.visible == document_tiles(ids) * TILE**2
    assert len(laid.begin) <= 3 * MILLION // TILE
    both, peak = peak_of((window(4096) | prefix(4)) & documents(ids) & causal, MILLION)
    assert peak <= 64
    assert both.visible < laid.visible
    assert len(both.begin) <= 3 * MILLION // TILE
    hidden, peak = peak_of(~documents(ids) & causal, MILLION)
    assert peak <= 64
    assert MILLION**2 * 0.49 < hidden.visible < MILLION**2 * 0.51


def marked(tokens: int, keys: int) -> torch.Tensor:
    """Some keys, far apart, as booleans."""
    places = torch.randperm(tokens, generator=torch.Generator().manual_seed(0))[:keys]
    return torch.zeros(tokens, dtype=torch.bool).index_fill_(0, places, True)


@pytest.mark.parametrize(
    ("make", "most"),
    [
        (lambda n: documents(torch.arange(n) % 3), 1),
        (lambda n: padding(keep=torch.rand(n) < 0.5), 1),
        (lambda n: padding(keep=torch.rand(n) < 0.5) & causal, 0.501),
        (lambda n: padding([n, n // 3]) & causal, 0.501),
        (lambda n: documents(torch.randint(50, (n,))) & window(4096), 0.009),
        (lambda n: documents(torch.arange(n) // 1024 % 2), 0.5),
        (lambda n: documents(torch.arange(n) // 1024 % 2) & causal, 0.2501),
        (lambda n: documents(torch.arange(n) // 512 % 2), 1),
        (lambda n: documents(torch.arange(n) // 1000 % 2), 1),
        (lambda n: padding(keep=torch.arange(n) // 1024 % 2 == 0), 0.5),
        (lambda n: padding(keep=marked(n, 100)) | window(4096), 0.033),
        (lambda n: (padding(keep=marked(n, 100)) | window(512)) & causal, 0.015),
    ],
    ids=[
        *("interleaved", "keep", "keep & causal", "lengths that differ", "documents at random & window"),
        *("checkerboard", "checkerboard & causal", "fine checkerboard", "checkerboard off the tiles", "stripes"),
        *("global keys | window", "(global keys | window) & causal"),
    ],
)
def test_masks_that_change_everywhere_take_bounded_plans(make, most):
    """Not (tokens / tile)² boxes or runs, which are 268 million: cutting ends, and what then is undecided stays mixed."""
    counted = Counted(make(MILLION))
    laid, peak = peak_of(counted, MILLION, batch=2)
    tiles = MILLION // TILE
    assert peak <= 64
    assert laid.visible <= most * MILLION**2
    assert sum(counted.asked) <= 16 * 2 * plan.OPEN * 2 * tiles
    assert len(laid.begin) <= 2 * plan.RUNS * tiles + 16 * plan.AT_ONCE


@pytest.mark.parametrize(("open_boxes", "runs"), [(0, 16), (4, 0), (1, 1), (0, 0)])
def test_a_plan_that_stopped_cutting_misses_nothing(monkeypatch, open_boxes, runs):
    """With so few boxes allowed that even small masks stop: every visible pair is in a run, nothing hidden in a full one."""
    monkeypatch.setattr(plan, "AT_ONCE", 2)
    monkeypatch.setattr(plan, "OPEN", open_boxes)
    monkeypatch.setattr(plan, "RUNS", runs)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, (2, 150), generator=generator)
    keep = torch.rand(150, generator=generator) < 0.8
    board = documents(torch.arange(150) // 8 % 2)
    for mask in (documents(ids), causal & padding(keep=keep), window(9) | prefix(3), ~documents(ids.sort().values), board):
        seen = mask.to_dense(140, 150, batch=2).any(1).numpy()
        laid = lay(mask, Axes((0, 1), (0,), range(140), range(150)), 10, 4, 4)
        for row in range(len(laid)):
            band, before = seen[:, 4 * row : 4 * row + 4], 0
            met = np.zeros(150, bool)
            for step in laid.steps(row, 1000):
                assert before <= step.begin < step.end <= 150
                before = step.end
                met[step.begin : step.end] = True
                assert step.mixed or band[..., step.begin : step.end].all()
            assert not (band.any((0, 1)) & ~met).any()


def test_heads_that_are_switched_on_and_off_take_few_boxes():
    switch = dense(torch.tensor([True, False])[:, None, None])
    counted = Counted(causal & switch)
    laid = lay(counted, Axes((0,), (0, 1), range(MILLION), range(MILLION)), 0, TILE, TILE)
    assert laid.mixed.all()
    assert sum(counted.asked) <= 2 * 16 * 2 * 4 * (MILLION // TILE) / 3
    off = lay(causal & switch, Axes((0,), (1,), range(MILLION), range(MILLION)), 0, TILE, TILE)
    assert off.visible == 0


# -- what is remembered -----------------------------------------------------------------------------------------------


def asked(mask: Mask, keys: int = 6) -> plan.Plan:
    return lay(mask, Axes(range(1), range(1), range(4), range(keys)), 0, 2, 2)


def test_a_plan_is_laid_once_per_mask_and_question():
    mask = causal & window(17, 3)
    first = asked(mask)
    assert asked(mask) is first
    assert asked(causal & window(17, 3)) is first  # masks are equal by value
    assert asked(causal & window(17, 4)) is not first
    assert asked(mask, keys=7) is not first
    assert asked(mask) is first


def test_a_plan_is_forgotten_with_its_mask():
    mask = causal & padding([5])
    laid, living = weakref.ref(asked(mask)), weakref.ref(mask)
    gc.collect()
    assert laid() is not None
    del mask
    gc.collect()
    assert living() is None
    assert laid() is None


def test_a_matrix_that_was_dropped_leaves_nothing_behind():
    kept = torch.ones(6, dtype=torch.bool)
    x = torch.randn(6, 4)
    A = regard.attention(x, x, mask=causal & padding(keep=kept))
    A.entropy()
    mask, laid = weakref.ref(A.call.mask), [weakref.ref(p) for p in plan._plans[A.call.mask].values()]
    tensor = weakref.ref(kept)
    assert laid
    del A, kept
    gc.collect()
    assert [mask(), tensor(), *(p() for p in laid)] == [None] * (2 + len(laid))


@pytest.mark.parametrize(
    ("make", "tensor", "change"),
    [
        (lambda t: padding(keep=t), torch.ones(6, dtype=torch.bool), lambda t: t[2:].fill_(False)),
        (lambda t: causal & padding(t), torch.tensor([6]), lambda t: t.fill_(2)),
        (lambda t: ~padding(keep=t) | dense(t), torch.zeros(6, dtype=torch.bool), lambda t: t.fill_(True)),
    ],
    ids=["keep", "lengths", "composite"],
)
def test_a_plan_is_laid_anew_after_its_tensor_changed(make, tensor, change):
    mask = make(tensor)
    before = asked(mask)
    assert asked(mask) is before
    change(tensor)
    after = asked(mask)
    assert after is not before
    assert after is asked(mask)
    seen = mask.to_dense(4, 6, offset=0)[0, 0]
    for row in range(len(after)):
        met = torch.zeros(6, dtype=torch.bool)
        for step in after.steps(row, 6):
            met[step.begin : step.end] = True
            assert step.mixed or bool(seen[2 * row : 2 * row + 2, step.begin : step.end].all())
        assert bool((seen[2 * row : 2 * row + 2].any(0) <= met).all())


def test_tensors_without_a_version_are_never_remembered():
    with torch.inference_mode():
        kept = torch.ones(6, dtype=torch.bool)
        mask = padding(keep=kept)
        before = asked(mask)
        kept[2:] = False
        after = asked(mask)
    assert before.visible == 24
    assert after.visible == 8


def test_few_plans_are_kept_per_mask():
    mask = window(41)
    for keys in range(1, 100):
        asked(mask, keys)
    assert len(plan._plans[mask]) <= plan.REMEMBERED


def test_a_function_is_not_called_by_the_plan():
    def never(b, h, i, j):
        raise AssertionError("called")

    laid = asked(causal & where(never))
    assert laid.mixed.all()
    assert laid.visible == 2 * 2 + 2 * 4
