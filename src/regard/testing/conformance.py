"""One suite for every backend and readout: drawn problems, compared with the float64 reference within an error budget.

The budget of an answer is twice the error that the plain computation (the reference in the problem's own dtype) makes, and
one rounding of the answer, and what a score's rounding must do to it: scores err by up to eps · Σ|q||k| (of what they are
reduced to) and a rounding of their bias, weights by that much relatively.
The last term keeps a lucky plain computation from condemning an ordinary one. Gradients of 16-bit problems may err by what
`sixteen_bits` says besides: there kernels round in between.

A new backend: `check(MyBackend(), case)` over `strategies.cases()`. A new readout: one line in QUESTIONS, or in
`questions_for` if it is a question to certain keys only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import regard
from regard.backends import reference
from regard.backends.base import Backend
from regard.backends.reference import Reference
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
from regard.readouts.output import Output
from regard.readouts.rows import Weights
from regard.readouts.transposed import Transposed
from regard.testing.sixteen import sixteen_bits
from regard.testing.strategies import Case

QUESTIONS: tuple[Readout, ...] = (
    LogSumExp(),
    Entropy(),
    TopK(1),
    TopK(5),
    Max(),
    Received(),
    Diagonal(0),
    Diagonal(-1),
    Distance(),
    Pool((3, 2)),
    Pool((2, 40), "sum"),
    Pool((5, 5), "max"),
    Rows((0,)),
    Weights(),
)
SLACK = 4  # roundings per score and per sum that the budget's last term allows


@dataclass(frozen=True)
class Answer:
    """One tensor that a backend gave, and the largest number that its terms may reach."""

    name: str
    tensor: Tensor
    magnitude: float
    by: int | None = None  #: of a gradient: the place of its tensor among those of the case
    above: Tensor | None = None  #: of a gradient: that of the output, which came from above


class Mismatch(AssertionError):
    """An answer outside its budget.

    >>> from regard.testing import FAULTS, Case, check
    >>> case = Case(q, k, v, r=torch.ones(2, 4, 6, 3), mask=masks.causal, scale=None, offset=None, seed=0)
    >>> check(FAULTS[0], case)
    Traceback (most recent call last):
        ...
    regard.testing.conformance.Mismatch: logsumexp of Case(...): error ..., budget ...
    """


def questions_for(case: Case) -> tuple[Readout, ...]:
    """QUESTIONS, and those that have to know how many keys there are."""
    return (*QUESTIONS, *made_to_measure(case))


def made_to_measure(case: Case) -> tuple[Readout, ...]:
    """Questions to the keys of one case: segments of any order, empty ones too, of each batch row or all; columns."""
    batch, _, keys, _ = case.key.shape
    generator = torch.Generator().manual_seed(case.seed)
    segments = torch.randint(0, 1 + case.seed % 7, (batch, keys), generator=generator)
    own = segments if case.seed % 2 and batch else segments[0] if batch else torch.zeros(keys, dtype=torch.int64)
    columns = (Columns((keys - 1, 0, keys // 2)),) if keys else ()
    return (Mass(own), Mass(torch.arange(keys), keys + 2), *columns)


def check(backend: Backend | None, case: Case, questions: Sequence[Readout] | None = None, gradients: bool = True) -> None:
    """Every answer of the backend (None: those that are chosen), and every gradient, within its budget of the reference.

    >>> from regard.testing import Case, check
    >>> case = Case(q, k, v, r=torch.ones(2, 4, 6, 3), mask=masks.causal, scale=None, offset=None, seed=0)
    >>> check(regard.backends.BACKENDS["tiled"](), case)
    """
    questions = questions_for(case) if questions is None else questions
    exact = answers(Reference(), _in(case, torch.float64), questions, gradients)
    plain = answers(Reference(), case, questions, gradients)
    given = answers(backend, case, questions, gradients)
    for e, p, g in zip(exact, plain, given, strict=True):
        compare(case, e, p, g)


def compare(case: Case, exact: Answer, plain: Answer, given: Answer) -> None:
    """Raises Mismatch, with error and budget, where an answer is outside."""
    where = f"{given.name} of {case}"
    if given.tensor.shape != exact.tensor.shape:
        raise Mismatch(f"{where}: shape {tuple(given.tensor.shape)} where {tuple(exact.tensor.shape)} is due")
    if given.tensor.dtype != plain.tensor.dtype:
        raise Mismatch(f"{where}: dtype {given.tensor.dtype} where {plain.tensor.dtype} is due")
    if not exact.tensor.numel():
        return
    due, got, simple = (a.tensor.double() for a in (exact, given, plain))
    if not torch.equal(due.isneginf(), got.isneginf()) or not bool(got[~got.isneginf()].isfinite().all()):
        raise Mismatch(f"{where}: not finite where it should be, or finite where it should not")
    due, got, simple = (x.masked_fill(x.isneginf(), 0) for x in (due, got, simple))
    allowed = budget(case, exact, plain, float((simple - due).abs().max()))
    error = float((got - due).abs().max())
    if not error <= allowed:
        raise Mismatch(f"{where}: error {error:.3g}, budget {allowed:.3g}")


def budget(case: Case, exact: Answer, plain: Answer, plain_error: float) -> float:
    """The error that an answer may have."""
    finite = exact.tensor.masked_fill(exact.tensor.isneginf(), 0)
    rounding = torch.finfo(plain.tensor.dtype).eps * float(finite.abs().max())
    eps = torch.finfo(torch.promote_types(case.query.dtype, torch.float32)).eps
    allowed = 2 * (plain_error + rounding) + SLACK * eps * (1 + condition(case)) * exact.magnitude
    if exact.by is not None and exact.above is not None:
        allowed += sixteen_bits(case, case.names[exact.by], exact.above)
    return allowed


def condition(case: Case) -> float:
    """What a score's terms may sum to: how many times a rounding of the inputs it may err."""
    if not case.query.numel() or not case.key.numel():
        return 0.0
    positive = case.with_tensors(*(_finite(t.detach().double()).abs() for t in case.tensors))
    call = regard.attention(positive.query, positive.key, **positive.options()).call
    query, key = (t.abs().amax((0, 1, 2)) for t in (call.query, call.key))
    units = query * key if call.combine is None else call.combine.amax(0) * (1 + query + key)
    most = float(units.sum())
    added = 0.0 if call.bias is None else _most(_finite(call.bias.adds(*call.pairs()).double()))
    return 2 * abs(call.scale) * most + added + _most(torch.zeros(()) if call.sinks is None else call.sinks)


