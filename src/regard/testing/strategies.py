"""What hypothesis draws: masks of every kind under & | ~, and whole problems with awkward shapes and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import hypothesis.strategies as st
import torch
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

from regard import biases, masks, scores
from regard.biases import Bias
from regard.dropout import Dropout
from regard.masks import Mask
from regard.scores import Score

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


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
    """One drawn problem: what goes into regard.attention, and what is asked of it.

    >>> Case(q, k, v, r=torch.zeros(2, 4, 6, 3), mask=masks.causal, scale=None, offset=None, seed=0)
    Case(q (2, 4, 6, 8), k (2, 2, 6, 8), v (2, 2, 6, 8), r (2, 4, 6, 3), torch.float32, mask=causal, seed=0)
    """

    query: Tensor
    key: Tensor
    value: Tensor
    r: Tensor
    mask: Mask
    scale: float | None
    offset: int | Tensor | None
    seed: int  # of the gradients that come from above
    bias: Bias | None = None
    score: Score | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    drop: Dropout | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Everything that answers may be differentiated by."""
        own = () if self.sinks is None else (self.sinks,)
        held = tuple(t for values in (self.score, self.bias) if values is not None for t in values.tensors())
        return (self.query, self.key, self.value, self.r, *own, *held)

    @property
    def names(self) -> tuple[str, ...]:
        """What `tensors` are."""
        own = () if self.sinks is None else ("sinks",)
        held = ((value.expression, len(value.tensors())) for value in (self.score, self.bias) if value is not None)
        return ("query", "key", "value", "r", *own, *(f"{name}, {n}" for name, count in held for n in range(count)))

    def with_tensors(self, *tensors: Tensor) -> Case:
        """The same case with others in their place."""
        query, key, value, r, *rest = tensors
        sinks = None if self.sinks is None else rest.pop(0)
        count = 0 if self.score is None else len(self.score.tensors())
        score = None if self.score is None else self.score.with_tensors(*rest[:count])
        bias = None if self.bias is None else self.bias.with_tensors(*rest[count:])
        return replace(self, query=query, key=key, value=value, r=r, sinks=sinks, score=score, bias=bias)

    def options(self) -> dict[str, Any]:
        """The keyword arguments of regard.attention."""
        names = ("mask", "bias", "score", "scale", "softcap", "sinks", "offset")
        return {name: getattr(self, name) for name in names}

    def __repr__(self) -> str:
        shapes = ", ".join(f"{n} {tuple(t.shape)}" for n, t in zip("qkvr", self.tensors, strict=False))
        options = {**self.options(), "mask": self.mask.expression, "sinks": self.sinks, "drop": self.drop, "seed": self.seed}
        said = ", ".join(f"{name}={value}" for name, value in options.items() if value is not None)
        return f"Case({shapes}, {self.query.dtype}, {said})"


@st.composite
def sizes(draw: DrawFn, least: int = 1, most: int = 24) -> Sizes:
    """Small sizes: odd dims, one query, queries ≠ keys, grouped heads.

    >>> from hypothesis import find
    >>> find(sizes(most=8), lambda size: size.keys == 8).keys
    8
    """
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
def _ids(draw: DrawFn, batch: int, length: int) -> Tensor:
    """Document ids, (length,) or (rows, length): end to end or interleaved."""
    rows = draw(st.sampled_from(((), (1,), (batch,))))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    ids = torch.randint(-1, 4, (*rows, length), generator=generator)
    return ids if draw(st.booleans()) else ids.sort(-1, descending=draw(st.booleans())).values


@st.composite
def leaves(draw: DrawFn, size: Sizes) -> Mask:
    """One mask of any kind that lies on such a problem."""
    reach = st.integers(0, max(size.queries, size.keys))
    simple = ("full", "causal", "causal_from", "window", "prefix")
    kind = draw(st.sampled_from((*simple, "lengths", "keep", "documents", "cross", "dense", "where")))
    if kind == "causal_from":
        return masks.causal_from(draw(st.integers(-size.queries, size.keys)))
    if kind == "window":
        return masks.window(draw(reach), draw(st.one_of(st.none(), reach)))
    if kind == "prefix":
        return masks.prefix(draw(reach))
    if kind in ("documents", "cross"):
        keys = draw(_ids(size.batch, size.keys))
        return masks.documents(keys, draw(_ids(size.batch, size.queries)) if kind == "cross" else None)
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
    """Masks under & | ~, recursively.

    >>> from hypothesis import find
    >>> size = find(sizes(), lambda size: size.queries > 1)
    >>> find(drawn_masks(size), lambda mask: mask.opaque).opaque
    True
    """
    return st.recursive(
        leaves(size),
        lambda inner: st.one_of(
            st.builds(lambda a, b: a & b, inner, inner),
            st.builds(lambda a, b: a | b, inner, inner),
            st.builds(lambda a: ~a, inner),
        ),
        max_leaves=4,
    )


