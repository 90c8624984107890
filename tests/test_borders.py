"""Where the lazy matrix meets the rest of PyTorch: transforms, changes in place, precision, copies, very large numbers."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import sys
import weakref

import numpy as np
import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import regard
from regard.backends.tiled import Tiled
from regard.masks import causal, causal_from, full, padding, where, window
from regard.plan import Axes, lay
from regard.readouts import Entropy, TopK


def _qkv(*shape: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=dtype) for _ in range(3)]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own, on its first forward-mode derivative
def test_forward_mode_derivatives_do_not_meet_a_remembered_log_sum_exp():
    q, k, v = _qkv(5, 4, dtype=torch.float64)
    tangent = torch.randn_like(q)

    def ask(backend):
        with forward_ad.dual_level():
            A = regard.attention(forward_ad.make_dual(q, tangent), k, mask=causal, backend=backend)
            A.entropy()
            return forward_ad.unpack_dual(A @ v).tangent

    assert_close(ask("tiled"), ask("reference"))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp"])
def test_functional_transforms_are_refused_or_right(transform):
    q, k, v = _qkv(3, 5, 4, dtype=torch.float64)

    def ask(backend):
        def loss(q, k, v):
            A = regard.attention(q, k, mask=causal, backend=backend)
            A.entropy()
            return (A @ v).square().sum()

        if transform == "vmap":
            return torch.func.vmap(loss)(q, k, v)
        if transform == "grad":
            return torch.func.grad(loss)(q, k, v)
        return torch.func.jvp(loss, (q, k, v), (v, q, k))[1]

    with pytest.raises(regard.Unsupported, match=r"torch.func transforms .* backend='reference'"):
        ask("tiled")
    if transform != "vmap":
        eager = torch.autograd.functional.jvp if transform == "jvp" else torch.autograd.functional.vjp

        def loss(q, k, v):
            return (regard.attention(q, k, mask=causal) @ v).square().sum()

        if transform == "grad":
            assert_close(ask("reference"), eager(loss, (q, k, v))[1][0])


def test_a_mask_that_changes_before_backward_is_refused():
    q, k, v = _qkv(1, 1, 4, 4)
    keep = torch.ones(1, 4, dtype=torch.bool)
    y = regard.attention(q.requires_grad_(), k, mask=padding(keep=keep)) @ v
    keep[0, 0] = False
    with pytest.raises(regard.Changed):
        y.sum().backward()


def test_nothing_is_remembered_of_tensors_without_a_version():
    with torch.inference_mode():
        q, k, _ = _qkv(4, 4)
        A = regard.attention(q, k)
        A.entropy()
        q.mul_(3)
        assert_close(A.sum(-1), torch.ones(4))


def test_a_slice_of_a_changed_matrix_is_refused_even_where_it_copies():
    q, k, _ = _qkv(3, 2, 4, 4)
    A = regard.attention(q, k)
    part = A[[0, 2]]
    q.add_(1)
    with pytest.raises(regard.Changed):
        part.entropy()
    x = torch.randn(2, 3, 2, 4, 4)
    A = regard.attention(x.transpose(0, 1), x.transpose(0, 1))  # folding the batch copies
    x.add_(1)
    with pytest.raises(regard.Changed):
        A.entropy()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda A: pickle.loads(pickle.dumps(A))])
def test_copies_count_their_own_changes(copied):
    x = torch.randn(4, 4)
    keep = torch.ones(1, 4, dtype=torch.bool)
    for _ in range(3):
        x.add_(1)
        keep.logical_and_(keep)
    A = regard.attention(x, x, mask=causal & padding(keep=keep))
    B = copied(A)
    assert torch.equal(A @ x, B @ x)
    B.call.query.add_(1)
    if copied is copy.deepcopy:
        assert A.entropy().isfinite().all()


def test_no_end_is_no_end():
    q, k, _ = _qkv(4, 4)
    everything = regard.attention(q, k, backend="tiled").to_dense()
    for mask in (
        window(0, sys.maxsize) | window(sys.maxsize, 0),
        window(2**70),
        causal_from(sys.maxsize),
        ~causal_from(-(2**70)),
    ):
        assert torch.equal(regard.attention(q, k, mask=mask, backend="tiled").to_dense(), everything), mask
    with pytest.raises(ValueError, match=r"offset must be at most 2\*\*60"):
        regard.attention(q, k, offset=2**70)
    assert (regard.attention(q, k, mask=causal, offset=-(2**60)).to_dense() == 0).all()


def test_unsigned_lengths_do_not_wrap_around():
    q = torch.randn(2, 1, 3, 4)
    A = regard.attention(q, q, mask=padding(torch.tensor([0, 2], dtype=torch.uint8)))
    assert A.sum(-1)[:, 0, 0].tolist() == [0, 1]
    assert not causal_from(-1).allows(0, 0, torch.tensor([0], dtype=torch.uint8), 5)


def test_numpy_integers_are_integers():
    q = torch.randn(6, 4)
    A = regard.attention(q, q, mask=window(np.int64(2)), offset=np.int64(0))
    assert A.topk(np.int32(2)).indices.shape == (6, 2)


@pytest.mark.parametrize("backend", ["tiled", "reference"])
def test_infinite_gradients_at_absent_answers_stay_there(backend):
    """The square root of 0 has an infinite derivative; a weight that is not there does not pass it on."""
    for ask in (lambda A: A.topk(4).values, lambda A: A.diagonal(-1)):
        q, k, _ = (t.requires_grad_() for t in _qkv(4, 4))
        ask(regard.attention(q, k, mask=causal, backend=backend)).sqrt().sum().backward()
        assert q.grad.isfinite().all()
        assert k.grad.isfinite().all()


def test_a_rounded_output_does_not_disturb_the_gradient():
    q, k, v = _qkv(1, 1, 64, 16)
    v = (v + 100).bfloat16()
    weight = torch.randn(64, 16)
    due = None
    for dtype in (torch.float64, torch.float32):
        x, y = q.to(dtype, copy=True).requires_grad_(), k.to(dtype, copy=True).requires_grad_()
        A = regard.attention(x, y, backend="reference" if due is None else "tiled")
        ((A @ (v.double() if due is None else v)).double() * weight).sum().backward()
        if due is None:
            due = x.grad
    error = (x.grad - due).norm() / due.norm()
    assert error < 0.01, error  # 0.19 when δ is taken from the rounded output


def test_what_is_built_or_sliced_without_a_graph_is_a_constant():
    q, k, v = (t.requires_grad_() for t in _qkv(4, 4))
    with torch.no_grad():
        A = regard.attention(q, k)
    assert torch.autograd.grad((A @ v).sum(), (q, k, v), allow_unused=True)[:2] == (None, None)
    A = regard.attention(q, k)
    with torch.no_grad():
        part = A[1:, :3]
    assert torch.autograd.grad((part @ v[:3]).square().sum(), (q, k, v), allow_unused=True)[:2] == (None, None)


def test_entropy_when_the_peak_rises_by_more_than_a_float_can_hold():
    q, k = torch.tensor([[1e19]]), torch.cat([torch.full((8, 1), -1e19), torch.tensor([[1e19]])])
    A = regard.attention(q, k, scale=1.0, backend=Tiled(elements=8, columns=4, grain=4))
    assert A.entropy().item() == 0


@pytest.mark.parametrize("mask", [full, causal, padding([4])])
@pytest.mark.parametrize("backend", ["tiled", "reference"])
def test_a_visible_infinity_in_a_value_is_nan_everywhere(mask, backend):
    q, k, v = _qkv(1, 1, 4, 4)
    v[..., 0, 1] = math.inf
    y = regard.attention(q, k, mask=mask, backend=backend) @ v
    assert y[..., 1].isnan().all()
    assert y[..., [0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("backend", ["tiled", "reference"])
def test_a_score_of_minus_infinity_hides(backend):
    q, k = torch.ones(1, 1), torch.tensor([[0.0], [-math.inf], [1.0]])
    A = regard.attention(q, k, scale=1.0, backend=backend)
    reading = A.read(TopK(3), Entropy())
    assert reading.topk.indices.tolist() == [[2, 0, -1]]
    assert reading.entropy.isfinite().all()
    nobody = regard.attention(q, k[1:2], scale=1.0, backend=backend)
    assert nobody.topk(1).indices.item() == -1
    assert nobody.logsumexp().item() == -math.inf
    assert nobody.entropy().item() == 0


def test_checkpointing_frees_what_it_should():
    """Only saved tensors hold queries and keys: what a checkpoint does not save is gone after the forward pass."""
    held: list[weakref.ref] = []

    def layer(x):
        q, k = x * 2, x * 3
        held.extend(weakref.ref(t) for t in (q.untyped_storage(), k.untyped_storage()))
        return regard.attention(q, k, mask=causal) @ x

    x = torch.randn(1, 1, 8, 4, requires_grad=True)
    y = checkpoint(layer, x, use_reentrant=False)
    gc.collect()
    assert [ref() for ref in held] == [None, None]
    y.sum().backward()
    (due,) = torch.autograd.grad(layer(x).sum(), x)
    assert_close(x.grad, due)


def test_a_reading_does_not_keep_the_value():
    q, k, v = _qkv(4, 4)
    storage = weakref.ref(v)
    reading = regard.attention(q, k).read(Entropy(), value=v)
    del v
    gc.collect()
    assert storage() is None
    assert reading.output.shape == (4, 4)
    assert regard.attention(q, k).read(value=torch.ones(4)).output.shape == (4,)
    assert "output" in dir(reading)


def test_opaque_masks_have_small_plans():
    n = 1 << 16
    opaque = where(lambda b, h, i, j: (i + j) % 3 > 0)
    for mask, runs in ((opaque, n // 16), (causal & opaque, n // 16 + n // 128)):
        plan = lay(mask, Axes(range(1), range(1), range(n), range(n)), 0, 16, 128)
        assert len(plan.begin) <= 2 * runs
    picture = (causal & opaque).draw(n, n)
    assert picture.splitlines()[0].startswith("▒ ·")


def test_numpy_gets_the_dense_matrix_under_its_guard():
    q, k, _ = _qkv(4, 4)
    A = regard.attention(q.requires_grad_(), k)
    assert np.array_equal(np.asarray(A), A.to_dense().detach().numpy())
    long = torch.randn(20_000, 1)
    with pytest.raises(regard.TooLarge):
        np.asarray(regard.attention(long, long))