def _finite(tensor: Tensor) -> Tensor:
    return tensor.masked_fill(tensor.isinf(), 0)


def answers(backend: Backend | None, case: Case, questions: Sequence[Readout], gradients: bool = True) -> list[Answer]:
    """What a backend says to every question, and the gradients of a drawn mixture of all of them."""
    case = case.with_tensors(*(t.detach().requires_grad_(gradients) for t in case.tensors))
    A = regard.attention(case.query, case.key, **case.options(), backend=backend)
    folded = [Transposed(case.r.expand(*case.r.shape), case.drop), Output(case.value, case.drop)]
    asked = [*questions, *folded]
    parts = A._ask(tuple(asked))
    found: list[Answer] = []
    loss = torch.zeros((), dtype=torch.float64)
    generator = torch.Generator().manual_seed(case.seed)
    weights = _weights(A)
    for question, tensors in zip(asked, parts, strict=True):
        for n, (tensor, differentiable) in enumerate(zip(tensors, question.differentiable, strict=True)):
            name = question.name + (f".{n}" if len(tensors) > 1 else "")
            if tensor.dtype == torch.int64:  # ties may be broken either way: what counts is the weight found there
                tensor = _weights_at(weights, tensor) if question.name != "pool" else _weights_in(weights, tensor)
                name += " (the weights found there)"
            found.append(Answer(name, tensor.detach(), _magnitude(case, question, tensor)))
            if gradients and differentiable and tensor.requires_grad:
                from_above = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                seen = ~tensor.isneginf()
                loss = loss + (tensor.double().masked_fill(~seen, 0) * from_above * seen).sum()
    if gradients and loss.requires_grad:
        received = max(1.0, _most(A.sum(-2)))
        gave = torch.autograd.grad(loss, case.tensors, allow_unused=True)
        magnitudes = _gradient_magnitudes(case, len(asked), received)
        for n, (name, tensor, of) in enumerate(zip(case.names, gave, case.tensors, strict=True)):
            tensor = torch.zeros_like(of) if tensor is None else tensor
            found.append(Answer(f"gradient of {name}", tensor, magnitudes[n], n, from_above))  # the output came last
    return found


