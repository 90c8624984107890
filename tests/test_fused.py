"""PyTorch's fused kernel as a backend: only where it is right, and mended where it is not."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

import regard
from regard import backends, biases, scores
from regard.backends.fused import Fused, kernels
from regard.backends.fused.told import blocks, shape_of
from regard.backends.reference import Reference
from regard.backends.tiled import Tiled
from regard.dropout import Dropout
from regard.masks import causal, causal_from, dense, documents, full, padding, prefix, window
from regard.readouts import Entropy, LogSumExp, Received, TopK
from regard.readouts.output import Output
from regard.testing import FAULTS, Case, Mismatch, cases, check
from regard.testing import QUESTIONS as ALL
from regard.testing.conformance import Answer, _gradient_magnitudes, answers, compare

LOW = (torch.bfloat16, torch.float16)
Q, K, V = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 3)


@st.composite
def fusible(draw):
    """Cases that the kernel can take, or nearly: full, causal from anywhere, masks of keys, sinks, any score."""
    case = draw(cases(most=20))
    batch, keys = case.query.shape[0], case.key.shape[2]
    generator = torch.Generator().manual_seed(case.seed)
    keep = padding(keep=torch.rand(draw(st.sampled_from((1, batch))), keys, generator=generator) < 0.6)
    lengths = padding(draw(st.lists(st.integers(0, keys), min_size=batch, max_size=batch)))
    edge = draw(st.sampled_from((causal, full, causal_from(draw(st.integers(-6, 6))))))
    of_keys = draw(st.sampled_from((full, keep, lengths, ~prefix(draw(st.integers(0, keys))), keep | lengths)))
    offset = draw(st.one_of(st.none(), st.integers(-22, 22)))
    score = None if case.score is not None and "additive" in case.score.expression else case.score
    if score is None and case.query.shape[-1] != case.key.shape[-1]:
        score = scores.bilinear(torch.randn(case.query.shape[-1], case.key.shape[-1], generator=generator))
    mask = edge & of_keys
    return replace(case, mask=mask, offset=offset, score=score, bias=None, softcap=None, drop=None)


@pytest.mark.shapes
@settings(max_examples=250)
@given(case=fusible())
def test_what_is_chosen_meets_the_reference(case):
    """The output by the fused kernel, the rest by tiles with its log-sum-exp; forward and gradients."""
    check(None, case)


@pytest.mark.shapes
@settings(max_examples=100)
@given(case=cases(most=12))
def test_what_is_chosen_meets_the_reference_on_everything_else(case):
    check(None, case)


def test_it_is_really_used():
    seen = [0, 0]

    @settings(max_examples=100)
    @given(case=fusible())
    def look(case):
        A = regard.attention(case.query, case.key, **case.options())
        reasons = Fused().why_not(A.call)
        seen[bool(reasons)] += 1
        assert not reasons or any(word in reasons[0] for word in ("scale", "rough", "offset")), reasons

    look()
    assert seen[0] > seen[1]


class Spy:
    """Counts the readings of every backend."""

    def __init__(self, monkeypatch):
        self.ran: Counter[str] = Counter()
        for kind in (Fused, Tiled):
            read = kind.read

            def counted(backend, call, readouts, log_sum, read=read):
                self.ran[backend.name] += 1
                return read(backend, call, readouts, log_sum)

            monkeypatch.setattr(kind, "read", counted)


QUESTIONS = (
    (),
    (Entropy(),),
    (Received(),),
    (LogSumExp(),),
    (TopK(2), Entropy()),
    (Entropy(), Received()),
)


@pytest.mark.parametrize("mask", [full, causal, window(2), padding([3, 9]), causal & dense(torch.ones(5, 9).bool())], ids=str)
@pytest.mark.parametrize("asked", QUESTIONS, ids=str)
@pytest.mark.parametrize("grad", [False, True])
def test_explain_says_who_really_answers(monkeypatch, mask, asked, grad):
    A = regard.attention(Q.clone().requires_grad_(grad), K, mask=mask)
    said = A.explain(*asked) if asked else A.explain()
    spy = Spy(monkeypatch)
    if asked:
        A.read(*asked)
        expected = {line.backend for line in said.lines} | ({said.first} if said.first else set())
    else:
        _ = A @ V
        expected = {said.lines[0].backend}
    assert set(spy.ran) == expected
    assert all(count == 1 for count in spy.ran.values())


def test_reasons():
    def why(readout=None, **options):
        return "; ".join(Fused().why_not(regard.attention(Q, K, **options).call, readout))

    assert why() == ""
    assert why(mask=causal & padding([4, 9])) == ""
    assert why(mask=window(50)) == ""  # hides nothing here
    assert "not window(1)" in why(mask=window(1))
    assert "not documents" in why(mask=documents(torch.arange(9) // 4))
    assert "no bias" in why(bias=biases.alibi(4))
    assert "no softcap" in why(softcap=1.0)
    assert "Bahdanau" in why(score=scores.additive(torch.randn(8, 3), torch.randn(8, 3), torch.randn(3)))
    assert "scale above 0" in why(scale=-1.0)
    assert "its own offset" in why(offset=torch.tensor([1, 2]), mask=causal)
    assert "not entropy" in why(Entropy())
    assert "no run" in "; ".join(Fused().why_not(regard.attention(Q, K)[:, :, ::2].call))
    assert "the matrix is empty" in "; ".join(Fused().why_not(regard.attention(Q[..., :0, :], K).call))
    with pytest.raises(regard.Unsupported, match=r"backend 'fused' cannot answer: it answers the output .* not entropy"):
        regard.attention(Q, K, backend="fused").entropy()
    with pytest.raises(regard.Unsupported, match="no dropout"):
        _ = regard.attention(Q, K, backend="fused").dropout(0.5, 0) @ V


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_hidden_stays_hidden(bad):
    mask = causal & padding([9, 6])
    k, v = K.clone(), V.clone()
    k[1, :, 7], v[1, :, 8] = bad, bad
    A = regard.attention(Q, k, mask=mask)
    torch.testing.assert_close(A @ v, regard.attention(Q, K, mask=mask) @ V)
    assert "NaN or infinity" in Fused().why_not(A.call)[0]
    seen = regard.attention(Q, k) @ v  # everyone sees it: the kernel may, too
    assert bool(seen[1].isnan().any())
    assert bool(seen[0].isfinite().all())


def test_strides_and_shared_values():
    q, k, v = (t.transpose(-1, -2).contiguous().transpose(-1, -2) for t in (Q, K, V))
    assert q.stride(-1) != 1
    torch.testing.assert_close(regard.attention(q, k, backend="fused") @ v, regard.attention(Q, K, backend="reference") @ V)
    for heads in (1, 2, 4):
        value = torch.randn(2, heads, 9, 3)
        due = regard.attention(Q, K, backend="reference") @ value
        torch.testing.assert_close(regard.attention(Q, K, backend="fused") @ value, due)


@pytest.mark.parametrize("offset", [-7, -5, -2, 0, 1, 4, 7, 8, 20])
def test_parts_and_offsets(offset):
    A = regard.attention(Q, K, mask=causal, offset=offset, backend="fused")
    B = regard.attention(Q, K, mask=causal, offset=offset, backend="reference")
    torch.testing.assert_close(A @ V, B @ V)
    torch.testing.assert_close(A.logsumexp(), B.logsumexp())
    torch.testing.assert_close(A[..., 1:4, 2:7] @ V[..., 2:7, :], B[..., 1:4, 2:7] @ V[..., 2:7, :])


def test_second_derivatives_go_through():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    sinks = torch.randn(2, dtype=torch.float64, requires_grad=True)

    def ask(q, k, v, sinks):
        return regard.attention(q, k, mask=causal, sinks=sinks, backend="fused") @ v

    assert torch.autograd.gradcheck(ask, (q, k, v, sinks))
    assert torch.autograd.gradgradcheck(ask, (q, k, v, sinks))


def test_the_choice_weighs_what_a_mask_saves():
    """A mask of keys saves the kernel nothing: tiles skip what nobody sees."""
    q = torch.randn(1, 1, 2048, 8)
    for keys, name in ((64, "tiled"), (2000, "fused")):
        A = regard.attention(q, q, mask=padding([keys]))
        assert backends.choose(A.call, LogSumExp(), None).name == name


# -- gradients in 16 bits ---------------------------------------------------------------------------------------------


def gradients(ask, tensors, above):
    """The answer and what it gives back to the tensors."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    output = ask(*leaves)
    return output.detach(), *torch.autograd.grad(output, leaves, above.to(output.dtype))


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("mask", [full, causal], ids=str)
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_gradients_in_16_bits_are_those_of_pytorch(dtype, mask, kv_heads):
    """The same kernel with the same numbers: bit for bit."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, above = (torch.randn(2, n, 70, 16, generator=generator).to(dtype) for n in (4, kv_heads, kv_heads, 4))
    due = gradients(lambda *t: F.scaled_dot_product_attention(*t, is_causal=mask is causal, enable_gqa=True), (q, k, v), above)
    got = gradients(lambda q, k, v: regard.attention(q, k, mask=mask, backend="fused") @ v, (q, k, v), above)
    for a, b in zip(got, due, strict=True):
        assert torch.equal(a, b)


@settings(max_examples=80)
@given(case=fusible(), dtype=st.sampled_from(LOW), wide=st.sampled_from((None, "query and key", "value")), far=st.booleans())
def test_gradients_in_16_bits_keep_to_their_budget(case, dtype, wide, far):
    """Offsets, masks of keys, sinks and shared heads; values around 100, whose differences dL/dA - δ feel every rounding."""
    case = replace(case, score=None) if case.query.shape[-1] == case.key.shape[-1] else case
    tensors = dict(zip(case.names, (t.to(dtype) for t in case.tensors), strict=True))
    tensors["value"] = tensors["value"] + 100 * far
    for name in {"query and key": ("query", "key"), "value": ("value",), None: ()}[wide]:
        tensors[name] = tensors[name].float()
    case = case.with_tensors(*tensors.values())
    places = [n for n, name in enumerate(case.names) if name != "r"]
    generator = torch.Generator().manual_seed(case.seed)
    above = torch.randn((*case.query.shape[:-1], case.value.shape[-1]), generator=generator).to(case.value.dtype).double()

    def by(backend, case):
        def ask(*leaves):
            own = case.with_tensors(*(leaves[places.index(n)] if n in places else t for n, t in enumerate(case.tensors)))
            return regard.attention(own.query, own.key, **own.options(), backend=backend) @ own.value

        return gradients(ask, [case.tensors[n] for n in places], above)

    call = regard.attention(case.query, case.key, **case.options()).call
    assume(not Fused().why_not(call, Output(case.value)))
    exact = by(Reference(), case.with_tensors(*(t.double() for t in case.tensors)))
    plain, got = by(Reference(), case), by(Fused(), case)
    magnitudes = _gradient_magnitudes(case, 1, case.query.shape[2])
    for n, *tensors in zip(places, exact[1:], plain[1:], got[1:], strict=True):
        compare(case, *(Answer(case.names[n], tensor, magnitudes[n], n, above) for tensor in tensors))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.fault)
def test_the_budget_of_16_bits_bites(fault):
    """Gradients alone tell a wrong backend in bfloat16, too."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((2, 4, 14, 8), (2, 2, 20, 8), (2, 2, 20, 5), (2, 4, 14, 2))
    q, k, v, r = (torch.randn(size, generator=generator).bfloat16() for size in sizes)
    rest = {"bias": biases.alibi(torch.rand(4, generator=generator)), "softcap": 2.0, "drop": Dropout(0.5, 0)}
    sinks = torch.randn(4, generator=generator)
    case = Case(q, k, v, r, causal & window(6), None, None, 0, sinks=sinks, **rest)
    exact = answers(Reference(), case.with_tensors(*(t.double() for t in case.tensors)), ALL)
    plain, planted, right = (answers(backend, case, ALL) for backend in (Reference(), fault, Tiled()))
    of_gradients = [n for n, answer in enumerate(exact) if answer.by is not None]
    for n in of_gradients:
        compare(case, exact[n], plain[n], right[n])

    def compare_all():
        for n in of_gradients:
            compare(case, exact[n], plain[n], planted[n])

    with pytest.raises(Mismatch):
        compare_all()


