"""torch.compile and torch.export: one graph over changing lengths, the numbers of eager mode, a sentence for the rest."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import Phase, assume, given, settings
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.functional import scaled_dot_product_attention

import regard
from regard import biases, masks, scores
from regard.masks import Mask, causal, documents, padding, prefix, window
from regard.masks.contents import Where
from regard.readouts import (
    Columns,
    Diagonal,
    Distance,
    Entropy,
    LogSumExp,
    Mass,
    Max,
    Pool,
    Readout,
    Received,
    Rows,
    TopK,
)
from regard.testing.strategies import Case, cases

QUESTIONS: tuple[Readout, ...] = (
    LogSumExp(), Entropy(), TopK(3), Max(), Received(), Diagonal(-1), Distance(), Pool((3, 2)), Pool((2, 40), "sum"),
    Pool((5, 5), "max"), Rows((0,)), Columns((0,)),
)  # fmt: skip

# Deprecation warnings of Dynamo's own
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("as_users_have_it"),
]


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    torch._dynamo.reset()


def tensors(length: int = 9, keys: int | None = None, grad: bool = True) -> list[Tensor]:
    """Query, key and value: 2 batch rows, 4 heads, 2 key heads."""
    generator = torch.Generator().manual_seed(length)
    shapes = ((2, 4, length, 8), (2, 2, keys or length, 8), (2, 2, keys or length, 5))
    return [torch.randn(shape, generator=generator).requires_grad_(grad) for shape in shapes]


def flat(answer: Any) -> list[Tensor]:
    return [answer] if isinstance(answer, Tensor) else [t for part in answer for t in flat(part)]


def gradients(answers: list[Tensor], of: list[Tensor]) -> list[Tensor]:
    """Of a fixed mixture of all answers; zeros where there is none."""
    loss = torch.zeros((), dtype=torch.float64)
    for answer in answers:
        if answer.requires_grad:
            weights = torch.linspace(-1, 1, answer.numel()).reshape(answer.shape)
            loss = loss + (answer.masked_fill(answer.isinf(), 0) * weights).double().sum()
    if not loss.requires_grad:
        return [torch.zeros_like(t) for t in of]
    found = torch.autograd.grad(loss, of, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, of, strict=True)]


def same(got: list[Tensor], due: list[Tensor]) -> None:
    """The operators run the backends that run in eager mode: at most the order of a sum differs."""
    assert [(t.shape, t.dtype) for t in got] == [(t.shape, t.dtype) for t in due]
    for g, d in zip(got, due, strict=True):
        finite = d[d.isfinite()].abs()
        torch.testing.assert_close(g, d, rtol=1e-5, atol=1e-5 * max(1.0, float(finite.max()) if finite.numel() else 0.0))


def compare(
    function: Callable[..., Any], *inputs: list[Tensor], backend: str = "aot_eager", dynamic: bool | None = True
) -> None:
    """Answers and gradients of the compiled function and of the function, for each of the inputs, from one graph."""
    graphs = CompileCounterWithBackend(backend)
    compiled = torch.compile(function, fullgraph=True, backend=graphs, dynamic=dynamic)
    for given_tensors in inputs:
        due, got = flat(function(*given_tensors)), flat(compiled(*given_tensors))
        same(got, due)
        of = [t for t in given_tensors if t.requires_grad]
        same(gradients(got, of), gradients(due, of))
    assert len(inputs) == 1 or graphs.frame_count == 1


DRAW = (Phase.explicit, Phase.reuse, Phase.generate)  # not shrunk: that would compile hundreds of graphs

# -- drawn problems ---------------------------------------------------------------------------------------------------


def has_function(mask: Mask) -> bool:
    return isinstance(mask, Where) or any(map(has_function, mask.parts()))


@settings(max_examples=7, phases=DRAW)
@given(cases(dtypes=(torch.float32, torch.float64)), st.permutations(QUESTIONS), st.booleans())
def test_a_compiled_reading_is_the_eager_one(case: Case, questions: list[Readout], dynamic: bool) -> None:
    assume(not has_function(case.mask))
    asked = questions[:3]

    def ask(*given_tensors: Tensor) -> Any:
        own = case.with_tensors(*given_tensors)
        A = regard.attention(own.query, own.key, **own.options())
        if own.drop is not None:
            A = A.dropout(own.drop.p, own.drop.seed)
        reading = A.read(*asked, value=own.value)
        return reading.output, [reading[question] for question in asked], torch.matmul(A.mT, own.r), A[:, :1, 1:, :-1].entropy()

    torch._dynamo.reset()
    compare(ask, [t.detach().requires_grad_() for t in case.tensors], dynamic=dynamic)


@settings(max_examples=14, phases=DRAW)
@given(cases(dtypes=(torch.float32,), plain=True))
def test_a_compiled_product_under_any_mask_is_the_eager_one(case: Case) -> None:
    assume(not has_function(case.mask))

    def product(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return torch.matmul(regard.attention(query, key, mask=case.mask, scale=case.scale, offset=case.offset), value)

    torch._dynamo.reset()
    compare(product, [t.detach().requires_grad_() for t in (case.query, case.key, case.value)], dynamic=False)


# -- one graph over changing lengths ----------------------------------------------------------------------------------

SEGMENTS = Mass(torch.tensor([0, 1, 1, 0]), 2)
LENGTHS = torch.tensor([4, 7])


def built(q: Tensor, k: Tensor, **options: Any) -> regard.Attention:
    return regard.attention(q, k, **options)


USES: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "product": lambda q, k, v: built(q, k, mask=causal & window(3)) @ v,
    "reading": lambda q, k, v: tuple(built(q, k, mask=causal).read(Entropy(), Max(), Received(), value=v).values()),
    "methods": lambda q, k, v: (built(q, k).topk(2), built(q, k).amax(-1), built(q, k).mean((1, 2)), built(q, k).sum(1)),
    "functions": lambda q, k, v: (torch.sum(built(q, k), -2), torch.bmm(built(q[0], k[0]), v[0].repeat_interleave(2, 0))),
    "transpose": lambda q, k, v: torch.matmul(built(q, k, mask=causal).mT, q[..., :3]),
    "divergence": lambda q, k, v: (built(q, k).kl(built(q * 2, k)), built(q, k, mask=causal).js(built(q, k, mask=window(3)))),
    "rows": lambda q, k, v: (built(q, k)[0, 1, 3], built(q, k)[:, 1:3].entropy()),
    "slices": lambda q, k, v: built(q, k, mask=causal)[..., ::2, 1::2].sum(-1),
    "part of the keys": lambda q, k, v: torch.matmul(built(q, k, mask=causal)[..., 1:-1], v[..., 1:-1, :]),
    "batch rows": lambda q, k, v: built(q, k, mask=causal & padding(LENGTHS))[1:].entropy(),
    "two batch dimensions": lambda q, k, v: built(q.unflatten(0, (2, 1)), k.unflatten(0, (2, 1)))[1, :, 2].entropy(),
    "plain matrix": lambda q, k, v: (torch.matmul(built(q[0, 0], k[0, 0]), v[0, 0]), torch.matmul(built(q, k), v[0, 0, :, 0])),
    "segments": lambda q, k, v: (
        built(q, k)[..., :4].read(SEGMENTS).mass, built(q, k).mass(torch.arange(k.shape[-2]) % 3, 3),
    ),
    "offsets": lambda q, k, v: torch.matmul(built(q, k, mask=causal, offset=LENGTHS, bias=biases.alibi(4)), v),
    "masks made inside": lambda q, k, v: torch.matmul(
        built(q, k, mask=(prefix(2) | causal) & documents(torch.arange(k.shape[-2]) // 3) & padding([5, 6])), v
    ),
    "score, softcap, sinks": lambda q, k, v: torch.matmul(
        built(q, k, score=scores.cosine(0.3), softcap=5.0, sinks=q[0, :, 0, 0], scale=2), v
    ),
    "dropout": lambda q, k, v: torch.matmul(built(q, k).dropout(0.5, 3), v),
    "constant": lambda q, k, v: torch.matmul(built(q, k).detach(), v),
    "stored": lambda q, k, v: (built(q, k).to_dense(), torch.stack([built(q, k), built(q * 2, k)])),
    "one tensor with and without a graph": lambda q, k, v: torch.matmul(built(q, q.detach()), q.detach()),
    "reference": lambda q, k, v: torch.matmul(built(q, k, mask=causal, backend="reference"), v),
}  # fmt: skip


@pytest.mark.parametrize("name", USES)
def test_one_graph_serves_all_lengths(name: str) -> None:
    compare(USES[name], *(tensors(length) for length in (9, 12, 7)))


def test_queries_and_keys_of_lengths_of_their_own() -> None:
    """As with a cache: the offset is keys - queries, whatever they are."""
    compare(USES["product"], tensors(3, 9), tensors(6, 30), tensors(7, 8))


def test_marked_dimensions_stay_dynamic_through_inductor() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(16, 48)
            self.slopes = nn.Parameter(torch.tensor([0.5, 0.25]))
            self.mask = causal & window(5)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            q, k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in self.project(x).chunk(3, -1))
            A = regard.attention(q, k, mask=self.mask, bias=biases.alibi(self.slopes))
            reading = A.read(Entropy(), value=v)
            return reading.output.transpose(1, 2).flatten(2), reading.entropy, torch.matmul(A.mT, q[..., :3])

    torch.manual_seed(0)
    layer = Layer()
    graphs = CompileCounterWithBackend("inductor")
    compiled = torch.compile(layer, fullgraph=True, backend=graphs)
    for length in (9, 40, 17):
        x = torch.randn(2, length, 16)
        torch._dynamo.mark_dynamic(x, 1)
        got, due = flat(compiled(x)), flat(layer(x))
        same(got, due)
        same(gradients(got, list(layer.parameters())), gradients(due, list(layer.parameters())))
    assert graphs.frame_count == 1


def test_inductor_runs_what_a_reading_is_made_of() -> None:
    def ask(q: Tensor, k: Tensor, v: Tensor) -> Any:
        A = regard.attention(q * 2, k.tanh(), mask=causal & padding(LENGTHS), softcap=3.0)
        return A.read(TopK(2), Received(), Pool((2, 2), "max"), value=v.relu()).output.exp(), A[..., 1:, :].logsumexp().exp()

    compare(ask, tensors(9), tensors(14), backend="inductor")


def test_numbers_of_a_mask_and_a_scale_may_change() -> None:
    def ask(q: Tensor, width: int, scale: float) -> Tensor:
        return regard.attention(q, q, mask=causal & window(width), scale=scale).entropy()

    compiled = torch.compile(ask, fullgraph=True, backend="aot_eager")
    q = tensors(grad=False)[0]
    for width, scale in ((2, 0.3), (3, 0.3), (5, 0.7), (1, 1.5)):
        same([compiled(q, width, scale)], [ask(q, width, scale)])


def test_what_a_bias_cannot_cover_is_said_when_the_graph_runs() -> None:
    def ask(q: Tensor, offset: Tensor) -> Tensor:
        return regard.attention(q, q, offset=offset, bias=table).entropy()

    table = biases.relative(torch.randn(4, 19), by=biases.exact(-9))
    compiled = torch.compile(ask, fullgraph=True, backend="aot_eager")
    q = tensors(grad=False)[0]
    same([compiled(q, torch.tensor([0, 1]))], [ask(q, torch.tensor([0, 1]))])
    with pytest.raises(regard.ShapeError, match=r"covers the distances -9 … 9, and -12 … 8 occur"):
        compiled(q, torch.tensor([0, 4]))


def test_segments_of_a_graph_are_looked_at_when_it_runs() -> None:
    compiled = torch.compile(lambda q, s: regard.attention(q, q).mass(s, 2), fullgraph=True, backend="aot_eager")
    q = tensors(4, grad=False)[0]
    compiled(q, torch.tensor([0, 1, 1, 0]))
    with pytest.raises(ValueError, match="segments must be at least 0 and below count = 2; got numbers from 0 to 2"):
        compiled(q, torch.tensor([0, 1, 2, 0]))


# -- torch.export -----------------------------------------------------------------------------------------------------


class Exported(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(16, 48)
        self.slopes = nn.Parameter(torch.tensor([1.0, 0.5, 0.25, 0.125]))
        self.mask = causal & window(5)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        q, k, v = (t.unflatten(-1, (4, 4)).transpose(1, 2) for t in self.project(x).chunk(3, -1))
        A = regard.attention(q, k, mask=self.mask & padding(lengths), bias=biases.alibi(self.slopes))
        reading = A.read(Entropy(), TopK(2), value=v)
        return reading.output, reading.entropy, reading.topk.indices, A[:, :, 1:, :-1].sum(-1), A @ v


@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_program_saves_loads_and_answers(strict: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer, lengths, x = Exported(), torch.tensor([9, 4]), torch.randn(2, 9, 16)
    shapes = {"x": {1: torch.export.Dim("n", min=3, max=512)}, "lengths": None}
    with torch.set_grad_enabled(strict):
        program = torch.export.export(layer, (x, lengths), dynamic_shapes=shapes, strict=strict)
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    loaded = torch.export.load(stored).module()
    for length in (9, 20, 5):
        x = torch.randn(2, length, 16)
        same(flat(loaded(x, lengths)), flat(layer(x, lengths)))
    if not strict:  # and where nothing but regard was imported
        (tmp_path / "program.pt2").write_bytes(stored.getvalue())
        torch.save((x, lengths, loaded(x, lengths)), tmp_path / "case.pt")
        script = (
            "import sys, torch, regard\n"
            "x, lengths, due = torch.load(sys.argv[2])\n"
            "found = torch.export.load(sys.argv[1]).module()(x, lengths)\n"
            "assert all(torch.allclose(f, d, atol=1e-5) for f, d in zip(found, due))\n"
        )
        subprocess.run([sys.executable, "-c", script, tmp_path / "program.pt2", tmp_path / "case.pt"], check=True)


# -- refusals ---------------------------------------------------------------------------------------------------------


class Own(Entropy):
    """A question of a user's."""


