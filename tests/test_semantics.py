"""One test for each line of the semantics: traps in which some implementation of attention sits."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.masks import causal, causal_from, dense, full, padding, window
from regard.readouts import Diagonal, Entropy, LogSumExp, Max, Pool, Received, TopK

BACKENDS = ("tiled", "reference")
EVERYTHING = (LogSumExp(), Entropy(), TopK(3), Max(), Received(), Diagonal(0), Pool((2, 2)))


def _qkv(*shape: int, keys: int | None = None, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    *lead, n, dim = shape
    return tuple(torch.randn(*lead, m, dim, dtype=dtype) for m in (n, keys or n, keys or n))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_query_that_may_see_no_key(backend):
    q, k, v = (t.requires_grad_() for t in _qkv(1, 2, 4, 8))
    A = regard.attention(q, k, mask=causal_from(-2), backend=backend)  # rows 0 and 1 are empty
    reading = A.read(*EVERYTHING, value=v)
    assert (reading.output[..., :2, :] == 0).all()
    assert (reading.entropy[..., :2] == 0).all()
    assert (reading.logsumexp[..., :2] == -math.inf).all()
    assert (reading.topk.indices[..., :2, :] == -1).all()
    assert (reading.topk.values[..., :2, :] == 0).all()
    assert (reading.max.indices[..., :2] == -1).all()
    assert (A[0, 0, 0] == 0).all()
    loss = reading.output.sum() + reading.entropy.sum() + reading.received.square().sum() + reading.logsumexp[..., 2:].sum()
    gradients = torch.autograd.grad(loss, (q, k, v))
    assert (gradients[0][..., :2, :] == 0).all()
    assert all(bool(g.isfinite().all()) for g in gradients)


def test_padding_changes_no_figure():
    """Padded keys are hidden, padded queries weigh 0 in A.mT @ keep: the numbers are those of the text alone."""
    q, k, v = _qkv(2, 3, 9, 8)
    lengths = (9, 5)
    A = regard.attention(q, k, mask=padding(lengths))
    keep = torch.tensor([[i < n for i in range(9)] for n in lengths]).float()
    received = (A.mT @ keep[:, None, :, None])[..., 0]
    for b, n in enumerate(lengths):
        alone = regard.attention(q[b, :, :n], k[b, :, :n])
        assert_close(received[b, :, :n], alone.sum(-2))
        assert (received[b, :, n:] == 0).all()
        assert_close((A @ v)[b, :, :n], alone @ v[b, :, :n])
        assert_close(A.entropy()[b, :, :n], alone.entropy())


def test_true_means_may_attend():
    q, k, _ = _qkv(1, 1, 2, 4)
    keep = torch.tensor([[True, False]])
    for mask in (padding(keep=keep), dense(keep), padding([1])):
        assert regard.attention(q, k, mask=mask).to_dense()[0, 0].tolist() == [[1, 0], [1, 0]]
    with pytest.raises(TypeError, match=r"dense\(tensor\) if True = may attend, dense\(~tensor\)"):
        regard.attention(q, k, mask=keep)


def test_causal_queries_are_the_last_ones():
    q, k, _ = _qkv(1, 1, 2, 4, keys=5)
    seen = regard.attention(q, k, mask=causal).to_dense()[0, 0] > 0
    assert seen.tolist() == [[True, True, True, True, False], [True] * 5]
    seen = regard.attention(q, k, mask=causal_from(0)).to_dense()[0, 0] > 0
    assert seen.tolist() == [[True, False, False, False, False], [True, True, False, False, False]]
    assert torch.equal(regard.attention(q, k, mask=causal, offset=0).to_dense()[0, 0] > 0, seen)


def test_decoding_one_query_at_a_time_is_the_whole_matrix():
    q, k, v = _qkv(2, 4, 6, 8)
    whole = regard.attention(q, k, mask=causal & window(3, 0)) @ v
    steps = [
        regard.attention(q[:, :, i : i + 1], k[:, :, : i + 1], mask=causal & window(3, 0)) @ v[:, :, : i + 1] for i in range(6)
    ]
    assert_close(torch.cat(steps, 2), whole)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_low_precision_is_computed_in_float32(backend, dtype):
    q, k, v = _qkv(1, 2, 64, 16, dtype=dtype)
    A = regard.attention(q, k, mask=causal, backend=backend)
    wide = torch.promote_types(dtype, torch.float32)
    assert A.dtype == dtype
    assert (A @ v).dtype == dtype
    assert (A @ v.double()).dtype == torch.float64
    for answer in (A.entropy(), A.logsumexp(), A.topk(2).values, A.sum(-2), A.mT @ v, A[0, 0, 3], A.to_dense()):
        assert answer.dtype == wide
    assert_close(A.sum(-1), torch.ones_like(A.sum(-1)))
    exact = regard.attention(q.double(), k.double(), mask=causal, backend="reference")
    error = (A.logsumexp() - exact.logsumexp()).abs().max()
    assert error < (1e-5 if wide == torch.float32 else 1e-12)  # a bfloat16 log-sum-exp would be off by 1e-2


def test_autocast_casts_what_comes_in_and_nothing_else():
    """Query, key and value as scaled_dot_product_attention casts them; scores, softmax and sums stay in float32."""
    q, k, v = _qkv(1, 2, 32, 16)
    low = regard.attention(q.bfloat16(), k.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        A = regard.attention(q, k)
        assert A.dtype == torch.bfloat16
        assert A.logsumexp().dtype == torch.float32
        assert torch.equal(A.logsumexp(), low.logsumexp())
        assert (A @ v).dtype == torch.nn.functional.scaled_dot_product_attention(q, k, v).dtype == torch.bfloat16


def test_a_change_in_place_is_refused():
    q, k, v = _qkv(1, 1, 4, 4)
    for name, changed in (("query", q), ("key", k)):
        A = regard.attention(q, k)
        part = A[..., 1:, :]
        changed.add_(1)
        for matrix in (A, part):
            with pytest.raises(regard.Changed, match="changed in place after the matrix was built"):
                matrix @ v[..., : matrix.shape[-1], :]
        assert regard.attention(q, k).entropy().isfinite().all(), name
    keep = torch.ones(1, 4, dtype=torch.bool)
    A = regard.attention(q, k, mask=padding(keep=keep))
    keep[0, 0] = False
    with pytest.raises(regard.Changed):
        A.entropy()
    with torch.inference_mode():
        q, k, v = (t.clone() for t in (q, k, v))
        A = regard.attention(q, k)
        q.add_(1)  # tensors made here keep no count
        assert (A @ v).isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_grouped_heads(backend):
    """Weights are per query head; gradients of shared keys and values are sums over the group, never means."""
    q, k, v = _qkv(2, 6, 5, 4)
    k, v = (t[:, :2].clone().requires_grad_() for t in (k, v))
    A = regard.attention(q, k, backend=backend)
    assert A.shape == (2, 6, 5, 5)
    repeated = [t.detach().repeat_interleave(3, 1).requires_grad_() for t in (k, v)]
    B = regard.attention(q, repeated[0], backend=backend)
    assert_close(A @ v, B @ repeated[1])
    assert_close(A.sum(-2), B.sum(-2))
    weight = torch.randn(2, 6, 5, 4)
    ours = torch.autograd.grad((A @ v * weight).sum(), (k, v))
    theirs = torch.autograd.grad((B @ repeated[1] * weight).sum(), repeated)
    for mine, other in zip(ours, theirs, strict=True):
        assert_close(mine, other.unflatten(1, (2, 3)).sum(2))


def test_the_log_sum_exp_is_natural():
    q = torch.zeros(1, 3, 2, 4)
    assert_close(regard.attention(q, torch.zeros(1, 3, 8, 4)).logsumexp(), torch.full((1, 3, 2), math.log(8)))
    assert_close(regard.attention(q, torch.zeros(1, 3, 8, 4)).entropy(), torch.full((1, 3, 2), math.log(8)))


def test_more_scores_than_an_int32_can_count():
    n = 50_000  # 2.5e9 scores, nearly all of them hidden
    q, k, v = _qkv(1, 1, n, 4)
    A = regard.attention(q, k, mask=causal & window(7, 0))
    reading = A.read(TopK(2), Received(), value=v)
    i = n - 1
    weights = ((k[0, 0, i - 7 :] @ q[0, 0, i]) / 2).softmax(0)
    assert_close(reading.output[0, 0, i], weights @ v[0, 0, i - 7 :])
    assert reading.topk.indices[0, 0, i, 0] == i - 7 + weights.argmax()
    assert_close(reading.received.sum(), torch.tensor(float(n)), rtol=1e-5, atol=0)
    assert_close(A[0, 0, i, -8:], weights)


def test_scale_is_one_over_the_root_of_dim_unless_given():
    q, k, _ = _qkv(3, 16)
    assert_close(regard.attention(q, k).to_dense(), (q @ k.T / 4).softmax(-1))
    assert_close(regard.attention(q, k, scale=0.0).to_dense(), torch.full((3, 3), 1 / 3))
    assert_close(regard.attention(q, k, scale=-2).to_dense(), (q @ k.T * -2).softmax(-1))


def test_peaked_rows_keep_their_entropy():
    """lse·ΣA - ΣA·s would lose every digit here; -ΣA ln A does not."""
    q, k = torch.tensor([[1000.0]]), torch.tensor([[1000.0], [999.99]])
    A = regard.attention(q, k, scale=1.0)
    exact = regard.attention(q.double(), k.double(), scale=1.0, backend="reference")
    assert_close(A.entropy().double(), exact.entropy(), rtol=2e-2, atol=0)
    assert A.entropy() > 0


def test_leading_dimensions():
    x = torch.randn(5, 4)
    plain = regard.attention(x, x, mask=causal)
    assert plain.shape == (5, 5)
    assert (plain @ x).shape == (5, 4)
    y = torch.randn(2, 3, 4, 5, 8)
    deep = regard.attention(y, y[:, :, :2], mask=causal)
    assert deep.shape == (2, 3, 4, 5, 5)
    flat = regard.attention(y.flatten(0, 1), y[:, :, :2].flatten(0, 1), mask=causal)
    assert torch.equal(deep @ y, (flat @ y.flatten(0, 1)).unflatten(0, (2, 3)))
    assert torch.equal(deep.topk(2).indices, flat.topk(2).indices.unflatten(0, (2, 3)))
    assert deep[1, 2, 3, 4].shape == (5,)


def test_values_may_be_shared_and_differ_in_size():
    q, k, _ = _qkv(2, 4, 3, 8)
    A = regard.attention(q, k[:, :2])
    for shape in ((2, 4, 3, 5), (2, 2, 3, 5), (2, 1, 3, 5), (1, 4, 3, 5), (4, 3, 5), (3, 5)):
        v = torch.randn(shape)
        heads = v.shape[-3] if v.ndim > 2 else 1
        wide = v.expand(2, heads, 3, 5).repeat_interleave(4 // heads, 1)
        assert_close(A @ v, A.to_dense() @ wide)
    v = torch.randn(3)
    assert_close(A @ v, A.to_dense() @ v)
    assert_close(A.mT @ v, A.to_dense().mT @ v)
    assert_close(torch.matmul(A, torch.eye(3)), A.to_dense())


@pytest.mark.parametrize("mask", [full, causal])
def test_without_graph_the_second_question_does_not_sweep_for_the_log_sum_exp(mask):
    """The log-sum-exp is remembered, and equal to what each question alone finds."""
    q, k, v = _qkv(1, 2, 40, 8)
    A = regard.attention(q, k, mask=mask)
    received = A.sum(-2)
    assert A._memo
    assert_close(A @ v, regard.attention(q, k, mask=mask) @ v)
    assert_close(A.entropy(), regard.attention(q, k, mask=mask).entropy())
    assert_close(received, regard.attention(q, k, mask=mask).to_dense().sum(-2))