def test_who_answers_beside_a_gradient_in_16_bits():
    """The rough log-sum-exp is not passed on, and float16 goes where its backward is quicker."""
    q, k, v = (t.bfloat16().requires_grad_() for t in (Q, K, V))
    A = regard.attention(q, k, mask=causal)
    assigned = backends.assign(A.call, (Output(v), Entropy(), Received()), None, False)
    assert [(backend.name, places) for backend, places in assigned] == [("fused", [0]), ("tiled", [1, 2])]
    assert Fused().read(A.call, [Output(v)], None)[1] is None
    reading = A.read(Entropy(), Received(), value=v)
    alone = regard.attention(q, k, mask=causal, backend="tiled").read(Entropy(), Received())
    assert torch.equal(reading.entropy, alone.entropy)
    assert torch.equal(reading.received, alone.received)
    half = regard.attention(q.half(), k.half(), mask=causal)
    assert backends.choose(half.call, Output(v.half()), None).name == "tiled"
    assert "in float16 PyTorch's backward is slower" in repr(half.explain(Output(v.half())))
    with torch.no_grad():
        assert backends.choose(half.call, Output(v.half()), None).name == "fused"


def test_a_rounded_answer_does_not_disturb_a_gradient_in_full_precision():
    """A compiled graph keeps the answer alone, in the value's dtype; δ is not taken from it."""
    value = (V + 100).bfloat16()
    above = torch.randn(2, 4, 5, 3).bfloat16()
    q, k = Q.clone().requires_grad_(), K.clone().requires_grad_()
    A = regard.attention(q, k, mask=causal, backend="fused")
    due = torch.autograd.grad(A @ value, (q, k), above)
    ((answer,), (log_sum,)), _ = Fused().read(A.call.constant(), [Output(value), LogSumExp()], None)
    found, _ = Fused().gradients(A.call, [Output(value)], log_sum, [(answer,)], [(above,)])
    for got, wanted in zip(found, due, strict=False):
        torch.testing.assert_close(got, wanted)


