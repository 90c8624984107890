"""Dropout on weights: the words that tiles use are the definition, and they are as random as they should be."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import regard
from regard.dropout import Dropout, applied

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 6), st.integers(1, 9))


def pairs(shape: tuple[int, ...], start: int = 0) -> list[torch.Tensor]:
    """Batch rows, heads, queries and keys, counted from `start`, that broadcast to the shape."""
    return [torch.arange(start, start + n).view([-1 if d == axis else 1 for d in range(4)]) for axis, n in enumerate(shape)]


@given(
    p=st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1)),
    seed=st.integers(0, 2**60),
    shape=SHAPES,
    start=st.sampled_from([0, 1000, 2**20, 2**31 - 12]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_words_are_the_definition(p, seed, shape, start, dtype):
    drop, places = Dropout(p, seed), pairs(shape, start)
    weights = torch.rand(shape, dtype=dtype)
    words = drop.words(*places)
    assert set(words.unique().tolist()) <= {0, -1}
    assert applied(words, weights, drop.rescale).equal(drop.dropped(weights, *places))


@pytest.mark.parametrize(("p", "kept"), [(0.0, 1.0), (1.0, 0.0)])
def test_at_the_ends_all_or_none_are_kept(p, kept):
    weights = torch.ones(2, 3, 64, 64)
    assert Dropout(p, 7).dropped(weights, *pairs((2, 3, 64, 64))).eq(kept).all()


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_should_be_everywhere_alike(p):
    """In every row, column, head and batch row, and in neighbouring pairs independently: within six standard deviations."""
    shape = (4, 8, 128, 128)
    dropped = (Dropout(p, 11).words(*pairs(shape)) == 0).double()

    def near(found: torch.Tensor, share: float, count: int) -> None:
        assert (found - share).abs().max() < 6 * math.sqrt(share * (1 - share) / count) + 1 / count

    near(dropped.mean(), p, dropped.numel())
    for axis in range(4):
        others = [d for d in range(4) if d != axis]
        near(dropped.mean(others), p, dropped.numel() // shape[axis])
        both = dropped.narrow(axis, 0, shape[axis] - 1) * dropped.narrow(axis, 1, shape[axis] - 1)
        near(both.mean(), p * p, both.numel())
    near((dropped * dropped.mT).mean(), p * p, dropped.numel() // 2)
    for seed in (0, 10, 12, 11 + 2**32):
        other = (Dropout(p, seed).words(*pairs(shape)) == 0).double()
        near((dropped * other).mean(), p * p, dropped.numel())


def test_a_backward_of_16_bits_knows_its_output_unrounded():
    """δ comes from the output before it was rounded: gradients are as near to float64's as those of a float32 value."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 40, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    g = torch.randn(1, 2, 40, 8, dtype=torch.bfloat16)

    def gradients(dtype: torch.dtype, backend: str) -> list[torch.Tensor]:
        own = [t.detach().to(dtype).requires_grad_() for t in (q, k, v)]
        (regard.attention(*own[:2], backend=backend).dropout(0.3, 5) @ own[2]).backward(g.to(dtype))
        return [t.grad.double() for t in own]

    for found, wanted in zip(gradients(torch.bfloat16, "tiled"), gradients(torch.float64, "reference"), strict=True):
        assert (found - wanted).abs().max() <= 2**-8 * wanted.abs().max()  # rounded once, at the end
