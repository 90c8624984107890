"""Every sentence that a matrix can answer with: rule, numbers, shapes. A sentence without a row here fails below."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch

import regard
from regard import checks
from regard.backends.tiled import Tiled
from regard.checks import Changed, ShapeError, TooLarge, Unsupported
from regard.masks import causal, dense, padding, where, window
from regard.readouts import Diagonal, Pool, Readout, Rows, TopK

Q, K = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 6, 8)
YES = torch.ones(5, 6, dtype=torch.bool)


def matrix(**options: Any) -> regard.Attention:
    """Shape (2, 4, 5, 6), two key heads."""
    return regard.attention(Q, K, **options)


def zeros(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


def changed(which: str) -> Any:
    """Asks a matrix one of whose tensors has changed in place since."""
    q, k, keep = Q.clone(), K.clone(), torch.ones(2, 6, dtype=torch.bool)
    A = regard.attention(q, k, mask=causal & padding(keep=keep))
    {"query": q, "key": k, "mask": keep}[which].zero_()
    return A.entropy()


def changed_below_a_part() -> Any:
    q = Q.clone()
    part = regard.attention(q, K)[..., 1:, 2:]
    q[0, 0, 0] = 0  # of another query, but of the same memory
    return part @ zeros(4, 1)


@dataclass(frozen=True)
class Odd(Readout):
    """A question that is neither online nor finished."""

    def dense(self, matrix: Any) -> Any:
        return (matrix.weights,)

    def size(self, call: Any) -> int:
        return 1


class Absent(Tiled):
    name = "absent"

    def why_not(self, call: Any, readout: Any = None) -> list[str]:
        return ["it needs a GPU", "it knows no masks"]


def row(kind: type[Exception], call: Callable[[], Any], *fragments: str) -> Any:
    return pytest.param(kind, call, fragments, id=fragments[0][:60])


CALL = [
    row(TypeError, lambda: regard.attention([[1.0]], K), "attention: query must be a tensor; got list."),
    row(TypeError, lambda: regard.attention(Q, None), "attention: key must be a tensor; got NoneType."),
    row(
        TypeError,
        lambda: regard.attention(Q.long(), K.long()),
        "attention: query must be float16, bfloat16, float32 or float64; got torch.int64 of shape (2, 4, 5, 8).",
    ),
    row(TypeError, lambda: regard.attention(Q, K.cfloat()), "attention: key must be float16", "got torch.complex64"),
    row(
        TypeError,
        lambda: regard.attention(torch.eye(3).to_sparse(), torch.eye(3)),
        "attention: query must be a dense tensor; got layout torch.sparse_coo: pad it",
        "masks.padding(lengths)",
    ),
    row(
        TypeError,
        lambda: regard.attention(Q, K.double()),
        "attention: query and key must have one dtype; got torch.float32 and torch.float64",
        "(query (2, 4, 5, 8), key (2, 2, 6, 8)).",
    ),
    row(
        ValueError,
        lambda: regard.attention(Q, K.to("meta")),
        "attention: query and key must be on one device; got cpu and meta",
        "(query (2, 4, 5, 8), key (2, 2, 6, 8)).",
    ),
    row(
        ShapeError,
        lambda: regard.attention(Q, K[0]),
        "attention: query and key must both be (…, heads, n, dim), or both (n, dim); got 4 and 3 dimensions",
        "(query (2, 4, 5, 8), key (2, 6, 8)).",
    ),
    row(ShapeError, lambda: regard.attention(zeros(8), zeros(8)), "got 1 and 1 dimensions (query (8,), key (8,))."),
    row(
        ShapeError,
        lambda: regard.attention(Q, K[..., :7]),
        "attention: query and key must have the same dim, at least 1; got 8 and 7",
        "(query (2, 4, 5, 8), key (2, 2, 6, 7)).",
    ),
    row(ShapeError, lambda: regard.attention(zeros(3, 0), zeros(3, 0)), "the same dim, at least 1; got 0 and 0"),
    row(
        ShapeError,
        lambda: regard.attention(Q, K[:1]),
        "attention: query and key must have the same batch dimensions; got (2,) and (1,)",
        "(query (2, 4, 5, 8), key (1, 2, 6, 8)).",
    ),
    row(ShapeError, lambda: regard.attention(Q[None], K[None, :1]), "batch dimensions; got (1, 2) and (1, 1)"),
    row(
        ShapeError,
        lambda: regard.attention(Q, zeros(2, 3, 6, 8)),
        "attention: the number of key heads must divide the number of heads; got 4 heads and 3 key heads",
        "(query (2, 4, 5, 8), key (2, 3, 6, 8)).",
    ),
    row(ShapeError, lambda: regard.attention(Q[:, :2], zeros(2, 4, 6, 8)), "got 2 heads and 4 key heads"),
    row(ShapeError, lambda: regard.attention(Q, zeros(2, 0, 6, 8)), "got 4 heads and 0 key heads"),
    row(ShapeError, lambda: regard.attention(Q[:, :0], K), "got 0 heads and 2 key heads"),
    row(TypeError, lambda: matrix(scale="1"), "attention: scale must be a finite number; got '1'."),
    row(TypeError, lambda: matrix(scale=True), "attention: scale must be a finite number; got True."),
    row(TypeError, lambda: matrix(scale=float("nan")), "attention: scale must be a finite number; got nan."),
    row(TypeError, lambda: matrix(scale=float("-inf")), "attention: scale must be a finite number; got -inf."),
    row(
        TypeError,
        lambda: matrix(offset=1.5),
        "attention: offset must be None, an int or an integer tensor of shape (batch,); got 1.5.",
    ),
    row(TypeError, lambda: matrix(offset=True), "an integer tensor of shape (batch,); got True."),
    row(TypeError, lambda: matrix(offset=zeros(2)), "an integer tensor of shape (batch,); got tensor([0., 0.])."),
    row(TypeError, lambda: matrix(offset=torch.tensor([True, False])), "got tensor([ True, False])."),
    row(TypeError, lambda: matrix(offset=zeros(dtype=torch.cdouble)), "(batch,); got tensor(0.+0.j, dtype=torch.compl"),
    row(
        ShapeError,
        lambda: matrix(offset=torch.tensor([1, 2, 3])),
        "attention: offset must have shape (batch,) = (2,); got (3,).",
    ),
    row(ShapeError, lambda: matrix(offset=torch.tensor([[1, 2]])), "shape (batch,) = (2,); got (1, 2)."),
    row(
        ValueError,
        lambda: matrix(backend="quantum"),
        "attention: backend must be one of 'tiled', 'reference'",
        "; got 'quantum'.",
    ),
    row(ValueError, lambda: matrix(backend=3), "attention: backend must be one of 'tiled', ", "; got 3."),
    row(
        Unsupported,
        lambda: matrix(backend=Absent()).entropy(),
        "backend 'absent' cannot answer: it needs a GPU; it knows no masks.",
    ),
    row(
        Unsupported,
        lambda: matrix().read(Odd()),
        "no backend can answer; tiled: Odd is neither an OnlineReadout nor a FinishedReadout. reference: it only",
    ),
]

MASKS = [
    row(TypeError, lambda: matrix(mask="causal"), "attention: mask must be one of regard.masks, such as", "; got str."),
    row(
        TypeError,
        lambda: matrix(mask=YES),
        "attention: a boolean tensor of shape (5, 6) does not say whether True keeps or drops",
        "dense(tensor) if True = may attend, dense(~tensor) if True = hidden.",
    ),
    row(
        TypeError,
        lambda: matrix(mask=YES.float()),
        "attention: a mask is boolean; got a torch.float32 tensor of shape (5, 6).",
        "numbers that are added to the scores are a bias",
    ),
    row(
        ShapeError,
        lambda: matrix(mask=padding([3, 2, 1])),
        "attention: padding has 3 lengths and the batch 2 rows (batch 2, heads 4, queries 5, keys 6).",
    ),
    row(
        ShapeError,
        lambda: matrix(mask=dense(YES.T)),
        "attention: dense mask of shape (6, 5) does not broadcast to (2, 4, 5, 6)",
        " (batch 2, heads 4, queries 5, keys 6).",
    ),
    row(
        ValueError,
        lambda: matrix(mask=causal & dense(YES.to("meta"))),
        "attention: mask and query must be on one device; got meta and cpu.",
    ),
    row(TypeError, lambda: dense(3), "dense: needs a boolean tensor; got int."),
    row(
        TypeError,
        lambda: padding(keep=torch.ones(2, 6).long()),
        "padding(keep=…): must be boolean, (batch, keys), True for the keys to keep; got torch.int64 of shape (2, 6).",
        "If 1 means keep, write padding(keep=tensor.bool()).",
    ),
    row(TypeError, lambda: causal & 3, "mask & other: a mask combines with masks only; got int."),
    row(TypeError, lambda: causal | YES, "mask | tensor: a boolean tensor of shape (5, 6) does not say whether True keeps"),
    row(TypeError, lambda: causal.allows(0, 0, torch.tensor(1.5), 0), "allows: batch, head, query and key are integers"),
    row(ValueError, lambda: Diagonal(2**70), f"diagonal: offset must be at most 2**60; got {2**70}."),
    row(
        ShapeError,
        lambda: dense(YES[None, None, None]),
        "dense: needs 1 to 4 dimensions; got 5 (shape (1, 1, 1, 5, 6)).",
    ),
    row(TypeError, lambda: padding(zeros(2)), "padding: lengths must be integers; got torch.float32 of shape (2,)."),
    row(
        TypeError,
        lambda: padding(YES[0]),
        "padding: lengths must be integers; got torch.bool",
        "is padding(keep=tensor).",
    ),
    row(ShapeError, lambda: padding(torch.tensor([[1]])), "padding: lengths must have shape (batch,); got (1, 1)."),
    row(ShapeError, lambda: padding([]), "padding: lengths must name at least one batch row; got none."),
    row(TypeError, lambda: window(1.0), "window: left must be an integer; got 1.0."),
    row(ValueError, lambda: window(1, -1), "window: right must be at least 0; got -1."),
    row(TypeError, lambda: where(YES), "where: needs a function of (batch, head, query, key); got Tensor."),
    row(
        TypeError,
        lambda: matrix(mask=where(lambda b, h, i, j: i - j)).entropy(),
        "where(<lambda>): the function must return a boolean tensor; got torch.int64.",
    ),
    row(
        ShapeError,
        lambda: matrix(mask=where(lambda b, h, i, j: torch.ones(7, 1, dtype=torch.bool))).entropy(),
        "where(<lambda>): the function's result must broadcast to (batch, heads, queries, keys) = (2, 4, 5, 6)",
        "; got (7, 1).",
    ),
    row(
        TypeError,
        lambda: bool(causal | window(2)),
        "a mask is not true or false: combine masks with & | ~ instead of and, or, not; got `causal | window(2)`.",
    ),
]

QUESTIONS = [
    row(TypeError, lambda: matrix() @ [1.0] * 6, "A @ v: values must be a tensor; got list."),
    row(TypeError, lambda: matrix() @ matrix(), "A @ v: values must be a tensor; got Attention."),
    row(TypeError, lambda: matrix() @ zeros(6, 2, dtype=torch.int64), "A @ v: values must be float16", "torch.int64"),
    row(
        ValueError,
        lambda: matrix() @ zeros(6, 2, device="meta"),
        "A @ v: values must be on the matrix's device cpu; got meta.",
    ),
    row(
        ShapeError,
        lambda: matrix() @ torch.tensor(1.0),
        "A @ v: values must have one row for each of 6 keys; got a number.",
    ),
    row(
        ShapeError,
        lambda: matrix() @ zeros(2, 2, 5, 3),
        "A @ v: keys and values must have the same length; got 6 keys (matrix (2, 4, 5, 6)) and 5 values",
        "(shape (2, 2, 5, 3)).",
    ),
    row(ShapeError, lambda: matrix() @ zeros(5), "got 6 keys (matrix (2, 4, 5, 6)) and 5 values (shape (5,))."),
    row(
        ShapeError,
        lambda: matrix() @ zeros(2, 3, 6, 3),
        "A @ v: values must have shape (…, heads, keys, columns) with keys = 6 and heads one of [1, 2, 4]",
        "; got (2, 3, 6, 3) for a matrix of shape (2, 4, 5, 6).",
    ),
    row(ShapeError, lambda: matrix() @ zeros(3, 4, 6, 3), "; got (3, 4, 6, 3) for a matrix of shape (2, 4, 5, 6)."),
    row(ShapeError, lambda: matrix() @ zeros(1, 2, 4, 6, 3), "; got (1, 2, 4, 6, 3) for a matrix of shape (2, 4, 5, 6)."),
    row(
        ShapeError,
        lambda: matrix()[0, 0] @ zeros(2, 6, 3),
        "A @ v: values must have shape (…, keys, columns) with keys = 6; got (2, 6, 3) for a matrix of shape (5, 6).",
    ),
    row(ShapeError, lambda: matrix().read(value=zeros(7, 1)), "A @ v: keys and values", "and 7 values (shape (7, 1))."),
    row(
        ShapeError,
        lambda: matrix()[..., 2:] @ zeros(6, 1),
        "got 4 keys (matrix (2, 4, 5, 4)) and 6 values (shape (6, 1)).",
    ),
    row(TypeError, lambda: matrix().mT @ 3, "A.mT @ r: rows of r must be a tensor; got int."),
    row(
        ShapeError,
        lambda: matrix().mT @ torch.tensor(1.0),
        "A.mT @ r: rows of r must have one row for each of 5 queries;",
    ),
    row(
        ShapeError,
        lambda: matrix().mT @ zeros(6, 1),
        "A.mT @ r: queries and rows of r must have the same length; got 5 queries (matrix (2, 4, 5, 6))",
        "and 6 rows of r (shape (6, 1)).",
    ),
    row(
        ShapeError,
        lambda: matrix().mT @ zeros(2, 2, 5, 1),  # r has the query heads', never the key heads' number
        "A.mT @ r: rows of r must have shape (…, heads, queries, columns) with queries = 5 and heads one of [1, 4]",
        "; got (2, 2, 5, 1) for a matrix of shape (2, 4, 5, 6).",
    ),
    row(TypeError, lambda: zeros(3, 5) @ matrix(), "v @ A is not a question to an attention matrix: A @ v averages"),
    row(TypeError, lambda: torch.matmul(zeros(3, 5), matrix()), "v @ A is not a question", "A.mT @ r sums"),
    row(TypeError, lambda: np.ones((3, 5)) @ matrix(), "v @ A is not a question to an attention matrix"),
    row(
        TooLarge,
        lambda: matrix().to_dense(limit=959),
        "to_dense: a matrix of shape (2, 4, 5, 6) would take 960 B, above the limit of 959 B.",
        "A @ v, A.topk(k), A.entropy(), A.sum(-2), A.pool((64, 64))",
        "to_dense(limit=None)",
    ),
    row(
        TooLarge,
        lambda: regard.attention(zeros(1 << 15, 1), zeros(1 << 15, 1)).to_dense(),
        "to_dense: a matrix of shape (32768, 32768) would take 4 GiB, above the limit of 1 GiB.",
    ),
    row(
        Unsupported,
        lambda: matrix().sum(1),
        "sum: dim 1 of an attention matrix has no answer of size O(n); use -2 (over queries: what each key received)",
        " or -1 (over keys), or ask first and average then: A.sum(-2).mean(1)",
    ),
    row(Unsupported, lambda: torch.mean(matrix(), 0), "mean: dim 0 of an attention matrix has no answer of size O(n)"),
    row(
        Unsupported,
        lambda: matrix().amax(-2),
        "amax: dim -2 of an attention matrix has no answer of size O(n); use -1 (over keys)",
        ", or A.pool(…, reduce='max').",
    ),
    row(Unsupported, lambda: matrix().argmax(2), "argmax: dim 2 of an attention matrix", "or A.topk(k)."),
    row(IndexError, lambda: matrix().sum(4), "sum: dim must be an integer from -4 to 3; got 4."),
    row(IndexError, lambda: matrix().mean(-5), "mean: dim must be an integer from -4 to 3; got -5."),
    row(IndexError, lambda: matrix().amax(None), "amax: dim must be an integer from -4 to 3; got None."),
    row(IndexError, lambda: matrix().sum((-1, -2)), "sum: dim must be an integer from -4 to 3; got (-1, -2)."),
    row(
        Unsupported,
        lambda: torch.softmax(matrix(), -1),
        "torch.softmax does not know an attention matrix: ask it with its own methods (A @ v, A.mT @ r, A.read(…))",
        "A.to_dense()",
    ),
    row(
        Unsupported,
        lambda: torch.diagonal(matrix()),
        "torch.diagonal counts from the matrix's corner; A.diagonal(offset) counts",
    ),
    row(ValueError, lambda: matrix().topk(0), "topk: k must be at least 1; got 0."),
    row(TypeError, lambda: matrix().topk(2.5), "topk: k must be an integer; got 2.5."),
    row(TypeError, lambda: Diagonal("1"), "diagonal: offset must be an integer; got '1'."),
    row(TypeError, lambda: matrix().pool(64), "pool: bins must be a tuple of two integers, (rows, columns); got 64."),
    row(ValueError, lambda: matrix().pool((0, 3)), "pool: rows must be at least 1; got 0."),
    row(ValueError, lambda: Pool((3, 3), "median"), "pool: reduce must be one of 'mean', 'max', 'sum'; got 'median'."),
    row(
        Unsupported,
        lambda: regard.attention(Q.clone().requires_grad_(), K).pool((2, 2), "max").sum().backward(),
        "pool: the maximum has no gradient; use reduce='mean' or 'sum', or A.amax(-1).",
    ),
    row(TypeError, lambda: Rows([1]), "rows: indices must be a tuple of integers; got [1]."),
    row(ValueError, lambda: Rows((-1,)), "rows: an index must be at least 0; got -1."),
    row(IndexError, lambda: matrix().read(Rows((0, 5))), "rows: indices must be below the 5 queries; got 5."),
    row(
        TypeError,
        lambda: matrix().read(TopK),
        "read: questions are values of regard.readouts, such as TopK(8); got <class 'regard.readouts.topk.TopK'>.",
    ),
    row(AttributeError, lambda: matrix().read().entropy, "reading has no single 'entropy'; it answers nothing."),
    row(AttributeError, lambda: matrix().read(TopK(2)).entropy, "reading has no single 'entropy'; it answers topk."),
    row(
        AttributeError,
        lambda: matrix().read(TopK(1), TopK(2)).topk,
        "reading has no single 'topk'; 2 readouts have that name: use reading[readout].",
    ),
    row(
        Changed,
        lambda: changed("query"),
        "attention: a tensor of shape (2, 4, 5, 8) was changed in place after the matrix was built (version 0, now 1)",
        "Build it again, or clone first.",
    ),
    row(Changed, lambda: changed("key"), "attention: a tensor of shape (2, 2, 6, 8) was changed in place"),
    row(Changed, lambda: changed("mask"), "attention: a tensor of shape (2, 6) was changed in place"),
    row(Changed, changed_below_a_part, "was changed in place after the matrix was built (version 0, now 1)"),
]

ROWS = [*CALL, *MASKS, *QUESTIONS]


@pytest.fixture(autouse=True)
def as_users_call_it():
    """Without the shape checks that only the test runner puts in front of the package's own."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.mark.parametrize(("kind", "call", "fragments"), ROWS)