# -- on CUDA: shapes without numbers, and the same ways with the CPU's kernel ------------------------------------------


def empty(device, dtype, dim=8, value_dim=8):
    shapes = ((2, 4, 5, dim), (2, 2, 9, dim), (2, 2, 9, value_dim))
    return (torch.empty(shape, dtype=dtype, device=device) for shape in shapes)


@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [(kernel, dtype) for kernel in kernels.ON["cuda"] for dtype in kernel.dtypes],
    ids=lambda x: getattr(x, "name", str(x)),
)
@pytest.mark.parametrize("causal", [False, True])
def test_kernels_on_cuda(kernel, dtype, causal):
    """Operators of PyTorch with these names take such tensors, and give such."""
    with FakeTensorMode():
        q, above = (torch.empty(2, 4, 40, 16, dtype=dtype, device="cuda") for _ in range(2))
        k = torch.empty(2, 4, 40 if causal else 33, 16, dtype=dtype, device="cuda")
        output, log_sum = kernel.forward(q, k, k, causal, None, 0.5)
        assert (output.shape, output.dtype, output.device.type) == (q.shape, dtype, "cuda")
        assert (log_sum.shape, log_sum.dtype, log_sum.device.type) == ((2, 4, 40), torch.float32, "cuda")
        found = kernel.backward(above, q, k, k, output, log_sum, causal, None, 0.5)
        assert [(g.shape, g.dtype) for g in found] == [(t.shape, dtype) for t in (q, k, k)]


