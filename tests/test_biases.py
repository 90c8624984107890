"""Biases against their formulas, pair by pair in plain Python; what they pull against autograd; values; the refusals."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regard import biases, checks
from regard.biases import Bias, alibi, clipped, dense, exact, relative, t5
from regard.biases.algebra import Sum
from regard.biases.distances import diagonals

BATCH, HEADS, QUERIES, KEYS = 2, 3, 9, 11  # the whole matrix; a tile is a part of it
LEAST, MOST = -4, 6  # offsets
seeds = st.integers(0, 2**20).map(lambda seed: torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Drawn:
    """A bias and what it adds to (batch, head, query, key), p the position of the query."""

    bias: Bias
    adds: Callable[[int, int, int, int, int], float]

    def __repr__(self) -> str:
        return self.bias.expression


def _alibi(generator: torch.Generator, dtype: torch.dtype) -> Drawn:
    slopes = torch.rand(HEADS, generator=generator, dtype=torch.float64).to(dtype)
    return Drawn(alibi(slopes), lambda b, h, i, j, p: -slopes[h].item() * abs(j - p))


def _heads(generator: torch.Generator, dtype: torch.dtype) -> Drawn:
    return Drawn(alibi(HEADS), lambda b, h, i, j, p: -(0.0625, 0.00390625, 0.25)[h] * abs(j - p))


def _table(by: object, entries: int, entry: Callable[[int], int]) -> Callable[[torch.Generator, torch.dtype], Drawn]:
    def draw(generator: torch.Generator, dtype: torch.dtype) -> Drawn:
        rows = 1 + 2 * int(torch.randint(2, (), generator=generator))
        table = torch.randn(rows, entries, generator=generator, dtype=torch.float64).to(dtype)
        return Drawn(relative(table, by), lambda b, h, i, j, p: table[h % rows, entry(j - p)].item())

    return draw


def _dense(*shape: int) -> Callable[[torch.Generator, torch.dtype], Drawn]:
    def draw(generator: torch.Generator, dtype: torch.dtype) -> Drawn:
        tensor = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        whole = tensor.expand(BATCH, HEADS, QUERIES, KEYS)
        return Drawn(dense(tensor), lambda b, h, i, j, p: whole[b, h, i, j].item())

    return draw


LOWEST, ALL = 0 - (QUERIES - 1 + MOST), KEYS + QUERIES - 1 + MOST - LEAST
MAKERS = {
    "alibi": _alibi,
    "heads": _heads,
    "clipped": _table(clipped(), 7, lambda d: min(max(d, -3), 3) + 3),
    "one": _table(clipped(), 1, lambda d: 0),
    "exact": _table(exact(LOWEST), ALL, lambda d: d - LOWEST),
    "t5": _table(t5(8, bidirectional=False), 4, lambda d: (0, 1, 2, 2, *[3] * 40)[max(-d, 0)]),
    "full": _dense(BATCH, HEADS, QUERIES, KEYS),
    "heads and keys": _dense(HEADS, 1, KEYS),
    "batch and queries": _dense(BATCH, 1, QUERIES, 1),
    "queries": _dense(QUERIES, 1),
    "keys": _dense(KEYS),
    "number": _dense(1, 1),
}
MAKERS["sum"] = lambda generator, dtype: _sum(
    [MAKERS[name](generator, dtype) for name in ("alibi", "clipped", "full", "heads")]
)


def _sum(parts: list[Drawn]) -> Drawn:
    first, *rest = (part.bias for part in parts)
    return Drawn(sum(rest[1:], first + rest[0]), lambda *pair: sum(part.adds(*pair) for part in parts))


@st.composite
def axes(draw, size: int) -> list[int]:
    """Some indices: a run, every second one, or any."""
    kind = draw(st.sampled_from(("run", "run", "steps", "any")))
    if kind == "any":
        return draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=size))
    begin = draw(st.integers(0, size - 1))
    return list(range(begin, draw(st.integers(begin + 1, size)), 1 if kind == "run" else 2))


@st.composite
def tiles(draw) -> tuple[list[int], list[int], list[int], list[int], int | list[int]]:
    offsets = st.integers(LEAST, MOST)
    offset = draw(offsets | st.lists(offsets, min_size=BATCH, max_size=BATCH))
    return draw(axes(BATCH)), draw(axes(HEADS)), draw(axes(QUERIES)), draw(axes(KEYS)), offset


def indices(tile) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    b, h, i, j = (torch.tensor(axis) for axis in tile[:4])
    b, h, i = b[:, None, None, None], h[:, None, None], i[:, None]
    return b, h, i, j, i + (torch.tensor(tile[4])[b] if isinstance(tile[4], list) else tile[4])


def due(drawn: Drawn, tile) -> Tensor:
    batch, heads, queries, keys, offset = tile
    shift = dict(enumerate(offset)) if isinstance(offset, list) else dict.fromkeys(range(BATCH), offset)
    rows = [[[[drawn.adds(b, h, i, j, i + shift[b]) for j in keys] for i in queries] for h in heads] for b in batch]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=25)
@given(seed=seeds, tile=tiles())
def test_adds_what_the_formula_says(name, seed, tile):
    drawn = MAKERS[name](seed, torch.float64)
    wanted = due(drawn, tile)
    found = drawn.bias.adds(*indices(tile))
    assert found.dtype == (torch.float64 if drawn.bias.tensors() else torch.float32)
    assert torch.broadcast_shapes(found.shape, wanted.shape) == wanted.shape
    torch.testing.assert_close(found.double().expand(wanted.shape), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "heads"])
@settings(max_examples=25)
@given(seed=seeds, tile=tiles())
def test_pulls_what_autograd_does(name, seed, tile):
    bias = MAKERS[name](seed, torch.float64).bias
    bias = bias.with_tensors(*(t.requires_grad_() for t in bias.tensors()))
    at = indices(tile)
    shape = tuple(map(len, tile[:4]))
    grad = torch.randn(shape, generator=seed, dtype=torch.float64)
    wanted = torch.autograd.grad(bias.adds(*at).expand(shape), bias.tensors(), grad)
    found = tuple(torch.ones_like(t) for t in bias.tensors())
    with torch.no_grad():
        bias.pull(*at, grad, found)
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one - 1, two, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_is_cast_up(name, dtype):
    tile = ([0, 1], [0, 1, 2], [2, 3, 4], list(range(KEYS)), [1, -2])
    drawn = MAKERS[name](torch.Generator().manual_seed(3), dtype)
    bias, at = drawn.bias, indices(tile)
    found = bias.adds(*at)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double().expand(due(drawn, tile).shape), due(drawn, tile), rtol=1e-6, atol=1e-6)
    sums = tuple(torch.zeros(t.shape) for t in bias.tensors())
    bias.pull(*at, torch.ones(2, 3, 3, KEYS), sums)
    if sums:
        leaves = [t.double().requires_grad_() for t in bias.tensors()]
        total = bias.with_tensors(*leaves).adds(*at).expand(2, 3, 3, KEYS).sum()
        for one, two in zip(sums, torch.autograd.grad(total, leaves), strict=True):
            torch.testing.assert_close(one.double(), two)


@pytest.mark.parametrize("name", MAKERS)
def test_second_derivatives_of_adds_are_zero_and_exist(name):
    bias = MAKERS[name](torch.Generator().manual_seed(1), torch.float64).bias
    if tensors := [t.requires_grad_() for t in bias.tensors()]:
        at = indices(([0, 1], [0, 1, 2], [1, 2], [0, 1, 2], 1))
        assert torch.autograd.gradcheck(lambda *t: bias.with_tensors(*t).adds(*at), tensors)
        assert torch.autograd.gradgradcheck(lambda *t: bias.with_tensors(*t).adds(*at).square(), tensors)


@pytest.mark.parametrize("name", MAKERS)
def test_on_meta_tensors(name):
    bias = MAKERS[name](torch.Generator().manual_seed(1), torch.float32).bias.to("meta")
    at = tuple(t.to("meta") for t in indices(([0, 1], [0, 1, 2], [1, 2], [0, 1, 2], [0, 1])))
    found = bias.adds(*at)
    assert found.device.type == "meta"
    assert torch.broadcast_shapes(found.shape, (2, 3, 2, 3)) == (2, 3, 2, 3)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 5), (5, 1), (3, 4), (4, 3), (4, 4), (0, 3)])
def test_diagonals(rows, columns):
    grad = torch.randn(2, rows, columns, dtype=torch.float64)
    wanted = torch.zeros(2, max(rows + columns - 1, 0), dtype=torch.float64)
    for i in range(rows):
        for j in range(columns):
            wanted[:, j - i + rows - 1] += grad[:, i, j]
    torch.testing.assert_close(diagonals(grad), wanted)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("empty", range(4))
def test_a_tile_of_nothing(name, empty):
    sizes = [2, 3, 4, 5]
    sizes[empty] = 0
    bias = MAKERS[name](torch.Generator().manual_seed(1), torch.float32).bias
    at = indices((*(list(range(n)) for n in sizes), 1))
    at = tuple(t.long() for t in at)
    assert torch.broadcast_shapes(bias.adds(*at).shape, tuple(sizes)) == tuple(sizes)
    sums = tuple(torch.zeros_like(t) for t in bias.tensors())
    bias.pull(*at, torch.zeros(sizes), sums)
    assert not any(t.any() for t in sums)


@pytest.mark.parametrize("name", MAKERS)
def test_change_is_the_difference(name):
    bias = MAKERS[name](torch.Generator().manual_seed(1), torch.float64).bias
    at = indices(([0, 1], [0, 1, 2], [1, 2], [0, 1, 2], [1, 0]))
    changes = [torch.randn_like(t) for t in bias.tensors()]
    change = bias.change(*changes)
    moved = bias.with_tensors(*(t + c for t, c in zip(bias.tensors(), changes, strict=True)))
    difference = moved.adds(*at) - bias.adds(*at)
    torch.testing.assert_close(change.adds(*at) if change else torch.zeros_like(difference), difference)


def test_a_sum_of_constants_does_not_change():
    assert (alibi(2) + alibi(2)).change() is None
    table = torch.ones(1, 3)
    assert (alibi(2) + relative(table) + alibi(2)).change(table).parts() == (relative(table),)


# -- against what is published ----------------------------------------------------------------------------------------


def test_slopes_of_the_paper():
    def slopes(heads: int) -> list[float]:
        head = torch.arange(heads)[:, None, None]
        zero = torch.zeros(1, 1, dtype=torch.int64)
        return (-alibi(heads).adds(zero, head, zero, torch.tensor([1]), zero)).flatten().tolist()

    eight = [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
    assert slopes(8) == eight
    assert slopes(12) == pytest.approx([*eight, 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5], rel=1e-7)
    assert slopes(16) == pytest.approx([2 ** (-n / 2) for n in range(1, 17)], rel=1e-7)
    assert slopes(1) == [1 / 256]
    assert slopes(3) == [1 / 16, 1 / 256, 1 / 4]


@pytest.mark.parametrize("heads", [*range(1, 34), 71])
def test_slopes_of_transformers(heads):
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    theirs = bloom.build_alibi_tensor(torch.ones(1, 2), heads, torch.float32).reshape(heads, 2)[:, 1]
    assert torch.tensor(alibi(heads).slopes) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("entries", "max_distance"), [(32, 128), (32, 20), (64, 1000), (4, 3), (10, 128), (33, 77)])
def test_buckets_of_transformers(bidirectional, entries, max_distance):
    t5_attention = pytest.importorskip("transformers.models.t5.modeling_t5").T5Attention
    distance = torch.cat((torch.arange(-3000, 3000), torch.tensor([-(2**40), -(10**6), 10**6, 2**40])))
    theirs = t5_attention._relative_position_bucket(distance, bidirectional, entries, max_distance)
    assert torch.equal(t5(max_distance, bidirectional).entry(distance, entries), theirs)


def test_an_encoder_of_transformers_takes_its_bias_from_the_transposed_weight():
    t5_model = pytest.importorskip("transformers.models.t5.modeling_t5")
    config = t5_model.T5Config(d_model=12, d_kv=4, num_heads=3, d_ff=8, num_layers=1)
    layer = t5_model.T5Attention(config, has_relative_attention_bias=True)
    with torch.no_grad():
        theirs = layer.compute_bias(7, 40)
        ours = relative(layer.relative_attention_bias.weight.T, t5()).adds(*indices(([0], [0, 1, 2], range(7), range(40), 0)))
    assert torch.equal(ours, theirs[0])


# -- the algebra ------------------------------------------------------------------------------------------------------


def test_sums_are_flat_and_keep_their_order():
    a, b, c = alibi(2), relative(torch.randn(2, 5)), dense(torch.randn(4, 4))
    assert (a + b) + c == a + (b + c) == Sum((a, b, c))
    assert a + b != b + a
    assert [id(t) for t in (a + b + c).tensors()] == [id(t) for t in (*b.tensors(), *c.tensors())]
    assert (a + b).parts() == (a, b)
    assert a.parts() == (a,)


@pytest.mark.parametrize("name", MAKERS)
def test_values(name):
    bias = MAKERS[name](torch.Generator().manual_seed(1), torch.float32).bias
    assert bias == bias.with_tensors(*bias.tensors())
    assert hash(bias) == hash(bias.with_tensors(*bias.tensors()))
    at = indices(([0, 1], [0, 1, 2], [1, 2], [0, 1, 2], 1))
    for twin in (pickle.loads(pickle.dumps(bias)), copy.deepcopy(bias)):
        assert repr(twin) == repr(bias) == str(bias) == bias.expression
        assert (twin == bias) == (not bias.tensors())  # tensors are compared by identity
        assert torch.equal(twin.adds(*at), bias.adds(*at))
        assert twin == twin.to("cpu")
    for tensor in bias.tensors():
        then = bias.with_tensors(*bias.tensors())
        tensor.add_(1)
        assert then != bias.with_tensors(*bias.tensors())  # and by version


def test_expressions():
    table, tensor = torch.zeros(2, 9), torch.zeros(3, 1, 4, 5)
    assert repr(alibi(8)) == "alibi(8)"
    assert repr(alibi(torch.ones(4))) == "alibi(slopes of 4)"
    assert repr(relative(table)) == "relative(2×9, clipped())"
    assert repr(relative(table, t5())) == "relative(2×9, t5())"
    assert repr(relative(table, t5(64, bidirectional=False))) == "relative(2×9, t5(max_distance=64, bidirectional=False))"
    assert repr(relative(table, exact(-4)) + dense(tensor)) == "relative(2×9, exact(-4)) + dense(3×1×4×5)"


def test_exports():
    assert all(getattr(biases, name).__doc__ for name in biases.__all__)
    assert {exact(2), exact(2), clipped(), clipped(), t5(), t5(128)} == {exact(2), clipped(), t5()}


# -- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bias", "said"),
    [
        (alibi(4), ["alibi has 4 slopes and the matrix 3 heads"]),
        (alibi(torch.ones(1)), ["alibi has 1 slopes and the matrix 3 heads"]),
        (relative(torch.ones(2, 5)), ["a table of shape (2, 5) has 2 heads and the matrix 3"]),
        (relative(torch.ones(3, 5)), []),
        (relative(torch.ones(1, 5)), []),
        (relative(torch.ones(3, 11), exact(-6)), []),
        (
            relative(torch.ones(3, 11), exact(-5)),
            ["a table of shape (3, 11) with exact(-5) covers the distances -5 … 5, and -6 … 4 occur"],
        ),
        (
            relative(torch.ones(1, 10), exact(-6)),
            ["a table of shape (1, 10) with exact(-6) covers the distances -6 … 3, and -6 … 4 occur"],
        ),
        (dense(torch.ones(3, 5, 7)), []),
        (dense(torch.ones(2, 1, 7)), ["dense bias of shape (2, 1, 7) does not broadcast to (2, 3, 5, 7)"]),
        (alibi(4) + dense(torch.ones(6)), ["alibi has 4", "dense bias of shape (6,)"]),
    ],
    ids=str,
)
def test_misfits(bias, said):
    found = bias.misfits(2, 3, 5, 7, (2, 6))
    assert len(found) == len(said)
    assert all(one.startswith(start) for one, start in zip(found, said, strict=True))


def test_no_distance_occurs_where_nothing_is():
    bias = relative(torch.ones(3, 1), exact(40))
    assert bias.misfits(2, 3, 5, 0, (2, 6)) == bias.misfits(2, 3, 0, 7, (2, 2)) == []


def test_the_distances_that_are_said_to_occur_do():
    """The table of exactly that size is read from end to end, and no further."""
    for offset in (-3, 0, 5):
        low, high = -(QUERIES - 1 + offset), KEYS - 1 - offset
        bias = relative(torch.arange(high - low + 1.0)[None], exact(low))
        assert bias.misfits(1, 1, QUERIES, KEYS, (offset, QUERIES - 1 + offset)) == []
        found = bias.adds(*indices(([0], [0], range(QUERIES), range(KEYS), offset)))
        assert (found.min(), found.max()) == (0, high - low)


def test_an_infinite_entry_stays_one():
    bias = relative(torch.tensor([[-math.inf, 0.0, 1.0]]))
    assert (bias.adds(*indices(([0], [0], [0, 1, 2], [0, 1], 0)))[0] == -math.inf).tolist() == [[0, 0], [1, 0], [1, 1]]


def test_fits():
    cpu = torch.device("cpu")
    bias = alibi(3) + dense(torch.ones(7))
    assert checks.bias_fits(bias, 2, 3, 5, 7, (2, 6), cpu) is bias
