"""The k largest of each row are torch.topk's, and the first ones where numbers are equal."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regard.selection import largest


@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 5),
    size=st.sampled_from([1, 5, 31, 32, 64, 100, 255, 256, 300, 512, 768]),
    k=st.integers(1, 40),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    hidden=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_the_k_largest_are_those_of_torch(seed, rows, size, k, dtype, hidden):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(rows, 2, size, generator=generator, dtype=dtype) * 10.0 ** torch.randint(
        -30, 30, (), generator=generator
    )
    numbers.masked_fill_(torch.rand(numbers.shape, generator=generator) < hidden, float("-inf"))
    before = numbers.clone()
    k = min(k, size)
    values, places = largest(numbers, k)
    assert numbers.equal(before)
    assert values.equal(numbers.topk(k).values)
    assert numbers.gather(-1, places).equal(values)
    assert all(len(set(row)) == k for row in places.flatten(0, 1).tolist())


@pytest.mark.parametrize("size", [64, 256, 512])
def test_where_numbers_are_equal_the_first_come_first(size):
    numbers = torch.zeros(3, size)
    numbers[1, size // 2 :] = float("inf")
    numbers[2] = float("-inf")
    _, places = largest(numbers, 16)
    assert places.tolist() == [[*range(16)], [*range(size // 2, size // 2 + 16)], [*range(16)]]
