"""Code that was written for a stored matrix of attention weights, run on the lazy one: the same answers, or a sentence."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import regard
from regard import biases, lazy
from regard.backends.tiled import Tiled
from regard.masks import causal, padding
from regard.testing.strategies import Sizes, drawn_masks

SMALL = Tiled(elements=64, columns=4, grain=2, least_rows=2)  # several tiles even in a small matrix

LAYOUTS = {  # leading dimensions of query and key
    "plain": ((), ()),
    "3-D": ((3,), (3,)),
    "4-D": ((2, 4), (2, 4)),
    "5-D": ((2, 1, 2), (2, 1, 2)),
    "grouped": ((2, 4), (2, 2)),
    "one of each": ((1, 1), (1, 1)),
}
PARTS: dict[str, Any] = {
    "whole": (...,),
    "slices": (..., slice(1, None), slice(0, -1)),
    "steps": (..., slice(None, None, 2), slice(1, None, 2)),
    "last row": (..., slice(-1, None), slice(None)),
}


def tensors(layout: str, queries: int = 5, keys: int = 6, seed: int = 0, **options: Any) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lead, key_lead = LAYOUTS[layout]
    options = {"dtype": torch.float64} | options
    grad = options.pop("requires_grad", False)
    q, k = (torch.randn(*s, 3, generator=generator).to(**options) for s in ((*lead, queries), (*key_lead, keys)))
    return q.requires_grad_(grad), k.requires_grad_(grad)


def pair(layout: str, part: str = "whole", **options: Any) -> tuple[regard.Attention, Tensor]:
    """The lazy matrix and the stored one, of the specification."""
    q, k = tensors(layout, **options)
    lazy, stored = (regard.attention(q, k, mask=causal, backend=b) for b in (SMALL, "reference"))
    return lazy[PARTS[part]], stored.to_dense()[PARTS[part]]


def same(found: Any, due: Any, name: str = "") -> None:
    if isinstance(found, regard.Attention):
        assert found.shape == due.shape, name
        found = found.to_dense()
    if not isinstance(due, Tensor):
        assert found == due, name
        return
    assert found.shape == due.shape, name
    torch.testing.assert_close(found, due, rtol=1e-9, atol=1e-12, msg=lambda text: f"{name}: {text}")


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return request.param


# -- reductions -------------------------------------------------------------------------------------------------------

REDUCTIONS = {"sum": torch.sum, "mean": torch.mean, "amax": torch.amax}


@given(st.data())
def test_every_reduction_is_that_of_the_stored_matrix(data):
    lead, key_lead = LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)))]
    queries, keys = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    batch, heads = math.prod(lead[:-1]), lead[-1] if lead else 1
    mask = data.draw(drawn_masks(Sizes(batch, heads, 1, queries, keys, 1, 1)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
    q = torch.randn(*lead, queries, 2, generator=generator, dtype=torch.float64).requires_grad_()
    k = torch.randn(*key_lead, keys, 2, generator=generator, dtype=torch.float64).requires_grad_()
    A = regard.attention(q, k, mask=mask, backend=SMALL)
    W = regard.attention(q, k, mask=mask, backend="reference").to_dense()
    part = PARTS[data.draw(st.sampled_from(sorted(PARTS)))]
    A, W = A[part], W[part]
    if not all(W.shape):
        return
    name = data.draw(st.sampled_from(sorted(REDUCTIONS)))
    places = st.sets(st.integers(-A.ndim, -1), min_size=1)
    dims = data.draw(places.filter(lambda dims: name != "amax" or max(dims) >= -2) | st.none())
    keepdim = data.draw(st.booleans())
    if dims is None:
        found, due = getattr(A, name)(), getattr(W, name)()
    else:
        dim: Any = tuple(d + A.ndim * data.draw(st.integers(0, 1)) for d in dims)
        dim = data.draw(st.sampled_from((dim, *dim))) if len(dim) == 1 else dim
        ask = data.draw(st.sampled_from((getattr(type(A), name), REDUCTIONS[name])))
        found, due = ask(A, dim, keepdim=keepdim), REDUCTIONS[name](W, dim, keepdim=keepdim)
        same(getattr(A, name)(dim=dim, keepdim=keepdim), due, name)
        same(getattr(A, name)(axis=dim), REDUCTIONS[name](W, dim), name)
    same(found, due, f"{name}, {dims}")
    if name != "amax":  # of equal weights, which there are, one gets the gradient
        weight = torch.randn(due.shape, generator=generator, dtype=torch.float64)
        grads = ((answer * weight).sum() for answer in (found, due))
        for g, d in zip(*(torch.autograd.grad(loss, (q, k), retain_graph=True) for loss in grads), strict=True):
            torch.testing.assert_close(g, d, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("part", PARTS)
def test_the_strongest(layout, part):
    A, W = pair(layout, part)
    A, W = A[..., 1:, :], W[..., 1:, :]  # row 0 of a slice may be empty, where an index is -1
    if not all(W.shape):
        return
    values, indices = A.max(-1)
    same(values, W.max(-1).values)
    for found in (indices, torch.max(A, A.ndim - 1).indices, A.argmax(-1), torch.argmax(A, dim=-1)):
        assert torch.equal(torch.where(values > 0, found, 0), torch.where(values > 0, W.argmax(-1), 0))
    same(A.max(-1, keepdim=True).values, W.amax(-1, keepdim=True))
    same(A.argmax(-1, keepdim=True)[..., 0], A.argmax(-1))
    same(A.max(), W.max())
    for found in (torch.topk(A, 2, dim=-1), A.topk(2, A.ndim - 1, True, True), A.topk(k=2, dim=-1, largest=True, sorted=True)):
        same(found.values, A.topk(2).values)
        assert torch.equal(found.indices, A.topk(2).indices)


def test_dtypes_of_sums():
    A, W = pair("4-D")
    assert A.sum(-2, dtype=torch.float32).dtype == W.sum(-2, dtype=torch.float32).dtype
    half = regard.attention(*tensors("4-D", dtype=torch.bfloat16))
    assert {half.sum(d).dtype for d in (None, 0, 1, 2, 3)} == {torch.float32}


def test_empty_rows_and_empty_matrices():
    x = torch.randn(2, 3, 4, 5)
    A = regard.attention(x, x, mask=padding([0, 2]))
    same(A.mean(1), A.to_dense().mean(1))
    assert not A.sum(-1)[0].any()
    for part in (A[:, :0], A[..., :0, :], A[..., :0]):
        W = part.to_dense()
        for dim in ((0,), (1,), (-1,), (-2,), (-2, -1), (0, 1), (0, 1, 2, 3)):
            assert torch.equal(part.sum(dim), W.sum(dim))
        assert part.sum(1).shape == W.sum(1).shape


def test_sums_are_of_the_weights_before_dropout():
    A, W = pair("4-D")
    dropped = A.dropout(0.5, seed=1)
    for dim in (-1, -2, 1, None):
        same(dropped.sum(dim), W.sum(dim) if dim is not None else W.sum())
    assert dropped.detach().drop == dropped.clone().drop == dropped.drop


class Largest(TorchDispatchMode):
    """The largest tensor that was made meanwhile."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else (out,):
            if isinstance(made, Tensor):
                self.numbers = max(self.numbers, made.untyped_storage().nbytes() // made.element_size())
        return out


@pytest.mark.parametrize(("dims", "kept"), [((1,), 2), ((0,), 8), ((0, 1), 1)])
def test_a_mean_over_heads_never_holds_all_of_them(dims, kept):
    x = torch.randn(2, 8, 64, 4, requires_grad=True)
    A = regard.attention(x, x, backend=Tiled(elements=1 << 12))
    with Largest() as made:
        A.mean(dims).square().sum().backward()
    assert made.numbers <= kept * 64 * 64


def test_sums_are_answered_where_the_matrix_would_not_fit(monkeypatch):
    """The guard counts the answer, not the matrix: (1, 1, 5, 6) of float64 are 240 bytes."""
    A, W = pair("4-D")
    monkeypatch.setattr(lazy, "DENSE_LIMIT", 240)
    for dims in ((0, 1), (0, 1, 2), (2,), (-2, -1), (-1,)):
        same(A.sum(dims), W.sum(dims))
    same(A.mean(), W.mean())
    for refused in (lambda: A.mean(1), lambda: torch.sum(A, 0), lambda: torch.stack([A[0, 0], A[0, 1]])):
        with pytest.raises(regard.TooLarge, match="above the limit of 240 B"):
            refused()


# -- the same matrix --------------------------------------------------------------------------------------------------

LAZY = {
    "detach": lambda A: A.detach(),
    "detach().cpu().float()": lambda A: A.detach().cpu().float() if A.dtype != torch.float64 else A.detach().cpu(),
    "clone": lambda A: A.clone(),
    "torch.clone": torch.clone,
    "torch.detach": torch.detach,
    "contiguous": lambda A: A.contiguous(),
    "double": lambda A: A.double(),
    "to(dtype)": lambda A: A.to(torch.float64),
    "to(tensor)": lambda A: A.to(torch.zeros(1, dtype=torch.float64)),
    "to(device, dtype)": lambda A: A.to("cpu", torch.float64, non_blocking=True),
    "to(copy)": lambda A: A.to(device="cpu", copy=True),
    "type": lambda A: A.type(torch.float64),
    "squeeze": lambda A: A.squeeze(),
    "squeeze(0)": lambda A: A.squeeze(0),
    "torch.squeeze": lambda A: torch.squeeze(A, dim=0),
    "unsqueeze(0)": lambda A: A.unsqueeze(0),
    "unsqueeze, squeeze": lambda A: torch.unsqueeze(A, 0).squeeze(0),
    "transposed twice": lambda A: A.transpose(-1, -2).mT,
    "transpose of one": lambda A: A.transpose(0, 0),
}


@pytest.mark.parametrize("name", LAZY)
@pytest.mark.parametrize("part", ["whole", "slices"])
def test_what_stays_lazy(layout, part, name):
    A, W = pair(layout, part)
    found, due = LAZY[name](A), LAZY[name](W)
    assert isinstance(found, regard.Attention)
    assert found.backend is A.backend
    same(found, due, name)
    same(found @ torch.ones(W.shape[-1], 1, dtype=W.dtype), due @ torch.ones(W.shape[-1], 1, dtype=W.dtype), name)
    if found.ndim > 2:
        same(found[0], due[0], name)
        same(found.sum(0), due.sum(0), name)


@pytest.mark.parametrize("dim", [None, 0, 1, -3, -2, -1, (0, 1), (-2, -1)])
@pytest.mark.parametrize("index", [(), (slice(1),), (slice(None), slice(1)), (..., slice(1), slice(None)), (..., slice(1))])
def test_squeeze(index, dim):
    for layout in ("4-D", "5-D", "one of each"):
        A, W = pair(layout)
        A, W = (x[index] if index else x for x in (A, W))
        found, due = (x.squeeze() if dim is None else x.squeeze(dim) for x in (A, W))
        same(found, due)
        went = [d for d in (-2, -1) if A.shape[d] == 1 and (dim is None or _names(dim, d, A.ndim))]
        assert isinstance(found, Tensor) == bool(went)


def _names(dim: Any, back: int, ndim: int) -> bool:
    return any((d if d < 0 else d - ndim) == back for d in (dim if isinstance(dim, tuple) else (dim,)))


def test_sizes(layout):
    A, W = pair(layout)
    assert A.size() == W.size() == A.shape
    assert [A.size(d) for d in range(-A.ndim, A.ndim)] == [W.size(d) for d in range(-A.ndim, A.ndim)]
    assert (A.dim(), A.ndim, A.numel(), torch.numel(A), len(A)) == (W.dim(), W.ndim, W.numel(), W.numel(), len(W))
    assert (A.is_floating_point(), torch.is_floating_point(A), A.is_cuda) == (True, True, False)
    assert (A.device, A.dtype) == (W.device, W.dtype)


def test_requires_grad_and_detach():
    q, k = tensors("4-D", requires_grad=True)
    A = regard.attention(q, k)
    assert A.requires_grad
    assert A[..., 1:].requires_grad
    constant = A.detach()
    assert not constant.requires_grad
    assert not constant.mean(1).requires_grad
    assert not A[..., 1:].detach().requires_grad
    with torch.no_grad():
        assert A.requires_grad
        assert not regard.attention(q, k).requires_grad
    assert A.clone().requires_grad


def test_gradients_through_wider_copies_are_those_of_the_matrix():
    q, k = tensors("grouped", dtype=torch.float32, requires_grad=True)
    weight = torch.randn(2, 4, 6, dtype=torch.float64)
    A = regard.attention(q, k, mask=causal)
    due = torch.autograd.grad((A.sum(-2) * weight).sum(), (q, k))
    for other in (A.double(), A.clone(), A.to(copy=True, dtype=torch.float64)):
        found = torch.autograd.grad((other.sum(-2) * weight).sum(), (q, k))
        for f, d in zip(found, due, strict=True):
            torch.testing.assert_close(f, d, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float_of_a_half_matrix_is_the_same_matrix(dtype):
    q, k = tensors("grouped", dtype=dtype)
    A = regard.attention(q, k, mask=causal, sinks=0.5, softcap=20.0, bias=biases.alibi(4))
    A.logsumexp()
    wide, wider = A.float(), A.double()
    assert (A.dtype, wide.dtype, wider.dtype, A.to(dtype)) == (dtype, torch.float32, torch.float64, A)
    assert wide.call.query is A.call.query
    assert torch.equal(wide.to_dense(), A.to_dense())
    due = regard.attention(q.double(), k.double(), mask=causal, sinks=0.5, softcap=20.0, bias=biases.alibi(4))
    assert wider.to_dense().dtype == torch.float64
    torch.testing.assert_close(wider.to_dense(), due.to_dense(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(A[..., 2:].double().to_dense(), due.to_dense()[..., 2:], rtol=1e-6, atol=1e-9)


def test_to_another_device_moves_every_tensor():
    q, k = tensors("grouped")
    A = regard.attention(q, k, mask=padding(keep=torch.ones(2, 6, dtype=torch.bool)), sinks=torch.zeros(4))[..., 1:]
    A.logsumexp()
    moved = A.to("meta")
    held = (moved.call, moved.call.whole)
    assert {t.device.type for call in held for t in (*call.tensors, *call.mask.tensors())} == {"meta"}
    assert (moved.shape, moved.device.type, A.device.type) == (A.shape, "meta", "cpu")
    assert A.to("cpu") is A.cpu() is A
    assert A.to(torch.zeros(1, dtype=torch.float64)) is A


def test_a_clone_survives_changes_in_place():
    q, k = tensors("4-D")
    A = regard.attention(q, k, mask=causal)
    due, copied = A.to_dense(), A.clone()
    q.zero_()
    same(copied, due)
    for ask in (A.clone, lambda: A.to("meta"), lambda: A.detach().to_dense(), lambda: A.double().to_dense()):
        with pytest.raises(regard.Changed):
            ask()


def test_copies_and_pickles():
    A, W = pair("grouped", "slices")
    for copied in (copy.copy(A), copy.deepcopy(A), pickle.loads(pickle.dumps(A))):
        same(copied, W)
        assert copied != A
    assert A == A
    assert A in [A]
    assert {A: 1}[A] == 1
    assert A != None  # noqa: E711
    assert A != "A"


def test_iterating_over_heads_and_lists_of_heads():
    A, W = pair("grouped")
    for head, due in zip(A[0], W[0], strict=True):
        same(head, due)
    for found, due in zip(A, W, strict=True):
        same(found, due)
    for heads in ([0, 2], [3, 1, 1], torch.tensor([2]), np.array([1, 3]), range(2), []):
        places = torch.tensor(list(heads), dtype=torch.int64)
        same(A.squeeze(0)[:, heads], W[:, places])
        same(A[0][heads], W[0][places])


# -- the stored matrix ------------------------------------------------------------------------------------------------


def test_numpy_and_lists(layout):
    A, W = pair(layout)
    same(torch.from_numpy(A.numpy()), W)
    assert A.detach().numpy().dtype == np.float64
    assert A.tolist() == A.to_dense().tolist()
    assert np.asarray(A).dtype == np.float64
    assert np.asarray(A, dtype=np.float32).dtype == np.float32
    assert np.array(A).shape == W.shape
    single = regard.attention(*tensors(layout, dtype=torch.float32))
    assert np.asarray(single).dtype == single.numpy().dtype == np.float32
    learned = regard.attention(*tensors(layout, requires_grad=True))
    with pytest.raises(RuntimeError, match="detach"):
        learned.numpy()
    assert learned.numpy(force=True).shape == learned.detach().numpy().shape == W.shape


@pytest.mark.parametrize("join", [torch.stack, torch.cat, torch.concat])
def test_lazy_matrices_are_joined_as_stored_ones(layout, join):
    (A, W), (B, V) = pair(layout), pair(layout, seed=1)
    same(join([A, B]), join([W, V]))
    same(join((A, V), dim=-1), join((W, V), dim=-1))
    same(join(tensors=[A, B, A], dim=0), join(tensors=[W, V, W], dim=0))
    same(join([A.mT, B.mT]), join([W.mT, V.mT]))


def test_shapes_that_cannot_be_joined_are_refused_before_anything_is_computed():
    x, y = torch.randn(4, 2), torch.randn(5, 2)
    with pytest.raises(RuntimeError):
        torch.stack([regard.attention(x, x), regard.attention(y, y)])


# -- products ---------------------------------------------------------------------------------------------------------


def test_products_by_name(layout):
    A, W = pair(layout)
    v, r = torch.randn(6, 2, dtype=W.dtype), torch.randn(5, 2, dtype=W.dtype)
    for found in (A @ v, A.matmul(v), A.bmm(v), torch.matmul(A, v), torch.matmul(A, other=v), torch.bmm(A, mat2=v)):
        same(found, W @ v)
    for T, due in ((A.mT, W.mT), (A.transpose(-1, -2), W.mT), (torch.transpose(A, A.ndim - 1, -2), W.mT)):
        same(T @ r, due @ r)
        same(torch.matmul(T, r), due @ r)
        assert (T.shape, T.dtype, T.device, T.mT) == (due.shape, due.dtype, due.device, A)
        same(T.to_dense(), due)
    if A.ndim == 2:
        same(A.T @ r, W.T @ r)
    for wrong in (lambda: v.mT @ A, lambda: torch.matmul(v.mT, A), lambda: v.mT @ A.mT, lambda: torch.matmul(r, A.mT)):
        with pytest.raises(TypeError, match="is not a question to an attention matrix"):
            wrong()


# -- names that are not there -----------------------------------------------------------------------------------------


def test_every_public_name_of_a_tensor_is_there_or_says_what_to_use():
    A = pair("4-D")[0]
    for name in dir(Tensor):
        if name.startswith("_") or hasattr(A, name):
            continue
        assert getattr(A, name, None) is None
        with pytest.raises(regard.Unsupported) as refused:
            getattr(A, name)
        assert isinstance(refused.value, AttributeError)
        assert f"has no {name}: " in str(refused.value)
        assert "A.to_dense()" in str(refused.value)


def test_probing_for_names_harms_nothing():
    A = pair("4-D")[0]
    for name in ("__len__", "__array__", "__iter__", "__dlpack__", "__cuda_array_interface__", "_repr_svg_", "nothing"):
        assert hasattr(A, name) == (name in ("__len__", "__array__"))
    bare = object.__new__(regard.Attention)  # as unpickling makes it
    assert not hasattr(bare, "call")
    assert not hasattr(bare, "__deepcopy__")


def test_every_hint_is_about_something_that_tensors_have():
    known = {*dir(Tensor), *dir(torch), *dir(F), *dir(torch.linalg)}
    assert {name for name in lazy.INSTEAD if name not in known} == set()


# -- literal copies of what others call -------------------------------------------------------------------------------


def kvpress(attentions: Any, keys: Tensor, window_size: int = 2) -> dict[str, Tensor]:
    """What SnapKV, TOVA and observed attention of kvpress 0.5 do to outputs.attentions[layer]."""
    bsz, num_key_value_heads, k_len, _ = keys.shape
    groups = attentions.shape[1] // num_key_value_heads

    attn_weights = attentions[..., -window_size:, :-window_size]
    scores = attn_weights.mean(dim=-2)
    scores = F.avg_pool1d(scores, kernel_size=3, padding=1, stride=1)
    scores = scores.view(bsz, num_key_value_heads, groups, k_len - window_size)
    scores = scores.mean(2)
    snapkv = F.pad(scores, (0, window_size), value=scores.max().item())

    attn_weights = attentions[..., -1:, :-1]
    scores = attn_weights.mean(1)
    scores = scores.repeat(1, num_key_value_heads, 1)
    tova = F.pad(scores, (0, 1), value=scores.max().item() + 1)

    scores = attentions.sum(2)
    n_tokens_in_sum = torch.arange(k_len, 0, -1).to(attentions.device, attentions.dtype)
    scores = scores / n_tokens_in_sum
    observed = scores.view(bsz, num_key_value_heads, -1, k_len).mean(2)
    return {"snapkv": snapkv, "tova": tova, "observed": observed}


def test_kvpress():
    q, k = tensors("grouped", queries=6, keys=6)
    A, W = (regard.attention(q, k, mask=causal, backend=b) for b in (SMALL, "reference"))
    found, due = kvpress(A, k), kvpress(W.to_dense(), k)
    for name, scores in due.items():
        same(found[name], scores, name)


def format_attention(attention: Any, layers: Any = None, heads: Any = None) -> Tensor:
    """bertviz 1.4.1, util.py."""
    if layers:
        attention = [attention[layer_index] for layer_index in layers]
    squeezed = []
    for layer_attention in attention:
        # 1 x num_heads x seq_len x seq_len
        if len(layer_attention.shape) != 4:
            raise ValueError("The attention tensor does not have the correct number of dimensions.")
        layer_attention = layer_attention.squeeze(0)
        if heads:
            layer_attention = layer_attention[heads]
        squeezed.append(layer_attention)
    # num_layers x num_heads x seq_len x seq_len
    return torch.stack(squeezed)


@pytest.mark.parametrize("heads", [None, [0, 2], [1]])
def test_bertviz(heads):
    drawn = [tuple(t[:1] for t in tensors("grouped", seed=s)) for s in range(3)]
    lazy = tuple(regard.attention(q, k, mask=causal) for q, k in drawn)
    stored = tuple(A.to_dense() for A in lazy)
    assert lazy[0][0].size(0) == stored[0][0].size(0) == 4
    for layers in (None, [0, 2]):
        found, due = format_attention(lazy, layers, heads), format_attention(stored, layers, heads)
        same(found, due)
        same(found[:, :, slice(0, 2), slice(2, 6)], due[:, :, :2, 2:])
        assert found.tolist() == due.tolist()


def rollout(attentions: Any) -> Tensor:
    """Abnar & Zuidema 2020, as it is usually written for vision transformers."""
    result = torch.eye(attentions[0].size(-1), dtype=attentions[0].dtype)
    for attention in attentions:
        fused = attention.mean(axis=1)[0]
        fused = fused + torch.eye(fused.size(-1), dtype=fused.dtype)
        result = (fused / fused.sum(dim=-1, keepdim=True)) @ result
    return result


READERS = {
    "rollout": rollout,
    "of the class token": lambda a: a[-1][0, :, 0, 1:].reshape(4, -1),
    "of one head": lambda a: torch.from_numpy(a[0][0][1].detach().cpu().numpy()),
    "averaged over heads": lambda a: torch.stack([x.squeeze(0).mean(0) for x in a]),
    "all layers": lambda a: torch.cat([x.detach().cpu() for x in a], dim=0).mean(dim=1),
    "strongest": lambda a: a[-1].max(dim=-1).values.mean(),
    "received": lambda a: torch.stack([x.mean(dim=(0, 1, 2)) for x in a]),
    "last row": lambda a: a[-1][0].mean(0)[-1],
}


@pytest.mark.parametrize("name", READERS)
def test_readers_of_attentions(name):
    drawn = [tuple(t[:1] for t in tensors("4-D", queries=6, seed=s)) for s in range(3)]
    lazy = tuple(regard.attention(q, k, mask=causal) for q, k in drawn)
    same(READERS[name](lazy), READERS[name](tuple(A.to_dense() for A in lazy)), name)


def test_a_detached_matrix_keeps_no_graph_and_still_notices_changes():
    x = torch.randn(1, 2, 5, 4, requires_grad=True)
    q = x * 2
    D = regard.attention(q, q).detach()
    assert all(tensor.grad_fn is None for tensor, _ in D.call.watched)
    assert copy.deepcopy(D).to_dense().equal(D.to_dense())
    with torch.no_grad():
        q.zero_()
    with pytest.raises(regard.Changed):
        D.entropy()