def test_sentence(kind, call, fragments):
    with pytest.raises(kind) as refused:
        call()
    assert type(refused.value) is kind
    said = str(refused.value)
    for fragment in fragments:
        assert fragment in said
    assert said.endswith((".", "queries."))
    assert "torch.Size" not in said


# -- no sentence without a row ----------------------------------------------------------------------------------------

HOME = Path(checks.__file__).parent
SAYING = ("checks.py", "attention.py", "tensorlike.py", "layout.py", "explain.py", "backends/__init__.py")
SAYING += tuple(f"readouts/{f.name}" for f in sorted((HOME / "readouts").glob("*.py")) if f.name != "base.py")


def places_that_raise(path: Path) -> dict[tuple[Path, int], str]:
    """Every line of a raise statement, and the function it stands in."""
    functions = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.FunctionDef)]
    found = {(path, n.lineno, n.end_lineno): f.name for f in functions for n in ast.walk(f) if isinstance(n, ast.Raise)}
    return {
        (path, line): f"{name}, line {first}" for (_, first, last), name in found.items() for line in range(first, last + 1)
    }


def test_every_sentence_has_a_row():
    silent: dict[str, set[str]] = {}
    lines = {}
    for name in SAYING:
        found = places_that_raise(HOME / name)
        lines |= {place: (name, where_) for place, where_ in found.items()}
        silent[name] = set(found.values())
    for parameters in ROWS:
        with pytest.raises(Exception) as refused:  # noqa: PT011
            parameters.values[1]()
        for frame in refused.traceback:
            if (frame.path, frame.lineno + 1) in lines:
                name, where_ = lines[frame.path, frame.lineno + 1]
                silent[name].discard(where_)
    without = {name: sorted(left) for name, left in silent.items() if left}
    assert not without, "sentences that no row of this file brings about"