@pytest.mark.parametrize(
    ("dtype", "dim", "name"),
    [
        (torch.bfloat16, 256, "flash"),
        (torch.float16, 257, "efficient"),
        (torch.float32, 8, "efficient"),
        (torch.float64, 8, None),
    ],
)
def test_which_kernel_on_cuda(dtype, dim, name):
    found = kernels.kernel_for(torch.device("cuda"), dtype, dim)
    assert (None if found is None else found.name) == name


@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
@pytest.mark.parametrize("mask", [full, causal, causal_from(-2)], ids=str)
@pytest.mark.parametrize(("dim", "value_dim"), [(8, 8), (3, 5), (264, 16)])
def test_shapes_on_cuda(monkeypatch, dtype, mask, dim, value_dim):
    """From the matrix to its gradients, on tensors without numbers."""
    monkeypatch.setitem(kernels.ON, "meta", kernels.ON["cuda"])
    q, k, v = empty("meta", dtype, dim, value_dim)
    sinks = torch.empty(4, device="meta")
    A = regard.attention(q, k, mask=mask, sinks=sinks, backend="fused")
    output = A @ v
    assert (output.shape, output.dtype) == ((2, 4, 5, value_dim), dtype)
    (_, (log_sum,)), _ = Fused().read(A.call, [Output(v), LogSumExp()], None)
    assert (log_sum.shape, log_sum.dtype) == ((2, 4, 5), torch.float32)
    found, _ = Fused().gradients(A.call, [Output(v)], log_sum, [(output,)], [(output,)])
    tensors = (*A.call.tensors, v)
    assert [(g.shape, g.dtype) for g in found] == [(t.shape, t.dtype) for t in tensors]
    leaves = [t.requires_grad_() for t in (q, k, v, sinks)]
    A = regard.attention(q, k, mask=mask, sinks=sinks, backend="fused")
    gave = torch.autograd.grad(A @ v, leaves, output)
    assert [(g.shape, g.dtype) for g in gave] == [(t.shape, t.dtype) for t in leaves]