def both_sides(q: Tensor, k: Tensor, v: Tensor) -> Any:
    return regard.attention(q, k) @ torch.ones(2, 1, k.shape[-2], q.shape[-2])


REFUSED: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Any], str]] = {
    "function": (
        lambda q, k, v: built(q, k, mask=masks.where(lambda b, h, i, j: i != j)).entropy(),
        "a compiled graph knows regard's own masks, biases, readouts and backends by name, and not Where: use it outside",
    ),
    "own readout": (lambda q, k, v: built(q, k).read(Own()).own, "and not Own: use it outside of the compiled function"),
    "either side": (
        both_sides,
        "torch.compile exchanges the operands of @, and a v of shape (2, 1, 9, 9) could stand on either side",
    ),
    "v @ A": (lambda q, k, v: q.mT @ built(q, k), "v @ A is not a question to an attention matrix"),
    "matmul(v, A)": (lambda q, k, v: torch.matmul(q.mT, built(q, k)), "v @ A is not a question to an attention matrix"),
    "index tensor": (
        lambda q, k, v: built(q, k)[..., torch.tensor([0, 2]), :],
        "A[…]: a compiled graph takes integers and slices; for chosen queries or keys ask A.read(Rows((0, 3)))",
    ),
    "count": (
        lambda q, k, v: built(q, k).mass(torch.arange(k.shape[-2])),
        "mass: a compiled graph does not look at numbers: say count, the number of segments.",
    ),
    "cu_seqlens": (
        lambda q, k, v: built(q, k, mask=documents.from_cu_seqlens(LENGTHS)).entropy(),
        "documents: a compiled graph does not look at numbers, and cu_seqlens is made of them",
    ),
    "explain": (
        lambda q, k, v: built(q, k).explain(),
        "a matrix that was built inside a compiled function answers A @ v and its questions there, and nowhere else",
    ),
    "vmap": (
        lambda q, k, v: torch.vmap(lambda q, k: built(q, k).entropy())(q, k),
        "torch.func transforms (vmap, grad, jvp, …) do not go through a reading of a compiled graph",
    ),
    "grad": (
        lambda q, k, v: torch.func.grad(lambda q: built(q, k).entropy().sum())(q),
        "torch.func transforms (vmap, grad, jvp, …) do not go through a reading of a compiled graph",
    ),
    "shapes": (
        lambda q, k, v: built(q, k[..., :3]),
        "attention: query and key must have the same dim, at least 1; got 8 and 3 (query (2, 4, 9, 8), key (2, 2, 9, 3)).",
    ),
    "values": (
        lambda q, k, v: torch.matmul(built(q, k), v[..., :2, :]),
        "A @ v: keys and values must have the same length; got 9 keys (matrix (2, 4, 9, 9)) and 2 values (shape (2, 2, 2, 5)).",
    ),
    "elementwise": (lambda q, k, v: built(q, k) * 2, "A * x would be a stored matrix: ask first and compute then"),
    "backend": (lambda q, k, v: built(q, k, backend="none"), "attention: backend must be one of"),
}


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("name", REFUSED)
def test_what_a_graph_cannot_is_said_in_one_sentence(name: str, dynamic: bool) -> None:
    function, sentence = REFUSED[name]
    with pytest.raises(Exception) as caught:  # noqa: PT011 (Dynamo's own kinds, with the sentence inside)
        torch.compile(function, fullgraph=True, backend="eager", dynamic=dynamic)(*tensors())
    assert sentence in str(caught.value).replace("\\'", "'"), caught.value