def _normal(draw: DrawFn, *shape: int) -> Tensor:
    """Drawn weights."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    return torch.randn(shape, generator=generator)


@st.composite
def drawn_scores(draw: DrawFn, size: Sizes, key_dim: int) -> Score:
    """A score that compares such queries with keys of that dim."""
    kinds = ("bilinear", "additive") if key_dim != size.dim else ("dot", "cosine", "bilinear", "distance", "additive")
    kind = draw(st.sampled_from(kinds))
    heads = draw(st.sampled_from(((), (size.heads,))))
    if kind == "cosine":
        warm = _normal(draw, *heads).abs() + 0.2
        return scores.cosine(warm if draw(st.booleans()) else 0.5)
    if kind == "bilinear":
        return scores.bilinear(_normal(draw, *heads, size.dim, key_dim) / size.dim)
    if kind == "additive":
        hidden = draw(st.integers(1, 5))
        in_front = draw(st.sampled_from(((), (size.heads,), (size.kv_heads,))))
        return scores.additive(
            _normal(draw, *heads, size.dim, hidden), _normal(draw, *in_front, key_dim, hidden), _normal(draw, *heads, hidden)
        )
    return scores.distance() if kind == "distance" else scores.dot()


@st.composite
def drawn_biases(draw: DrawFn, size: Sizes, positions: tuple[int, int]) -> Bias:
    """A bias of any kind, or a sum of two; a dense one may hide."""

    def one() -> Bias:
        kind = draw(st.sampled_from(("alibi", "slopes", "clipped", "t5", "exact", "dense")))
        heads = draw(st.sampled_from((1, size.heads)))
        if kind == "alibi":
            return biases.alibi(size.heads)
        if kind == "slopes":
            return biases.alibi(_normal(draw, size.heads))
        if kind == "clipped":
            return biases.relative(_normal(draw, heads, 2 * draw(st.integers(0, 8)) + 1))
        if kind == "t5":
            return biases.relative(_normal(draw, heads, 8), by=biases.t5(max_distance=16, bidirectional=draw(st.booleans())))
        if kind == "exact":
            lowest, highest = -positions[1], size.keys - 1 - positions[0]
            return biases.relative(_normal(draw, heads, highest - lowest + 1), by=biases.exact(lowest))
        shape = tuple(n if draw(st.booleans()) else 1 for n in (size.batch, size.heads, size.queries, size.keys))
        tensor = _normal(draw, *shape)
        if draw(st.booleans()):
            tensor = tensor.masked_fill(_bits(draw, *shape), float("-inf"))
        return biases.dense(tensor)

    return one() + one() if draw(st.integers(0, 3)) == 0 else one()


def _sometimes(draw: DrawFn, strategy: SearchStrategy[Any]) -> Any:
    """None in two of three draws."""
    return draw(strategy) if draw(st.integers(0, 2)) == 0 else None


@st.composite
def cases(draw: DrawFn, /, dtypes: Sequence[torch.dtype] = DTYPES, least: int = 1, most: int = 24, plain: bool = False) -> Case:
    """A whole problem: flat, peaked or ascending scores; strided inputs; offsets; shared and grouped values.

    plain = the dot product alone; else biases, other scores, softcaps, sinks and dropout are drawn too.

    >>> from hypothesis.strategies import SearchStrategy
    >>> isinstance(cases(most=8), SearchStrategy)
    True
    """
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

    key_dim = size.dim if plain else draw(st.sampled_from((size.dim, size.dim, size.dim + 2)))
    score = None if plain else draw(drawn_scores(size, key_dim)) if key_dim != size.dim or draw(st.booleans()) else None
    query = normal(size.batch, size.heads, size.queries, size.dim)
    key = normal(size.batch, size.kv_heads, size.keys, key_dim)
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
    offsets = [size.keys - size.queries] if offset is None else offset.tolist() if isinstance(offset, Tensor) else [offset]
    positions = min(offsets), max(offsets) + size.queries - 1
    bias = softcap = sinks = drop = None
    if not plain:
        bias = _sometimes(draw, drawn_biases(size, positions))
        softcap = _sometimes(draw, st.sampled_from((0.5, 3.0, 30.0)))
        sinks = _normal(draw, size.heads) if draw(st.integers(0, 2)) == 0 else None
        drop = _sometimes(draw, st.builds(Dropout, st.sampled_from((0.0, 0.1, 0.5, 1.0)), st.integers(0, 2**40)))
    return Case(
        query,
        key,
        normal(size.batch, draw(st.sampled_from((1, size.kv_heads, size.heads))), size.keys, size.value_dim),
        normal(size.batch, draw(st.sampled_from((1, size.heads))), size.queries, draw(st.integers(1, 3))),
        draw(drawn_masks(size)),
        draw(st.sampled_from((None, None, 0.3, -1.0))),
        offset,
        draw(st.integers(0, 2**20)),
        bias,
        score,
        softcap,
        sinks,
        drop,
    )