def test_who_answers_on_cuda():
    with FakeTensorMode():
        q, k, v = empty("cuda", torch.float32)

        def why(q=q, k=k, **options):
            return "; ".join(Fused().why_not(regard.attention(q, k, **options).call, Output(v)))

        assert why() == why(mask=causal) == why(mask=causal, offset=-2) == ""
        assert "as many queries as keys" in why(mask=causal, offset=6)
        assert "no masks of keys" in why(mask=padding([3, 9]))
        assert "no fused kernel for torch.float64 on cuda" in why(q.double(), k.double())
        A = regard.attention(q, k, mask=causal)
        assert backends.choose(A.call, Output(v), None).name == "tiled"
        assert "never run: it only answers when it is named" in repr(A.explain(Output(v)))
        with pytest.raises(regard.Unsupported, match="as many queries as keys"):
            _ = regard.attention(q, k, mask=causal, offset=6, backend="fused") @ v


@pytest.mark.parametrize("queries", [5, 32])
def test_the_log_sum_exp_of_the_efficient_kernel_has_rows_of_32(monkeypatch, queries):
    given = []

    class Operator:
        def default(self, grad, q, k, v, added, output, log_sum, *rest, **options):
            given.append(log_sum)
            return q, k, v, None

    monkeypatch.setattr(kernels.aten, "_scaled_dot_product_efficient_attention_backward", Operator())
    rows, t = torch.randn(2, 4, queries), torch.randn(2, 4, queries, 8)
    kernels.EFFICIENT.backward(t, t, t, t, t, rows, True, None, 1.0)
    assert given[0].shape == (2, 4, 32)
    assert torch.equal(given[0][..., :queries], rows)
    assert bool((given[0][..., queries:] == torch.inf).all())


