"""The attention matrix as a lazy value: ask it anything, it is never stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor

from regard import backends, checks, readouts, tensorlike
from regard.backends.base import Backend
from regard.call import Call
from regard.explain import Explanation, explain
from regard.indexing import Index, select
from regard.layout import Layout
from regard.masks import Mask, full
from regard.plan import Axes
from regard.readouts.base import Readout
from regard.readouts.output import Output
from regard.readouts.rows import Weights
from regard.readouts.transposed import Transposed

DENSE_LIMIT = 1 << 30  # bytes that to_dense and a picked set of rows may take unless told otherwise


def attention(
    query: Tensor,
    key: Tensor,
    *,
    mask: Mask | None = None,
    scale: float | None = None,
    offset: int | Tensor | None = None,
    backend: str | Backend | None = None,
) -> Attention:
    """The matrix of attention weights A = softmax(scale · query · keyᵀ) over the keys that the mask allows, lazily.

    Nothing is computed until the matrix is asked.

    Args:
        query: (…, heads, queries, dim), or (queries, dim). Dimensions before heads are batch dimensions, and heads come
            before tokens, as in PyTorch's scaled_dot_product_attention: (batch, n, dim) is read as (heads, n, dim).
        key: (…, kv_heads, keys, dim), or (keys, dim). kv_heads divides heads: query head h meets key head
            h // (heads // kv_heads).
        mask: who may meet, from `regard.masks`; True = may attend. None = everyone.
        scale: what the dot products are multiplied with; None = 1/√dim.
        offset: the position of query 0 among the keys: an int, or one per batch row; None = keys - queries, so that the
            queries are the last ones, as with a key/value cache.
        backend: a demand: 'tiled', or 'reference' (dense, the specification); None chooses.

    Raises:
        ShapeError: shapes that do not fit together. TypeError, ValueError: dtypes, devices, masks that do not.

    A query that may see no key has output 0, weights 0, entropy 0 and log-sum-exp -inf. Scores, softmax and sums are
    float32 for float16 and bfloat16. Source: Vaswani et al. 2017, "Attention Is All You Need", equation 1.

    >>> x = torch.randn(5, 8)
    >>> A = regard.attention(x, x)
    >>> A.shape, (A @ x).shape
    (torch.Size([5, 5]), torch.Size([5, 8]))
    """
    q, k = checks.query_and_key(query, key)
    if not torch.is_grad_enabled():  # a matrix that is built without a graph is a constant
        q, k = q.detach(), k.detach()
    layout = Layout.of(tuple(q.shape))
    folded_query, folded_key = layout.fold(q), layout.fold(k)
    batch, heads, queries, _ = folded_query.shape
    keys = folded_key.shape[2]
    call = Call(
        folded_query,
        folded_key,
        checks.mask_fits(full if mask is None else mask, batch, heads, queries, keys, q.device),
        checks.scale(scale, q.shape[-1]),
        checks.offset(offset, batch, queries, keys),
        Axes(range(batch), range(heads), range(queries), range(keys)),
    ).watching(query, key)
    if backend is not None:
        backends.named(backend)
    return Attention(call, layout, backend)


@dataclass(frozen=True, eq=False)
class Attention:
    """A lazy matrix of attention weights, (…, heads, queries, keys). Made by `regard.attention`."""

    call: Call
    layout: Layout
    backend: str | Backend | None = None
    _memo: list[Tensor] = field(default_factory=list, init=False, repr=False)  # the log-sum-exp, once a question found it

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """The stored matrix for NumPy, under the guard of to_dense."""
        return self.to_dense().detach().cpu().numpy().astype(dtype or None, copy=False)

    __array_ufunc__: ClassVar[None] = None  # NumPy's operators come to us instead of reading the matrix row by row

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> torch.Size:
        """(…, heads, queries, keys)."""
        return torch.Size((*self.layout.leading, *self.call.shape[2:]))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> torch.dtype:
        """The query's; answers are float32, or float64 for float64."""
        return self.call.query.dtype

    @property
    def device(self) -> torch.device:
        return self.call.device

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        whole = self.call.whole
        part = "" if whole is None else f", part of {whole.shape[-1]} keys"
        return f"Attention({tuple(self.shape)}, {self.dtype}, mask={self.call.mask}{part})".replace("torch.", "")

    def _repr_html_(self) -> str:
        from regard.picture import html_of

        return html_of(self)

    # -- the five primitives ------------------------------------------------------------------------------------------

    def read(self, *questions: Readout, value: Tensor | None = None) -> Reading:
        """Answers several questions, and the output if a value is given, in at most two sweeps.

        >>> reading = A.read(TopK(3), Entropy(), Received(), value=v)
        >>> reading.output.shape, reading.topk.indices.shape, reading.received.shape
        (torch.Size([2, 4, 6, 8]), torch.Size([2, 4, 6, 3]), torch.Size([2, 4, 6]))
        """
        checks.questions("read", questions)
        asked = questions if value is None else (*questions, Output(self._value(value)))
        answers = {}
        for question, parts in zip(asked, self._ask(asked), strict=True):
            answer = question.public(tuple(map(self.layout.unfold, parts)))
            if value is not None and question is asked[-1] and value.ndim == 1:
                answer = answer[..., 0]
            answers[question.without_operands()] = answer  # an answer does not keep the question's tensors alive
        return Reading(answers)

    def __matmul__(self, value: Tensor) -> Tensor:
        """Σ_j A_ij v_j, the new embedding of every query, in the value's dtype.

        value: (…, heads or kv_heads or 1, keys, value_dim), or (keys, value_dim) or (keys,) shared by all heads.
        """
        (parts,) = self._ask((Output(self._value(value)),))
        output = self.layout.unfold(parts[0])
        return output[..., 0] if value.ndim == 1 else output

    def __rmatmul__(self, other: object) -> NoReturn:
        raise TypeError(checks.TENSOR_TIMES_MATRIX)

    @property
    def mT(self) -> TransposedAttention:
        """The transpose, for A.mT @ r."""
        return TransposedAttention(self)

    def __getitem__(self, index: Index) -> Any:
        """Slices stay lazy, on every dimension; an integer or an index tensor on queries or keys gives numbers.

        A part of the keys keeps its parent's log-sum-exp: its weights are the parent's, and its rows sum to less than 1.

        >>> A[0, 3, 2].shape, A[..., -2:, :4].shape
        (torch.Size([6]), torch.Size([2, 4, 2, 4]))
        """
        return select(self, index)

    def to_dense(self, limit: int | None = DENSE_LIMIT) -> Tensor:
        """The stored matrix, in float32 (float64), refused above `limit` bytes; None = no limit."""
        checks.fits_dense(self.shape, self.call.dtype.itemsize, limit)
        (parts,) = self._ask((Weights(),))
        return self.layout.unfold(parts[0])

    # -- questions: each one a readout --------------------------------------------------------------------------------

    def logsumexp(self) -> Tensor:
        """ln Σ_j exp(score_ij), natural log, (…, heads, queries); see `readouts.LogSumExp`."""
        return self._one(readouts.LogSumExp())

    def entropy(self) -> Tensor:
        """-Σ_j A_ij ln A_ij in nats, (…, heads, queries); see `readouts.Entropy`."""
        return self._one(readouts.Entropy())

    def topk(self, k: int) -> readouts.Strongest:
        """The k strongest keys of each query: values and indices, (…, heads, queries, k); see `readouts.TopK`.

        Where a query sees fewer than k keys, the rest has weight 0 and index -1: mask it before you index with it.
        """
        return self._one(readouts.TopK(checks.whole_number("topk", "k", k, least=1)))

    def diagonal(self, offset: int = 0) -> Tensor:
        """A[i, p_i + offset], (…, heads, queries), p_i the position of query i; see `readouts.Diagonal`."""
        return self._one(readouts.Diagonal(offset))

    def distance(self) -> Tensor:
        """Σ_j A_ij |p_i - j|, (…, heads, queries), in tokens; see `readouts.Distance`."""
        return self._one(readouts.Distance())

    def pool(self, bins: tuple[int, int], reduce: str = "mean") -> Tensor:
        """A picture in rows × columns bins, (…, heads, rows, columns); see `readouts.Pool`."""
        return self._one(readouts.Pool(bins, reduce))

    def amax(self, dim: int) -> Tensor:
        """The largest weight of each query, dim = -1; see `readouts.Max`."""
        return tensorlike.amax(self, dim)

    def argmax(self, dim: int) -> Tensor:
        """The key of the largest weight of each query, -1 in an empty row, dim = -1; see `readouts.Max`."""
        return tensorlike.argmax(self, dim)

    def sum(self, dim: int | None = None) -> Tensor:
        """dim = -2: what each key received, Σ_i A_ij; dim = -1: the sum of each row, 1 unless keys were cut away."""
        return tensorlike.sum_over(self, dim)

    def mean(self, dim: int | None = None) -> Tensor:
        """dim = -2: Σ_i A_ij / queries; dim = -1: Σ_j A_ij / keys."""
        return tensorlike.mean_over(self, dim)

    def explain(self, *questions: Readout) -> Explanation:
        """Which backend answers which question, what it costs, and why no other does; nothing is computed."""
        return explain(self.call, questions, self.backend)

    # -- how a question is answered -----------------------------------------------------------------------------------

    def _one(self, question: Readout) -> Any:
        (parts,) = self._ask((question,))
        return question.public(tuple(map(self.layout.unfold, parts)))

    def _ask(self, questions: tuple[Readout, ...]) -> list[tuple[Tensor, ...]]:
        """The parts of each answer, (batch, heads, …), in one reading per backend; the log-sum-exp is passed on."""
        self.call.check_unchanged()
        log_sum = self._known()
        chosen = [backends.choose(self.call, question, self.backend) for question in questions]
        answers: dict[int, tuple[Tensor, ...]] = {}
        for backend in dict.fromkeys(chosen):
            places = [n for n, b in enumerate(chosen) if b == backend]
            parts, found = backend.read(self.call, [questions[n] for n in places], log_sum)
            answers |= dict(zip(places, parts, strict=True))
            if log_sum is None:
                log_sum = found
                self._remember(found)
        return [answers[n] for n in range(len(questions))]

    def _known(self) -> Tensor | None:
        """The log-sum-exp, if it need not be swept for, or if it is that of a parent."""
        if self._memo and not self._differentiable():
            return self._memo[0]
        if self.call.whole is None:
            return None
        question = readouts.LogSumExp()
        (parts,), found = backends.choose(self.call.whole, question, self.backend).read(self.call.whole, [question], None)
        self._remember(found)
        return parts[0]

    def _remember(self, log_sum: Tensor) -> None:
        """Keeps the log-sum-exp for the next question. It is left out of graphs: there every question sweeps anew."""
        if not self._memo and self.call.steady:
            self._memo.append(log_sum.detach())

    def _differentiable(self) -> bool:
        return torch.is_grad_enabled() and (self.call.query.requires_grad or self.call.key.requires_grad)

    def _value(self, value: Tensor) -> Tensor:
        heads = (self.call.key.shape[1], self.call.shape[1])
        return self._operand("A @ v", "values", "keys", value, self.call.shape[3], heads)

    def _operand(self, operation: str, name: str, axis: str, given: Tensor, length: int, heads: tuple[int, ...]) -> Tensor:
        tensor = checks.operand(operation, name, given, self.device)
        if tensor.ndim == 0:
            raise checks.ShapeError(f"{operation}: {name} must have one row for each of {length} {axis}; got a number.")
        return self.layout.operand(operation, name, axis, tensor, length, heads, tuple(self.shape))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return tensorlike.torch_function(func, args, kwargs or {})