def _in(case: Case, dtype: torch.dtype) -> Case:
    return case.with_tensors(*(t.detach().to(dtype) for t in case.tensors))


def _weights(A: regard.Attention) -> Tensor:
    with torch.no_grad():
        return replace(A, backend=Reference()).to_dense()


def _weights_at(dense: Tensor, keys: Tensor) -> Tensor:
    """The weight of each named key, -1 where none is named, in the order that was given."""
    flat = keys if keys.ndim == dense.ndim else keys[..., None]
    if not dense.shape[-1]:
        return flat.to(dense.dtype).reshape(keys.shape)
    return dense.gather(-1, flat.clamp_min(0)).masked_fill(flat < 0, -1).reshape(keys.shape)


def _weights_in(dense: Tensor, cells: Tensor) -> Tensor:
    """The weight of each named cell, key · queries + query, 0 where none is named."""
    flat = torch.nn.functional.pad(dense.mT.flatten(-2), (0, 1))  # so that there is one to look up
    return flat.gather(-1, cells.clamp_min(0).flatten(-2)).unflatten(-1, cells.shape[-2:]).masked_fill(cells < 0, 0)


def _most(tensor: Tensor) -> float:
    return float(tensor.detach().double().abs().max()) if tensor.numel() else 0.0


def _farthest(case: Case) -> float:
    """The largest distance between a query and a key, and some more for offsets."""
    return float(case.query.shape[2] + 2 * case.key.shape[2] + 3)


def _magnitude(case: Case, question: Readout, tensor: Tensor) -> float:
    """The largest number that the sums behind an answer can reach."""
    queries = case.query.shape[2]
    own = _most(tensor.masked_fill(tensor.isneginf(), 0))
    sums = {
        "output": _most(case.value),
        "transposed": queries * _most(case.r),
        "received": queries,
        "pool": queries,
        "distance": _farthest(case),
    }
    return max(1.0, own, sums.get(question.name, 0.0))


def _gradient_magnitudes(case: Case, questions: int, received: float) -> list[float]:
    """The same for the gradients: A ∘ dL/dA by its parts (A |ln A| < 1), times what the chain rule multiplies it with."""
    heads = case.query.shape[1]
    from_above = 4.0  # a normal number that is not met
    kept = 1.0 if case.drop is None or case.drop.p == 1 else 1 / (1 - case.drop.p)
    products = kept * (case.value.shape[-1] * _most(case.value) + case.r.shape[-1] * _most(case.r))
    pulled = from_above * (2 * questions + _farthest(case) + products)
    rows = received * heads / max(case.key.shape[1], 1)  # what one key can have received from the heads that share it
    value, r = from_above * received * heads * kept, from_above * heads * kept
    sensitive = _sensitivities(case)
    if case.score is None:
        dim = case.query.shape[-1]
        scale = dim**-0.5 if case.scale is None else abs(case.scale)
        query, key = scale * _most(case.key), scale * _most(case.query) * rows
    else:
        query, key = sensitive[:2]
    return [2 * pulled * query, 2 * pulled * key, value, r, *(2 * pulled * most for most in sensitive[4:])]


def _sensitivities(case: Case) -> list[float]:
    """How much all scores together may change with one number of each tensor, signs aside; a sink changes its rows."""
    positive = case.with_tensors(*(_finite(t.detach().double()).abs().requires_grad_() for t in case.tensors))
    options = {**positive.options(), "softcap": None, "sinks": None}
    call = regard.attention(positive.query, positive.key, **options).call
    if call.combine is None:
        total = (reference.dense(call, None).scores * call.allowed()).nan_to_num(0, 0, 0).sum()
    else:  # as if tanh had slope 1 everywhere
        key = call.key.repeat_interleave(call.shape[1] // call.key.shape[1], 1)
        active = 1 + call.query[..., :, None, :] + key[..., None, :, :]
        total = abs(call.scale) * (active * call.combine[:, None, None]).sum()
        total = total + (0 if call.bias is None else _finite(call.bias.adds(*call.pairs())).expand(call.shape).sum())
    gave = torch.autograd.grad(total, positive.tensors, allow_unused=True)
    rows = float(case.query.shape[0] * case.query.shape[2])
    return [rows if n == "sinks" else 0.0 if g is None else _most(g) for n, g in zip(case.names, gave, strict=True)]
