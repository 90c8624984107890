"""Padding changes nothing: every answer about a padded batch is that about its sequences alone, on either side.

With `mask & padding(keep=…)` a real query meets what it met before. What sums over queries sums over padded ones too: it is
asked of the real ones, `A.mT @ keep`, or of the slice of a sequence, `A[b, :, rows, columns]`, as every picture is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import regard
from regard import Attention, biases
from regard.backends.tiled import Tiled
from regard.masks import Mask, causal, documents, full, padding, window
from regard.testing.conformance import Answer, compare
from regard.testing.strategies import Case

SMALL = Tiled(elements=64, columns=4, grain=2, least_rows=2)  # several tiles even in a small matrix
MASKS = ("full", "causal", "window", "causal window", "documents", "causal documents", "window | documents")
BIASES = ("none", "alibi", "slopes", "clipped", "t5", "dense", "sum")
SEGMENTS, VALUE_DIM = 3, 3


@dataclass(frozen=True)
class Batch:
    """Sequences of `lengths` keys, the last `queries` of which ask, padded on the left or the right with any numbers."""

    lengths: tuple[int, ...]
    queries: tuple[int, ...]
    left: bool
    shape: str  # of the mask
    kind: str  # of the bias
    softcap: float | None
    width: int
    size: tuple[int, int]  # padded queries and keys
    tensors: dict[str, Tensor]
    ids: Tensor
    segments: Tensor

    def rows(self, b: int) -> slice:
        return self._real(self.queries[b], self.size[0])

    def columns(self, b: int) -> slice:
        return self._real(self.lengths[b], self.size[1])

    def _real(self, count: int, size: int) -> slice:
        return slice(size - count, size) if self.left else slice(0, count)

    def to(self, dtype: torch.dtype) -> Batch:
        return replace(self, tensors={name: t.detach().to(dtype).requires_grad_() for name, t in self.tensors.items()})

    def mask(self, ids: Tensor) -> Mask:
        near, own = window(self.width, self.width - 1), documents(ids)
        made = {"full": full, "causal": causal, "window": near, "causal window": causal & near, "documents": own}
        return (made | {"causal documents": causal & own, "window | documents": near | own})[self.shape]

    def options(self, scores: Tensor) -> dict[str, Any]:
        table, slopes = self.tensors["table"], self.tensors["slopes"]
        bias = {
            "alibi": biases.alibi(len(slopes)),
            "slopes": biases.alibi(slopes),
            "clipped": biases.relative(table),
            "t5": biases.relative(table[:, :6], by=biases.t5(max_distance=8)),
            "dense": biases.dense(scores),
            "sum": biases.alibi(slopes) + biases.relative(table),
        }.get(self.kind)
        return {"bias": bias, "softcap": self.softcap, "sinks": self.tensors.get("sinks")}

    def padded(self, query: str, backend: Any) -> Attention:
        """All of them in one matrix."""
        t = self.tensors
        keep = torch.zeros(len(self.lengths), self.size[1], dtype=torch.bool)
        for b in range(len(self.lengths)):
            keep[b, self.columns(b)] = True
        gaps = [n - m for n, m in zip(self.lengths, self.queries, strict=True)]
        offset = self.size[1] - self.size[0] if self.left else torch.tensor(gaps)
        mask = self.mask(self.ids) & padding(keep=keep)
        return regard.attention(t[query], t["key"], mask=mask, offset=offset, backend=backend, **self.options(t["scores"]))

    def alone(self, b: int, query: str = "query", backend: Any = "reference") -> Attention:
        """One of them."""
        t, rows, columns = self.tensors, self.rows(b), self.columns(b)
        options = self.options(t["scores"][b, :, rows, columns])
        mask = self.mask(self.ids[b, columns])
        return regard.attention(t[query][b, :, rows], t["key"][b, :, columns], mask=mask, backend=backend, **options)

    def case(self, b: int) -> Case:
        """The same as a problem of the conformance suite, whose budget is that of its scores."""
        t, rows, columns = ({n: x.detach() for n, x in self.tensors.items()}, self.rows(b), self.columns(b))
        q, k, v = t["query"][b : b + 1, :, rows], t["key"][b : b + 1, :, columns], t["value"][b : b + 1, :, columns]
        options = self.options(self.tensors["scores"][b, :, rows, columns].detach())
        return Case(q, k, v, t["r"][b : b + 1, :, rows], self.mask(self.ids[b, columns]), None, None, 0, **options)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    lengths = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    queries = tuple(n if draw(st.booleans()) else draw(st.integers(1, n)) for n in lengths)
    size = max(queries) + draw(st.integers(0, 3)), max(lengths) + draw(st.integers(0, 3))
    kv_heads, group, dim = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 4))
    batch, heads = len(lengths), kv_heads * group
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    shapes = {
        "query": (batch, heads, size[0], dim),
        "other": (batch, heads, size[0], dim),
        "key": (batch, kv_heads, size[1], dim),
        "value": (batch, kv_heads, size[1], VALUE_DIM),
        "r": (batch, heads, size[0], 2),
        "scores": (batch, heads, *size),
        "table": (heads, 7),
        "slopes": (heads,),
    }
    if draw(st.booleans()):
        shapes["sinks"] = (heads,)
    return Batch(
        lengths,
        queries,
        draw(st.booleans()),
        draw(st.sampled_from(MASKS)),
        draw(st.sampled_from(BIASES)),
        draw(st.sampled_from((None, 2.0))),
        draw(st.integers(1, 5)),
        size,
        {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()},
        torch.randint(0, 3, (batch, size[1]), generator=generator).sort(-1).values,
        torch.randint(0, SEGMENTS, (batch, size[1]), generator=generator),
    )


# -- what is asked ----------------------------------------------------------------------------------------------------

Ask = Callable[[Attention, Attention, Tensor, Tensor], Tensor]  # of a matrix, another one, segments, values

OF_ROWS: dict[str, Ask] = {  # an answer for each query: those of the real queries are equal
    "logsumexp": lambda A, B, s, v: A.logsumexp(),
    "entropy": lambda A, B, s, v: A.entropy(),
    "topk": lambda A, B, s, v: A.topk(2).values,
    "max": lambda A, B, s, v: A.amax(-1),
    "sum": lambda A, B, s, v: A.sum(-1),
    "diagonal": lambda A, B, s, v: A.diagonal(),
    "previous": lambda A, B, s, v: A.diagonal(-1),
    "next": lambda A, B, s, v: A.diagonal(1),
    "distance": lambda A, B, s, v: A.distance(),
    "mass": lambda A, B, s, v: A.mass(s, SEGMENTS),
    "kl": lambda A, B, s, v: A.kl(B),
    "js": lambda A, B, s, v: A.js(B),
    "output": lambda A, B, s, v: A @ v,
}
OF_SLICES: dict[str, Callable[[Attention, Tensor], Tensor]] = {  # of A[b, :, rows, columns]: equal to that of it alone
    "the matrix": lambda A, r: A.to_dense(),
    "received": lambda A, r: A.sum(-2),
    "largest of each key": lambda A, r: A.amax(-2),
    "one column": lambda A, r: A[..., 0],
    "columns": lambda A, r: A[..., [A.shape[-1] - 1, 0]],
    "transposed": lambda A, r: A.mT @ r,
    "mean picture": lambda A, r: A.pool((2, 3)),
    "sum picture": lambda A, r: A.pool((3, 2), "sum"),
    "max picture": lambda A, r: A.pool((2, 2), "max"),
    "entropy of the slice": lambda A, r: A.entropy(),
    "distance of the slice": lambda A, r: A.distance(),
    "mean": lambda A, r: A.mean(),
}


def alone(batch: Batch) -> list[dict[str, Tensor]]:
    found = []
    for b in range(len(batch.lengths)):
        A, B = batch.alone(b), batch.alone(b, "other")
        columns = batch.columns(b)
        value, r = batch.tensors["value"][b, :, columns], batch.tensors["r"][b, :, batch.rows(b)]
        answers = {name: ask(A, B, batch.segments[b, columns], value) for name, ask in OF_ROWS.items()}
        answers |= {name: ask(A, r) for name, ask in OF_SLICES.items()}
        answers["received of real queries"] = A.sum(-2)
        found.append(answers)
    return found


def together(batch: Batch, backend: Any) -> list[dict[str, Tensor]]:
    A, B = batch.padded("query", backend), batch.padded("other", backend)
    real = torch.zeros(len(batch.lengths), 1, batch.size[0], 1, dtype=A.dtype)
    for b in range(len(batch.lengths)):
        real[b, :, batch.rows(b)] = 1
    of_rows = {name: ask(A, B, batch.segments, batch.tensors["value"]) for name, ask in OF_ROWS.items()}
    received = (A.mT @ real)[..., 0]
    found = []
    for b in range(len(batch.lengths)):
        rows, columns = batch.rows(b), batch.columns(b)
        answers = {name: answer[b, :, rows] for name, answer in of_rows.items()}
        part, r = A[b, :, rows, columns], batch.tensors["r"][b, :, rows]
        answers |= {name: ask(part, r) for name, ask in OF_SLICES.items()}
        answers["received of real queries"] = received[b, :, columns]
        found.append(answers)
    return found


def loss(found: list[dict[str, Tensor]]) -> Tensor:
    """A drawn mixture of all that real queries are answered."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros((), dtype=torch.float64)
    for answers in found:
        for name in (*OF_ROWS, "received of real queries", "mean picture"):
            answer = answers[name].double()
            total = total + (answer * torch.randn(answer.shape, generator=generator, dtype=torch.float64)).sum()
    return total