def test_every_function_of_checks_says_something():
    """A helper that refuses nothing would escape the test above."""
    plain = {"_shape", "human", "reach"}
    tree = ast.parse(Path(checks.__file__).read_text(encoding="utf-8"))
    saying = {n.name for n in tree.body if isinstance(n, ast.FunctionDef) for x in ast.walk(n) if isinstance(x, ast.Raise)}
    assert {n.name for n in tree.body if isinstance(n, ast.FunctionDef)} == saying | plain


# -- what is not refused ----------------------------------------------------------------------------------------------


def test_the_errors_are_what_python_programs_catch():
    assert issubclass(ShapeError, ValueError)
    assert issubclass(Unsupported, NotImplementedError)
    assert issubclass(TooLarge, MemoryError)
    assert issubclass(Changed, RuntimeError)
    for error in (ShapeError, Unsupported, TooLarge, Changed):
        assert getattr(regard, error.__name__) is error


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (0, "0 B"),
        (1023, "1.02e+03 B"),
        (1024, "1 KiB"),
        (960 * 1024, "960 KiB"),
        (3 << 19, "1.5 MiB"),
        (1 << 30, "1 GiB"),
        (1 << 40, "1 TiB"),
        (5 << 50, "5,120 TiB"),
    ],
)
def test_bytes_as_a_person_says_them(size, said):
    assert checks.human(size) == said