def test_a_demanded_backend_says_what_it_cannot_when_the_graph_runs() -> None:
    compiled = torch.compile(lambda q: built(q, q, backend="fused").entropy(), fullgraph=True, backend="aot_eager")
    with pytest.raises(regard.Unsupported, match="backend 'fused' cannot answer"):
        compiled(tensors()[0])


def test_a_matrix_that_leaves_its_graph_says_so() -> None:
    q, _, v = tensors()
    A = torch.compile(lambda q: built(q, q, mask=causal), fullgraph=True, backend="aot_eager")(q)
    assert A.shape == (2, 4, 9, 9)
    with pytest.raises(regard.Unsupported, match="built inside a compiled function answers A @ v and its questions there"):
        A @ v[:, :1]
    with pytest.raises(regard.Unsupported, match="built inside a compiled function"):
        A[0, 0, 3]


def test_second_derivatives_are_refused_and_never_wrong() -> None:
    for backend, sentence in (("aot_eager", "double backward"), ("eager", "a compiled graph has first derivatives only")):
        torch._dynamo.reset()
        q, k, v = tensors()
        loss = torch.compile(USES["product"], fullgraph=True, backend=backend)(q, k, v).square().sum()
        (first,) = torch.autograd.grad(loss, q, create_graph=True)
        with pytest.raises(RuntimeError, match=sentence):
            torch.autograd.grad(first.sum(), q)