@dataclass(frozen=True, eq=False)
class TransposedAttention:
    """Aᵀ, (…, heads, keys, queries): asked as A.mT @ r."""

    of: Attention

    @property
    def shape(self) -> torch.Size:
        *leading, queries, keys = self.of.shape
        return torch.Size((*leading, keys, queries))

    @property
    def mT(self) -> Attention:
        return self.of

    def __matmul__(self, r: Tensor) -> Tensor:
        """Σ_i A_ij r_i: what each key received of r, (…, heads, keys, columns), in float32 (float64).

        r: (…, heads or 1, queries, columns), or (queries, columns) or (queries,) shared by all heads.
        """
        A = self.of
        folded = A._operand("A.mT @ r", "rows of r", "queries", r, A.call.shape[2], (A.call.shape[1],))
        (parts,) = A._ask((Transposed(folded),))
        received = A.layout.unfold(parts[0])
        return received[..., 0] if r.ndim == 1 else received


class Reading(Mapping[Readout, Any]):
    """Answers by the readout that asked, reading[Pool((64, 64))], or by its name in lower case, reading.pool."""

    def __init__(self, answers: dict[Readout, Any]) -> None:
        self._answers = answers

    def __getitem__(self, question: Readout) -> Any:
        return self._answers[question]

    def __iter__(self) -> Any:
        return iter(self._answers)

    def __len__(self) -> int:
        return len(self._answers)

    def __getattr__(self, name: str) -> Any:
        found = [answer for question, answer in self.__dict__.get("_answers", {}).items() if question.name == name]
        if len(found) == 1:
            return found[0]
        names = ", ".join(dir(self)) or "nothing"
        why = f"{len(found)} readouts have that name: use reading[readout]" if found else f"it answers {names}"
        hint = "; pass value=v to read() for the output" if name == "output" else ""
        raise AttributeError(f"this reading has no single {name!r}; {why}{hint}.")

    def __dir__(self) -> list[str]:
        return sorted({question.name for question in self.__dict__.get("_answers", {})})

    def __repr__(self) -> str:
        return f"Reading({', '.join(question.name for question in self._answers)})"