def gradients(batch: Batch, found: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    names = list(batch.tensors)
    gave = torch.autograd.grad(loss(found), [batch.tensors[name] for name in names], allow_unused=True)
    return {n: torch.zeros_like(batch.tensors[n]) if g is None else g for n, g in zip(names, gave, strict=True)}


# -- the tests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@settings(max_examples=settings.default.max_examples // 4)
@given(batch=batches(), backend=st.sampled_from((SMALL, None)))
def test_padding_changes_nothing(dtype, batch, backend):
    """Within the budget of the conformance suite: twice what the plain computation of each sequence errs, and roundings."""
    given_, plain_, exact_ = batch.to(dtype), batch.to(dtype), batch.to(torch.float64)
    given, plain, exact = together(given_, backend), alone(plain_), alone(exact_)
    for b, (due, simple, got) in enumerate(zip(exact, plain, given, strict=True)):
        case = plain_.case(b)
        for name in due:
            most = max(1.0, float(batch.tensors["value"].abs().max()), float(batch.tensors["r"].abs().max()))
            most *= sum(batch.size)  # the terms of a sum over keys, over queries, and of a distance
            compare(case, *(Answer(f"{name} of sequence {b}", side[name].detach(), most) for side in (due, simple, got)))
    # A gradient sums what every question pulls (at most a few times its terms) over heads and rows, once for each sequence.
    most = 4 * 4 * len(OF_ROWS) * sum(batch.size) * sum(batch.queries) * batch.tensors["slopes"].numel()
    most *= max(1.0, *(float(batch.tensors[name].abs().max()) for name in ("query", "other", "key", "value")))
    gave = gradients(given_, given), gradients(plain_, plain), gradients(exact_, exact)
    for name, got in gave[0].items():
        sides = (got, gave[1][name], gave[2][name])
        compare(case, *(Answer(f"gradient of {name}", side, most, True) for side in (sides[2], sides[1], sides[0])))
    for b in range(len(batch.lengths)):  # what is padding gets none at all
        for name, real in (("query", batch.rows(b)), ("key", batch.columns(b)), ("value", batch.columns(b))):
            left = gave[0][name][b].clone()
            left[:, real] = 0
            assert not left.any()


@settings(max_examples=settings.default.max_examples // 2)
@given(batches())
def test_the_strongest_keys_are_the_same_ones(batch):
    """Counted from the first real key, they are those of the sequence alone."""
    batch = batch.to(torch.float64)
    found = batch.padded("query", SMALL).topk(2).indices
    for b in range(len(batch.lengths)):
        due = batch.alone(b).topk(2).indices
        got = found[b, :, batch.rows(b)]
        assert torch.equal(torch.where(got < 0, got, got - batch.columns(b).start), due)
        assert torch.equal(batch.padded("query", SMALL)[b, :, batch.rows(b), batch.columns(b)].topk(2).indices, due)


def test_what_padding_does_change():
    """Padded queries look at real keys as well: a sum over all queries, or a picture of all, is not that of the sequence."""
    x = torch.randn(1, 1, 4, 2, generator=torch.Generator().manual_seed(0))
    keep = torch.tensor([[True, True, True, False]])
    A, alone = regard.attention(x, x, mask=padding(keep=keep)), regard.attention(x[:, :, :3], x[:, :, :3])
    assert not torch.allclose(A.sum(-2)[..., :3], alone.sum(-2))
    assert not torch.allclose(A.pool((3, 3)), alone.pool((3, 3)))
    torch.testing.assert_close((A.mT @ keep[0].float())[..., :3], alone.sum(-2))
    torch.testing.assert_close(A[..., :3, :3].pool((3, 3)), alone.pool((3, 3)))