# -- autocast ---------------------------------------------------------------------------------------------------------

MIXED = (
    (torch.float32, torch.float32, torch.float32),
    (torch.float32, torch.float16, torch.bfloat16),
    (torch.float64, torch.float64, torch.float64),
)


@pytest.mark.parametrize("how", ["eager", "compiled"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given_dtypes", MIXED, ids=str)
def test_autocast_is_that_of_scaled_dot_product_attention(
    given_dtypes: tuple[torch.dtype, ...], dtype: torch.dtype, how: str
) -> None:
    def ask(q: Tensor, k: Tensor, v: Tensor) -> Any:
        A = regard.attention(q, k, mask=causal)
        return torch.matmul(A, v), A.read(Entropy(), value=v).output

    x = torch.randn(2, 4, 7, 8)
    q, k, v = (x.to(d).requires_grad_() for d in given_dtypes)
    with torch.autocast("cpu", dtype=dtype):
        due = scaled_dot_product_attention(q, k, v, is_causal=True)
        got = (torch.compile(ask, fullgraph=True, backend="aot_eager") if how == "compiled" else ask)(q, k, v)
    for answer in got:
        assert answer.dtype == due.dtype
        torch.testing.assert_close(answer, due, rtol=4 * torch.finfo(due.dtype).eps, atol=4 * torch.finfo(due.dtype).eps)
        for mine, theirs in zip(
            torch.autograd.grad(answer.sum(), (q, k, v), retain_graph=True),
            torch.autograd.grad(due.sum(), (q, k, v), retain_graph=True),
            strict=True,
        ):
            assert mine.dtype == theirs.dtype
            torch.testing.assert_close(mine, theirs, rtol=0.05, atol=0.05)
