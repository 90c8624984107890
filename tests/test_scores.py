"""Scores against their definitions, and their reductions to a dot product; derivatives; values; the refusals."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regard import checks, scores
from regard.scores import Score, additive, bilinear, cosine, distance, dot

seeds = st.integers(0, 2**20)


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


HIDDEN = 3
MAKERS: dict[str, Callable[[int, int, int, int], Score]] = {  # of heads, kv_heads, dim, key_dim
    "dot": lambda h, g, d, e: dot(),
    "cosine": lambda h, g, d, e: cosine(0.3),
    "cosine, learned": lambda h, g, d, e: cosine(torch.rand((), dtype=torch.float64) + 0.5),
    "cosine, per head": lambda h, g, d, e: cosine(torch.rand(h, dtype=torch.float64) + 0.5),
    "bilinear": lambda h, g, d, e: bilinear(randn(d, e)),
    "bilinear, per head": lambda h, g, d, e: bilinear(randn(h, d, e)),
    "distance": lambda h, g, d, e: distance(),
    "additive": lambda h, g, d, e: additive(randn(d, HIDDEN), randn(e, HIDDEN), randn(HIDDEN)),
    "additive, per head": lambda h, g, d, e: additive(randn(h, d, HIDDEN), randn(h, e, HIDDEN), randn(h, HIDDEN)),
    "additive, per key head": lambda h, g, d, e: additive(randn(d, HIDDEN), randn(g, e, HIDDEN), randn(HIDDEN)),
    "additive, keys projected": lambda h, g, d, e: additive(randn(h, d, e), None, randn(e)),
    "additive, queries projected": lambda h, g, d, e: additive(None, randn(e, d), randn(h, d)),
    "additive, both projected": lambda h, g, d, e: additive(None, None, randn(d)),
}
SCALED = {"dot", "distance"}
UNEQUAL = [name for name in MAKERS if name.startswith(("bilinear", "additive")) and "both" not in name]


def compared(score: Score, query: Tensor, key: Tensor) -> Tensor:
    """What a backend makes of the reduced pair."""
    q, k = score.reduced(query, key)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    if score.combine is None:
        return q @ k.mT
    return (score.combine[:, None, None].to(q.dtype) * torch.tanh(q[:, :, :, None] + k[:, :, None])).sum(-1)


def pairs(score: Score, query: Tensor, key: Tensor) -> Tensor:
    """The definition once more, for every pair by itself, in words of vectors."""
    batch, heads, queries, _ = query.shape
    found = query.new_zeros(batch, heads, queries, key.shape[2])
    group = heads // key.shape[1]
    for b, h, i, j in torch.cartesian_prod(*map(torch.arange, found.shape)).tolist():
        q, k = query[b, h, i], key[b, h // group, j]
        if type(score).__name__ == "Additive":  # of a head: its own, that of its keys, or that of all; None = projected
            tensors = [None if held is None else held.tensor for held in (score.w_query, score.w_key, score.v)]
            shared = (2, 2, 1)
        else:
            tensors, shared = list(score.tensors()), (0 if type(score).__name__ == "Cosine" else 2,)
        for n, t in enumerate(tensors):
            if t is not None and t.ndim > shared[n]:
                tensors[n] = t[h if len(t) == heads else h // group]
        match type(score).__name__:
            case "Dot":
                f = q.dot(k)
            case "Cosine":
                zero = q.norm() == 0 or k.norm() == 0
                f = 0 * q.sum() if zero else q.dot(k) / q.norm() / k.norm() / (tensors or [score.temperature])[0]
            case "Bilinear":
                f = q.dot(tensors[0] @ k)
            case "Distance":
                f = -((q - k).norm() ** 2) / 2
            case "Additive":
                w_query, w_key, v = tensors
                f = v.dot(torch.tanh((q if w_query is None else w_query.T @ q) + (k if w_key is None else w_key.T @ k)))
        found[b, h, i, j] = f
    return found


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=15)
@given(
    seed=seeds,
    batch=st.integers(1, 2),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    queries=st.integers(1, 3),
    keys=st.integers(1, 4),
    dims=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_reduced_is_the_definition(name, seed, batch, kv_heads, group, queries, keys, dims):
    torch.manual_seed(seed)
    dim, key_dim = dims if name in UNEQUAL else (dims[0], dims[0])
    heads = kv_heads * group
    score = MAKERS[name](heads, kv_heads, dim, key_dim)
    assert score.misfits(heads, kv_heads, dim, key_dim) == []
    query, key = randn(batch, heads, queries, dim), randn(batch, kv_heads, keys, key_dim)
    wanted = pairs(score, query, key)
    torch.testing.assert_close(score.between(query, key), wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(compared(score, query, key), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", MAKERS)
def test_derivatives_once_and_twice(name):
    torch.manual_seed(2)
    score = MAKERS[name](2, 1, 3, 3)
    inputs = [t.requires_grad_() for t in (randn(1, 2, 2, 3), randn(1, 1, 2, 3), *score.tensors())]

    def through(how: Callable[[Score, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
        return lambda q, k, *tensors: how(score.with_tensors(*tensors), q, k)

    for how in (compared, lambda s, q, k: s.between(q, k)):
        assert torch.autograd.gradcheck(through(how), inputs)
        assert torch.autograd.gradgradcheck(through(how), inputs)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_computed_in_the_dtype_of_the_query(name, dtype):
    torch.manual_seed(2)
    score = MAKERS[name](4, 2, 3, 3)
    score = score.with_tensors(*(t.to(dtype) for t in score.tensors()))
    query, key = torch.randn(2, 4, 5, 3), torch.randn(2, 2, 6, 3)
    assert {t.dtype for t in score.reduced(query, key)} == {torch.float32}
    found = score.between(query, key)
    assert found.dtype == torch.float32
    torch.testing.assert_close(compared(score, query, key), found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("shape", [(0, 4, 2, 3), (2, 4, 0, 3), (2, 4, 2, 0), (2, 0, 2, 3)])
def test_nothing_to_compare(name, shape):
    batch, heads, queries, keys = shape
    score = MAKERS[name](heads, heads // 2, 5, 5)
    query, key = randn(batch, heads, queries, 5), randn(batch, heads // 2, keys, 5)
    assert score.between(query, key).shape == shape
    q, k = score.reduced(query, key)
    assert (q.shape[:3], k.shape[2]) == (shape[:3], keys)


@pytest.mark.parametrize("name", MAKERS)
def test_default_scale(name):
    assert MAKERS[name](2, 1, 16, 16).scale(16) == (0.25 if name in SCALED else 1)


# -- each for itself --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, torch.tensor([0.5, 2.0], dtype=torch.float64)], ids=["number", "tensor"])
@pytest.mark.parametrize("how", [compared, lambda s, q, k: s.between(q, k)], ids=["reduced", "between"])
def test_the_cosine_of_a_zero_vector_is_zero_with_finite_derivatives(temperature, how):
    query, key = randn(1, 2, 3, 4), randn(1, 1, 3, 4)
    query[0, 0, 1], key[0, 0, 2] = 0, 0
    inputs = [t.requires_grad_() for t in (query, key)]
    inputs += [temperature.clone().requires_grad_()] if isinstance(temperature, Tensor) else []
    found = how(cosine(inputs[2] if len(inputs) > 2 else temperature), query, key)
    assert not found[0, 0, 1].any()
    assert not found[..., 2].any()
    weight = randn(*found.shape)
    first = torch.autograd.grad((found * weight).sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
    assert all(g.isfinite().all() for g in (*first, *second))
    assert not first[0][0, 0, 1].any()
    assert not first[1][0, 0, 2].any()


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e30])
def test_the_cosine_does_not_depend_on_the_lengths(size):
    query, key = torch.randn(1, 1, 4, 8), torch.randn(1, 1, 5, 8)
    found = compared(cosine(), query * size, key / size)
    torch.testing.assert_close(found, torch.cosine_similarity(query[..., :, None, :], key[..., None, :, :], -1))


def test_nothing_of_one_key_reaches_another():
    query, key = randn(1, 2, 3, 4), randn(1, 1, 3, 4)
    for name in MAKERS:
        score = MAKERS[name](2, 1, 4, 4)
        spoilt = key.clone()
        spoilt[0, 0, 1] = math.nan
        for how in (compared, lambda s, q, k: s.between(q, k)):
            torch.testing.assert_close(how(score, query, spoilt)[..., [0, 2]], how(score, query, key)[..., [0, 2]])


def test_nearness_of_keys_of_one_length_is_dot_product_attention():
    query = randn(1, 2, 5, 4)
    key = torch.nn.functional.normalize(randn(1, 2, 6, 4), dim=-1) * 3
    near, scaled = (s.between(query, key) * s.scale(4) for s in (distance(), dot()))
    torch.testing.assert_close(near.softmax(-1), scaled.softmax(-1))


def test_weights_as_linear_layers_have_them():
    query, key = torch.randn(1, 1, 4, 8), torch.randn(1, 1, 5, 6)
    to_dim, to_key_dim = torch.nn.Linear(6, 8, bias=False), torch.nn.Linear(8, 6, bias=False)
    torch.testing.assert_close(bilinear(to_dim.weight).between(query, key), query @ to_dim(key).mT)
    torch.testing.assert_close(bilinear(to_key_dim.weight.T).between(query, key), to_key_dim(query) @ key.mT)
    one, two, v = (torch.nn.Linear(n, m, bias=False) for n, m in ((8, 3), (6, 3), (3, 1)))
    due = v(torch.tanh(one(query)[..., :, None, :] + two(key)[..., None, :, :]))[..., 0]
    torch.testing.assert_close(additive(one.weight.T, two.weight.T, v.weight[0]).between(query, key), due)
    torch.testing.assert_close(additive(one.weight.T, None, v.weight[0]).between(query, two(key)), due)
    torch.testing.assert_close(additive(None, None, v.weight[0]).between(one(query), two(key)), due)


@pytest.mark.parametrize("name", MAKERS)
def test_only_additive_combines(name):
    combine = MAKERS[name](4, 2, HIDDEN, HIDDEN).combine
    per_head = name in ("additive, per head", "additive, queries projected")
    wanted = (4 if per_head else 1, HIDDEN) if name.startswith("additive") else None
    assert (None if combine is None else tuple(combine.shape)) == wanted


def test_projected_keys_are_handed_on_as_they_are():
    query, key = randn(1, 2, 4, 5), randn(1, 1, 6, HIDDEN)
    assert additive(randn(5, HIDDEN), None, randn(HIDDEN)).reduced(query, key)[1] is key
    assert additive(None, randn(HIDDEN, 5), randn(5)).reduced(query, key)[0] is query


# -- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_values(name):
    score = MAKERS[name](4, 2, 5, 5)
    assert score == score.with_tensors(*score.tensors())
    assert hash(score) == hash(score.with_tensors(*score.tensors()))
    query, key = randn(1, 4, 3, 5), randn(1, 2, 3, 5)
    for twin in (pickle.loads(pickle.dumps(score)), copy.deepcopy(score)):
        assert repr(twin) == repr(score) == str(score) == score.expression
        assert (twin == score) == (not score.tensors())  # tensors are compared by identity
        assert torch.equal(twin.between(query, key), score.between(query, key))
        assert twin == twin.to("cpu")
    assert {t.device.type for t in score.to("meta").tensors()} <= {"meta"}
    for tensor in score.tensors():
        then = score.with_tensors(*score.tensors())
        tensor.add_(1)
        assert then != score.with_tensors(*score.tensors())  # and by version


def test_expressions():
    zeros = torch.zeros
    assert repr(dot()) == "dot()"
    assert repr(cosine()) == "cosine(1)"
    assert repr(cosine(0.07)) == "cosine(0.07)"
    assert repr(cosine(torch.ones(8))) == "cosine(temperature of shape (8,))"
    assert repr(bilinear(zeros(2, 4, 6))) == "bilinear(2×4×6)"
    assert repr(distance()) == "distance()"
    assert repr(additive(zeros(2, 4, 3), zeros(6, 3), zeros(3))) == "additive(2×4×3, 6×3, 3)"
    assert repr(additive(zeros(2, 4, 3), None, zeros(3))) == "additive(2×4×3, None, 3)"
    assert repr(additive(None, None, zeros(3))) == "additive(None, None, 3)"


def test_exports():
    assert all(getattr(scores, name).__doc__ for name in scores.__all__)
    assert all("default scale" in getattr(scores, name).__doc__ for name in scores.__all__ if name != "Score")


# -- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (dot(), ["dot() needs query and key of the same dim; got 5 and 7"]),
        (distance(), ["distance() needs query and key of the same dim; got 5 and 7"]),
        (
            cosine(torch.ones(2)),
            ["cosine(temperature of shape (2,)) needs", "cosine has 2 temperatures and the matrix 4 heads"],
        ),
        (bilinear(torch.ones(5, 7)), []),
        (bilinear(torch.ones(4, 5, 7)), []),
        (
            bilinear(torch.ones(7, 5)),
            ["weight of shape (7, 5) must be (dim 5, key_dim 7), alone or with 4 heads in front"],
        ),
        (bilinear(torch.ones(2, 5, 7)), ["weight of shape (2, 5, 7) must be"]),
        (additive(torch.ones(5, 3), torch.ones(7, 3), torch.ones(3)), []),
        (additive(torch.ones(4, 5, 3), torch.ones(2, 7, 3), torch.ones(4, 3)), []),
        (
            additive(torch.ones(3, 5), torch.ones(3, 7, 3), torch.ones(2, 3)),
            [
                "w_query of shape (3, 5) must be (dim 5, hidden 3), alone or with 4 heads in front",
                "w_key of shape (3, 7, 3) must be (key_dim 7, hidden 3), alone or with 2 or 4 heads in front",
                "v of shape (2, 3) must be (hidden 3), alone or with 4 heads in front",
            ],
        ),
        (additive(None, torch.ones(7, 5), torch.ones(5)), []),
        (additive(torch.ones(5, 7), None, torch.ones(7)), []),
        (additive(None, None, torch.ones(5)), ["without w_key, key_dim must be v's hidden 5; got key_dim 7"]),
        (
            additive(None, torch.ones(7, 3), torch.ones(4, 3)),
            ["without w_query, dim must be v's hidden 3; got dim 5"],
        ),
    ],
    ids=str,
)
def test_misfits(score, said):
    found = score.misfits(4, 2, 5, 7)
    assert len(found) == len(said)
    assert all(one.startswith(start) for one, start in zip(found, said, strict=True))


def test_fits():
    cpu, half = torch.device("cpu"), torch.float16
    for score in (dot(), cosine(torch.ones(4)), bilinear(torch.ones(5, 5))):
        assert checks.score_fits(score, 4, 2, 5, 5, cpu, half) is score
    assert checks.score_fits(bilinear(torch.ones(5, 5)), 4, 2, 5, 5, cpu, torch.float64)