def test_a_limit_that_is_met_exactly_is_not_exceeded():
    assert matrix().to_dense(limit=960).shape == (2, 4, 5, 6)
    assert matrix().to_dense(limit=None).shape == (2, 4, 5, 6)


@pytest.mark.parametrize("shape", [(6,), (6, 3), (1, 6, 3), (2, 6, 3), (4, 6, 3), (1, 1, 6, 3), (2, 2, 6, 3), (2, 4, 6, 3)])
def test_values_of_every_fitting_shape(shape):
    v = torch.randn(shape)
    found = matrix() @ v
    W = matrix(backend="reference").to_dense()
    if len(shape) > 2:
        v = v.repeat_interleave(4 // shape[-3], dim=-3)
    assert torch.allclose(found, W @ v, atol=1e-6)


def test_tensors_called_by_name_are_the_same_questions():
    A, v = matrix(), torch.randn(6, 2)
    for found in (torch.matmul(A, v), torch.matmul(A, other=v), torch.matmul(input=A, other=v), torch.bmm(A, mat2=v)):
        assert torch.allclose(found, A @ v, atol=1e-6)
    assert torch.allclose(torch.sum(input=A, dim=-2), A.sum(-2))
    assert torch.allclose(torch.mean(A, -2), A.sum(-2) / 5)
    assert torch.allclose(torch.amax(A, dim=-1), A.amax(-1))
    assert torch.equal(torch.argmax(A, 3), A.argmax(-1))


def test_after_a_change_the_matrix_is_built_again():
    q = Q.clone()
    A = regard.attention(q, K)
    q.mul_(2)
    with pytest.raises(Changed):
        A.logsumexp()
    assert torch.equal(regard.attention(q, K).logsumexp(), regard.attention(2 * Q, K).logsumexp())


@pytest.mark.parametrize("index", [0, slice(1), [1, 0], (0, 0), (slice(None), slice(2)), (..., slice(3)), (0, 0, slice(2))])
@pytest.mark.parametrize("which", [0, 1])
def test_a_part_whose_parent_changed_afterwards_refuses_or_is_still_right(index, which):
    tensors = Q.clone(), K.clone()
    A = regard.attention(*tensors)
    due = A.to_dense()[index]
    part = A[index]
    tensors[which].mul_(3)
    try:
        found = part.to_dense()
    except Changed:
        return
    assert torch.allclose(found, due, atol=1e-6)


def test_every_question_notices_a_change():
    def of(ask: Callable[[regard.Attention], Any]) -> Callable[[], Any]:
        q = Q.clone()
        A = regard.attention(q, K, mask=causal)
        A.logsumexp()  # even if the answer could be read from memory
        q[0, 0, 0, 0] += 1
        return lambda: ask(A)

    for ask in (
        regard.Attention.entropy,
        regard.Attention.logsumexp,
        regard.Attention.to_dense,
        lambda A: A.topk(2),
        lambda A: A.sum(-1),
        lambda A: A.sum(-2),
        lambda A: A.diagonal(),
        lambda A: A.pool((2, 2)),
        lambda A: A @ zeros(6, 1),
        lambda A: A.mT @ zeros(5, 1),
        lambda A: A[0, 0, 0],
        lambda A: A[..., 1:].entropy(),
        lambda A: A[0].entropy(),
        lambda A: A[..., 2, :],
    ):
        with pytest.raises(Changed):
            of(ask)()


def test_inference_tensors_have_no_version_and_are_not_refused():
    with torch.inference_mode():
        q = Q.clone()
        A = regard.attention(q, K)
        q.mul_(2)
        assert torch.isfinite(A.logsumexp()).all()


def test_a_backend_may_be_given_as_a_value():
    small = replace(Tiled(), elements=64)
    assert torch.allclose(matrix(backend=small).entropy(), matrix().entropy(), atol=1e-5)