@pytest.fixture
def as_on_cuda(monkeypatch):
    """The CPU's kernel with the limits of those on CUDA."""

    def strict(q, k, v, causal, added, scale):
        assert q.shape[1] == k.shape[1] == v.shape[1]
        assert q.shape[3] == k.shape[3] == v.shape[3] == 8
        assert added is None
        return kernels.CPU.forward(q, k, v, causal, added, scale)

    limits = {"multiple": 8, "of_keys": False, "grouped": False, "squares": True, "repairs": True}
    monkeypatch.setitem(kernels.ON, "cpu", (replace(kernels.CPU, forward=strict, **limits),))


@pytest.mark.parametrize("offset", [None, -4, -2, 0, 4])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_padded_spread_and_square(as_on_cuda, offset, heads):
    """What is done around a kernel on CUDA changes no number: dims of 8, heads of their own, square blocks."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(*size, generator=generator) for size in ((2, 4, 5, 7), (2, 2, 9, 7), (2, heads, 9, 3)))
    sinks, above = torch.randn(4, generator=generator), torch.randn(2, 4, 5, 3, generator=generator)
    mask = full if offset is None else causal

    def by(backend):
        return lambda q, k, v, s: regard.attention(q, k, mask=mask, sinks=s, offset=offset, backend=backend) @ v

    A = regard.attention(q, k, mask=mask, offset=offset)
    assert all(block.square(5) for block in blocks(shape_of(A.call), 5, 9))
    for got, due in zip(*(gradients(by(name), (q, k, v, sinks), above) for name in ("fused", "reference")), strict=True):
        torch.testing.assert_close(got, due)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_seen_without_looking(as_on_cuda, bad):
    """Rows that do not see it are those of clean tensors, also in the backward; rows that see it are NaN."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, above = (torch.randn(1, n, 9, 8, generator=generator) for n in (4, 2, 2, 4))
    clean, _ = Fused().read(regard.attention(q, k, mask=causal).call, [Output(v), LogSumExp()], None)
    dirty_key, dirty_value = k.clone(), v.clone()
    dirty_key[:, 0, 6, 2], dirty_value[:, 0, 4, 1] = bad, bad
    call = regard.attention(q, dirty_key, mask=causal).call
    ((output,), (log_sum,)), _ = Fused().read(call, [Output(dirty_value), LogSumExp()], None)
    seen = torch.arange(9) >= 4
    assert bool(output[:, :2, seen].isnan().all())
    assert bool(log_sum[:, :2, 6:].isnan().all())
    assert torch.equal(output[:, :2, ~seen], clean[0][0][:, :2, ~seen])
    assert torch.equal(output[:, 2:], clean[0][0][:, 2:])
    assert torch.equal(log_sum[:, :2, :6], clean[1][0][:, :2, :6])
    (by_query, *_), _ = Fused().gradients(call, [Output(dirty_value)], log_sum, [(output,)], [(above,)])
    assert bool(by_query[:, :2, seen].isnan().all())
    assert bool(by_query[:, :2, ~seen].isfinite().all())
    assert bool(by_query[:, 2:].isfinite().all())


@pytest.mark.parametrize("backend", [None, "fused", "tiled"])
def test_values_of_more_precision_have_gradients(backend):
    q, k = (torch.randn(1, 2, 5, 8, requires_grad=True) for _ in range(2))
    v = torch.randn(1, 2, 5, 8, dtype=torch.float64, requires_grad=True)

    def gradients(matrix: regard.Attention) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad((matrix @ v).square().sum(), (q, k, v))

    found = gradients(regard.attention(q, k, mask=causal, backend=backend))
    for f, wanted, tensor in zip(
        found, gradients(regard.attention(q, k, mask=causal, backend="reference")), (q, k, v), strict=True
    ):
        assert f.dtype == tensor.dtype
        torch.testing.assert_close(f, wanted, rtol=1e-4, atol=1e-5)
