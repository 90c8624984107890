"""What hypothesis draws: masks of every kind under & | ~, and whole problems with awkward shapes and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import hypothesis.strategies as st
import torch
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

from regard import masks
from regard.masks import Mask

DTYPES = (torch.float64, torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Sizes:
    """How large a problem is."""

    batch: int
    kv_heads: int
    group: int
    queries: int
    keys: int
    dim: int
    value_dim: int

    @property
    def heads(self) -> int:
        return self.kv_heads * self.group


@dataclass(frozen=True)
class Case:
    """One drawn problem: what goes into regard.attention, and what is asked of it."""

    query: Tensor
    key: Tensor
    value: Tensor
    r: Tensor
    mask: Mask
    scale: float | None
    offset: int | Tensor | None
    seed: int  # of the gradients that come from above

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.query, self.key, self.value, self.r

    def __repr__(self) -> str:
        shapes = ", ".join(f"{n} {tuple(t.shape)}" for n, t in zip("qkvr", self.tensors, strict=True))
        return (
            f"Case({shapes}, {self.query.dtype}, {self.mask.expression}, scale={self.scale}, offset={self.offset}, "
            f"seed={self.seed})"
        )


@st.composite
def sizes(draw: DrawFn, least: int = 1, most: int = 24) -> Sizes:
    """Small sizes: odd dims, one query, queries ≠ keys, grouped heads."""
    small = st.integers(1, 3)
    length = st.integers(least, most)
    return Sizes(
        draw(st.integers(1, 3)), draw(small), draw(small), draw(length), draw(length), draw(st.integers(1, 9)),
        draw(st.integers(1, 6)),
    )  # fmt: skip


def _bits(draw: DrawFn, *shape: int) -> Tensor:
    seed = draw(st.integers(0, 2**20))
    share = draw(st.sampled_from((0.1, 0.5, 0.9)))
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


@st.composite
def leaves(draw: DrawFn, size: Sizes) -> Mask:
    """One mask of any kind that lies on such a problem."""
    reach = st.integers(0, max(size.queries, size.keys))
    kind = draw(st.sampled_from(("full", "causal", "causal_from", "window", "lengths", "keep", "dense", "where")))
    if kind == "causal_from":
        return masks.causal_from(draw(st.integers(-size.queries, size.keys)))
    if kind == "window":
        return masks.window(draw(reach), draw(st.one_of(st.none(), reach)))
    if kind == "lengths":
        rows = draw(st.sampled_from((1, size.batch)))
        lengths = draw(st.lists(st.integers(0, size.keys + 2), min_size=rows, max_size=rows))
        return masks.padding(torch.tensor(lengths) if draw(st.booleans()) else lengths)
    if kind == "keep":
        return masks.padding(keep=_bits(draw, draw(st.sampled_from((1, size.batch))), size.keys))
    if kind == "dense":
        full_shape = (size.batch, size.heads, size.queries, size.keys)
        shape = tuple(n if draw(st.booleans()) else 1 for n in full_shape)
        return masks.dense(_bits(draw, *shape))
    if kind == "where":
        modulus = draw(st.integers(2, 5))
        return masks.where(lambda b, h, i, j: (b + h + i * 2 + j) % modulus > 0)
    return {"full": masks.full, "causal": masks.causal}[kind]


def drawn_masks(size: Sizes) -> SearchStrategy[Mask]:
    """Masks under & | ~, recursively."""
    return st.recursive(
        leaves(size),
        lambda inner: st.one_of(
            st.builds(lambda a, b: a & b, inner, inner),
            st.builds(lambda a, b: a | b, inner, inner),
            st.builds(lambda a: ~a, inner),
        ),
        max_leaves=4,
    )


@st.composite
def cases(draw: DrawFn, /, dtypes: Sequence[torch.dtype] = DTYPES, least: int = 1, most: int = 24) -> Case:
    """A whole problem: flat, peaked or ascending scores; strided inputs; offsets; shared and grouped values."""
    size = draw(sizes(least, most))
    dtype = draw(st.sampled_from(tuple(dtypes)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))

    def normal(*shape: int) -> Tensor:
        tensor = torch.randn(shape, generator=generator, dtype=torch.float64)
        if draw(st.booleans()):  # strided: every second row of a larger tensor, or dimensions that were swapped
            wide = torch.zeros(*shape[:-2], 2 * shape[-2], shape[-1], dtype=torch.float64)
            wide[..., ::2, :] = tensor
            return wide.to(dtype)[..., ::2, :]
        return tensor.to(dtype)

    query = normal(size.batch, size.heads, size.queries, size.dim)
    key = normal(size.batch, size.kv_heads, size.keys, size.dim)
    shape_of_scores = draw(st.sampled_from(("flat", "peaked", "ascending")))
    if shape_of_scores == "peaked":
        query = query * 16
    elif shape_of_scores == "ascending":  # every new key beats the greatest score so far
        key = key.abs().cumsum(-2)
        query = query.abs()
    offset = draw(
        st.one_of(
            st.none(),
            st.integers(-size.queries, size.keys),
            st.lists(st.integers(-3, size.keys), min_size=size.batch, max_size=size.batch).map(torch.tensor),
        )
    )
    return Case(
        query,
        key,
        normal(size.batch, draw(st.sampled_from((1, size.kv_heads, size.heads))), size.keys, size.value_dim),
        normal(size.batch, draw(st.sampled_from((1, size.heads))), size.queries, draw(st.integers(1, 3))),
        draw(drawn_masks(size)),
        draw(st.sampled_from((None, None, 0.3, -1.0))),
        offset,
        draw(st.integers(0, 2**20)),
    )
