"""The attention matrix as a lazy value: ask it anything, it is never stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from regard import backends, checks, compiled, readouts
from regard.backends.base import Backend
from regard.biases import Bias
from regard.call import Call, cast, counted, reach, reduce
from regard.compiled.spans import whole_axes
from regard.dropout import Dropout
from regard.explain import Explanation, explain
from regard.indexing import Index, select
from regard.layout import Layout
from regard.lazy import DENSE_LIMIT, Lazy
from regard.masks import Mask, full
from regard.readouts.base import Readout
from regard.readouts.divergence import KL, alike
from regard.readouts.output import Output
from regard.readouts.rows import Weights
from regard.readouts.transposed import Transposed
from regard.scores import Score, dot
from regard.tensorlike import TensorLike

DOT = dot()


def attention(
    query: Tensor,
    key: Tensor,
    *,
    mask: Mask | None = None,
    bias: Bias | None = None,
    score: Score | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | float | None = None,
    offset: int | Tensor | None = None,
    backend: str | Backend | None = None,
) -> Attention:
    """The matrix of attention weights A = softmax(softcap(scale · score(query, key)) + bias) over the visible keys, lazily.

    Nothing is computed until the matrix is asked (a score other than the dot product is reduced to it first, in O(n)).

    Args:
        query: (…, heads, queries, dim), or (queries, dim). Dimensions before heads are batch dimensions, and heads come
            before tokens, as in PyTorch's scaled_dot_product_attention: (batch, n, dim) is read as (heads, n, dim).
        key: (…, kv_heads, keys, dim), or (keys, dim). kv_heads divides heads: query head h meets key head
            h // (heads // kv_heads).
        mask: who may meet, from `regard.masks`; True = may attend. None = everyone.
        bias: what is added to the scores, from `regard.biases`: alibi, relative, dense, and sums of them; -inf hides a pair.
        score: how a query and a key are compared, from `regard.scores`; None = the dot product. What it is reduced to is part
            of the graph: two backwards through one matrix need retain_graph=True, or one A.read(…) for all questions.
        scale: what the scores are multiplied with; None = 1/√dim for the dot product (every other score says its own).
        softcap: c > 0 makes scores c · tanh(score / c), before the bias (Gemma Team 2024).
        sinks: one more logit per row, (heads,) or one number for all: rows sum to less than 1 (Xiao et al. 2023); 0.0 is
            the softmax with one more zero.
        offset: the position of query 0 among the keys: an int, or one per batch row; None = keys - queries, so that the
            queries are the last ones, as with a key/value cache.
        backend: a demand: 'fused', 'tiled', or 'reference' (dense, the specification); None chooses.

    Raises:
        ShapeError: shapes that do not fit together. TypeError, ValueError: dtypes, devices, masks that do not.

    A query that may see no key has output 0, weights 0, entropy 0 and log-sum-exp -inf. Scores, softmax and sums are
    float32 for float16 and bfloat16. Under torch.autocast, query, key and value are cast to its dtype, as
    scaled_dot_product_attention casts them; float64 stays. Inside torch.compile a product is an operator of the graph: see
    `regard.compiled`. Source: Vaswani et al. 2017, "Attention Is All You Need", equation 1.

    >>> x = torch.randn(5, 8)
    >>> A = regard.attention(x, x)
    >>> A.shape, (A @ x).shape
    (torch.Size([5, 5]), torch.Size([5, 8]))
    """
    query, key = cast(query), cast(key)
    q, k = checks.query_and_key(query, key, same_dim=score is None)
    layout = Layout.of(q.shape)
    folded_query, folded_key = layout.fold(q), layout.fold(k)
    batch, heads, queries, dim = folded_query.shape
    _, kv_heads, keys, key_dim = folded_key.shape
    compare = DOT if score is None else checks.score_fits(score, heads, kv_heads, dim, key_dim, q.device, q.dtype)
    seen = full if mask is None else checks.mask_fits(mask, batch, heads, queries, keys, q.device)
    start = checks.offset(offset, batch, queries, keys)
    watched = [query, key, *seen.tensors(), *compare.tensors()]
    logits = None
    if bias is not None:
        bias = checks.bias_fits(bias, batch, heads, queries, keys, reach(start, queries), q.device)
        watched += bias.tensors()
    if sinks is not None:
        logits = checks.sinks(sinks, heads, q.device).to(torch.promote_types(q.dtype, torch.float32)).expand(heads)
        watched += [sinks] if isinstance(sinks, Tensor) else []
    call = Call(
        folded_query,
        folded_key,
        seen,
        checks.scale(scale, compare.scale(key_dim)),
        start,
        whole_axes(batch, heads, queries, keys),
        bias,
        checks.softcap(softcap),
        logits,
        watched=counted(*watched),
    )
    if score is not None:
        call = reduce(call, score)
    if isinstance(backend, str) and torch.compiler.is_compiling():
        checks.choice("attention", "backend", backend, tuple(backends.BACKENDS))  # made in the operator
    elif backend is not None:
        backends.named(backend)
    # a matrix that is built without a graph is a constant
    return Attention(call if torch.is_grad_enabled() else call.constant(), layout, backend)


@dataclass(frozen=True, eq=False)
class Attention(TensorLike):
    """A lazy matrix of attention weights, (…, heads, queries, keys). Made by `regard.attention`.

    >>> S = regard.attention(torch.ones(3, 1), torch.tensor([[1.0], [3.0], [4.0]]).log(), mask=masks.causal)
    >>> S
    Attention((3, 3), float32, mask=causal)
    >>> S.to_dense()
    tensor([[1.0000, 0.0000, 0.0000],
            [0.2500, 0.7500, 0.0000],
            [0.1250, 0.3750, 0.5000]])
    """

    call: Call
    layout: Layout
    backend: str | Backend | None = None
    drop: Dropout | None = None
    _memo: list[Tensor] = field(default_factory=list, init=False, repr=False)  # the log-sum-exp, once a question found it

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> torch.Size:
        """(…, heads, queries, keys).

        >>> A.shape
        torch.Size([2, 4, 6, 6])
        """
        return torch.Size((*self.layout.leading, *self.call.shape[2:]))

    @property
    def dtype(self) -> torch.dtype:
        """The query's; answers are float32, or float64 for float64.

        >>> A.dtype
        torch.float32
        """
        return self.call.stated or self.call.query.dtype

    @property
    def device(self) -> torch.device:
        """Where its tensors are.

        >>> A.device
        device(type='cpu')
        """
        return self.call.device

    def __repr__(self) -> str:
        whole = self.call.whole
        part = "" if whole is None else f", part of {whole.shape[-1]} keys"
        more = "".join(f", {name}={value}" for name, value in self.call.extras().items())
        more += "" if self.drop is None else f", {self.drop}"
        return f"Attention({tuple(self.shape)}, {self.dtype}, mask={self.call.mask}{more}{part})".replace("torch.", "")

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
        asked = questions if value is None else (*questions, Output(self._value(value), self.drop))
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

        >>> S @ torch.tensor([0.0, 4.0, 8.0])
        tensor([0.0000, 3.0000, 5.5000])
        >>> (A @ v).shape
        torch.Size([2, 4, 6, 8])
        """
        (parts,) = self._ask((Output(self._value(value), self.drop),))
        output = self.layout.unfold(parts[0])
        return output[..., 0] if value.ndim == 1 else output

    @property
    def mT(self) -> TransposedAttention:
        """The transpose, for A.mT @ r.

        >>> S.mT @ torch.ones(3)
        tensor([1.3750, 1.1250, 0.5000])
        """
        return TransposedAttention(self)

    def __getitem__(self, index: Index) -> Any:
        """Slices stay lazy, on every dimension; an integer or an index tensor on queries or keys gives numbers.

        A part of the keys keeps its parent's log-sum-exp: its weights are the parent's, and its rows sum to less than 1.

        >>> A[0, 3, 2].shape, A[..., -2:, :4].shape
        (torch.Size([6]), torch.Size([2, 4, 2, 4]))
        """
        return select(self, index)

    def to_dense(self, limit: int | None = DENSE_LIMIT) -> Tensor:
        """The stored matrix, in float32 (float64), refused above `limit` bytes; None = no limit.

        >>> S.to_dense()
        tensor([[1.0000, 0.0000, 0.0000],
                [0.2500, 0.7500, 0.0000],
                [0.1250, 0.3750, 0.5000]])
        """
        checks.fits_dense(self.shape, self.call.dtype.itemsize, limit)
        (parts,) = self._ask((Weights(),))
        return self.layout.unfold(parts[0])

    # -- questions: each one a readout --------------------------------------------------------------------------------

    def logsumexp(self) -> Tensor:
        """ln Σ_j exp(score_ij), natural log, (…, heads, queries); see `readouts.LogSumExp`.

        >>> S.logsumexp().exp().round()
        tensor([1., 4., 8.])
        """
        return self._one(readouts.LogSumExp())

    def entropy(self) -> Tensor:
        """-Σ_j A_ij ln A_ij in nats, (…, heads, queries); see `readouts.Entropy`.

        >>> S.entropy()
        tensor([0.0000, 0.5623, 0.9743])
        """
        return self._one(readouts.Entropy())

    def topk(self, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> readouts.Strongest:
        """The k strongest keys of each query: values and indices, (…, heads, queries, k); see `readouts.TopK`.

        Where a query sees fewer than k keys, the rest has weight 0 and index -1: mask it before you index with it. The other
        arguments are those of torch.topk, and have one value each: Unsupported for others.

        >>> values, indices = S.topk(2)
        >>> indices.tolist()
        [[0, -1], [1, 0], [2, 1]]
        >>> A.topk(3).values.shape
        torch.Size([2, 4, 6, 3])
        """
        if checks.dimension("topk", dim, self.ndim) != -1 or not (largest and sorted):
            raise checks.Unsupported(
                "topk: an attention matrix has the largest weights of each query, descending: dim=-1, largest=True, "
                f"sorted=True; got dim={dim}, largest={largest}, sorted={sorted}."
            )
        return self._one(readouts.TopK(checks.whole_number("topk", "k", k, least=1)))

    def diagonal(self, offset: int = 0) -> Tensor:
        """A[i, p_i + offset], (…, heads, queries), p_i the position of query i; see `readouts.Diagonal`.

        >>> S.diagonal(-1)
        tensor([0.0000, 0.2500, 0.3750])
        """
        return self._one(readouts.Diagonal(offset))

    def distance(self) -> Tensor:
        """Σ_j A_ij |p_i - j|, (…, heads, queries), in tokens; see `readouts.Distance`.

        >>> S.distance()
        tensor([0.0000, 0.2500, 0.6250])
        """
        return self._one(readouts.Distance())

    def pool(self, bins: tuple[int, int], reduce: str = "mean") -> Tensor:
        """A picture in rows × columns bins, (…, heads, rows, columns); see `readouts.Pool`.

        >>> S.pool((1, 3), "max")
        tensor([[1.0000, 0.7500, 0.5000]])
        >>> A.pool((3, 2)).shape
        torch.Size([2, 4, 3, 2])
        """
        return self._one(readouts.Pool(bins, reduce))

    def mass(self, segments: Tensor | Sequence[int], count: int | None = None) -> Tensor:
        """Σ_{j: segments_j = s} A_ij, (…, heads, queries, count), segments counted from 0; see `readouts.Mass`.

        >>> S.mass([0, 0, 1])
        tensor([[1.0000, 0.0000],
                [1.0000, 0.0000],
                [0.5000, 0.5000]])
        """
        return self._one(readouts.Mass(segments, count))

    def kl(self, other: Attention) -> Tensor:
        """Σ_j A_ij (ln A_ij - ln B_ij) in nats, (…, heads, queries); +inf where `other` hides what this matrix sees.

        In O(n) memory, differentiable by both: distillation at any length. Rows that are +inf have no gradient.

        >>> B = regard.attention(z, z, mask=masks.causal)
        >>> S.kl(B)
        tensor([0.0000, 0.1308, 0.1243])
        """
        A, B = alike("A.kl(B)", self, other)
        return A._one(KL.to(B))

    def js(self, other: Attention) -> Tensor:
        """The Jensen-Shannon divergence ½ KL(A ‖ M) + ½ KL(B ‖ M), M = (A + B) / 2, in nats, (…, heads, queries).

        >>> B = regard.attention(z, z, mask=masks.causal)
        >>> S.js(B)
        tensor([0.0000, 0.0338, 0.0336])
        """
        A, B = alike("A.js(B)", self, other)
        return (A._one(KL.to(B, mixed=True)) + B._one(KL.to(A, mixed=True))) / 2

    def dropout(self, p: float, seed: int | Tensor) -> Attention:
        """The same matrix, whose products A @ v and A.mT @ r use weights that are 0 with probability p, else 1/(1 - p) times.

        Which ones is decided by seed, batch row, head, query and key alone, so that a part of the matrix, every backend and
        the backward agree. Questions are about the weights before dropout; a second dropout takes the first one's place.
        A seed that is drawn, torch.randint(2**60, ()), may stay a tensor: inside torch.compile it must.
        Source: Srivastava et al. 2014.

        >>> D = S.dropout(0.5, seed=0)
        >>> D
        Attention((3, 3), float32, mask=causal, Dropout(p=0.5, seed=0))
        >>> (D @ torch.ones(3)).shape
        torch.Size([3])
        """
        dropped = replace(self, drop=Dropout(p, seed))
        dropped._memo.extend(self._memo)
        return dropped

    def explain(self, *questions: Readout) -> Explanation:
        """Which backend answers which question, what it costs, and why no other does; nothing is computed.

        >>> print(S.explain(Entropy()))
        attention (batch, heads, queries, keys) = (1, 1, 3, 3)
        causal
        ...
        Entropy(): first sweep by ...
        """
        return explain(self.call, questions, self.backend, self.drop, bool(self._memo))

    # -- how a question is answered -----------------------------------------------------------------------------------

    def _one(self, question: Readout) -> Any:
        (parts,) = self._ask((question,))
        return question.public(tuple(map(self.layout.unfold, parts)))

    def _ask(self, questions: tuple[Readout, ...]) -> list[tuple[Tensor, ...]]:
        """The parts of each answer, (batch, heads, …), in one reading per backend; the log-sum-exp is passed on."""
        if torch.compiler.is_compiling():
            return compiled.ask(self.call, questions, self.backend)
        self.call.check_unchanged()
        for question in questions:
            question.check_unchanged()
        log_sum = self._known()
        answers: dict[int, tuple[Tensor, ...]] = {}
        for backend, places in backends.assign(self.call, questions, self.backend, log_sum is not None):
            parts, found = backend.read(self.call, [questions[n] for n in places], log_sum)
            answers.update(zip(places, parts, strict=True))
            if log_sum is None and found is not None:
                log_sum = found
                self._remember(found)
        return [answers[n] for n in range(len(questions))]

    def _known(self) -> Tensor | None:
        """The log-sum-exp, if it need not be swept for, or if it is that of a parent."""
        if self._memo and (self.call.whole is None or not self._differentiable()):
            return self._memo[0]
        if self.call.whole is None:
            return None
        question = readouts.LogSumExp()
        (parts,), _ = backends.choose(self.call.whole, question, self.backend).read(self.call.whole, [question], None)
        self._remember(parts[0])
        return parts[0]

    def _remember(self, log_sum: Tensor) -> None:
        """Keeps the log-sum-exp, without a graph, for the next question."""
        if not self._memo and self.call.steady:
            self._memo.append(log_sum.detach() if log_sum.requires_grad else log_sum)

    def _differentiable(self) -> bool:
        return self.call.differentiable

    def _value(self, value: Tensor) -> Tensor:
        _, kv_heads, keys, _ = self.call.key.shape
        heads, given = self.call.query.shape[1], cast(value)
        fits: tuple[int, ...] = (kv_heads, heads)
        if isinstance(given, Tensor) and given.ndim > 2 and 0 < given.shape[-3] < heads and heads % given.shape[-3] == 0:
            fits = (*fits, given.shape[-3])  # a score may have made more key heads of fewer
        return self._operand("A @ v", "values", "keys", given, keys, fits)

    def _operand(self, operation: str, name: str, axis: str, given: Tensor, length: int, heads: tuple[int, ...]) -> Tensor:
        tensor = checks.operand(operation, name, given, self.call.query.device)
        if tensor.ndim == 0:
            raise checks.ShapeError(f"{operation}: {name} must have one row for each of {length} {axis}; got a number.")
        if self.layout.takes(tensor, length, heads):
            return tensor
        return self.layout.operand(operation, name, axis, tensor, length, heads, tuple(self.shape))


@dataclass(frozen=True, eq=False)
class TransposedAttention(Lazy):
    """Aᵀ, (…, heads, keys, queries): asked as A.mT @ r."""

    of: Attention
    _called = "A.mT"
    _backwards = "r @ A.mT is not a question to an attention matrix: it is the transpose of A @ r.mT."

    @property
    def shape(self) -> torch.Size:
        *leading, queries, keys = self.of.shape
        return torch.Size((*leading, keys, queries))

    @property
    def dtype(self) -> torch.dtype:
        return self.of.dtype

    @property
    def device(self) -> torch.device:
        return self.of.device

    @property
    def mT(self) -> Attention:
        return self.of

    def to_dense(self, limit: int | None = DENSE_LIMIT) -> Tensor:
        """The stored transpose, under the guard of A.to_dense()."""
        return self.of.to_dense(limit).mT

    def __matmul__(self, r: Tensor) -> Tensor:
        """Σ_i A_ij r_i: what each key received of r, (…, heads, keys, columns), in float32 (float64).

        r: (…, heads or 1, queries, columns), or (queries, columns) or (queries,) shared by all heads.
        """
        A = self.of
        folded = A._operand("A.mT @ r", "rows of r", "queries", r, A.call.shape[2], (A.call.shape[1],))
        (parts,) = A._ask((Transposed(folded, A.drop),))
        received = A.layout.unfold(parts[0])
        return received[..., 0] if r.ndim == 1 else received


class Reading(Mapping[Readout, Any]):
    """Answers by the readout that asked, reading[Pool((64, 64))], or by its name in lower case, reading.pool.

    >>> reading = S.read(TopK(1), Pool((1, 1), "sum"))
    >>> reading
    Reading(topk, pool)
    >>> reading.topk.indices[:, 0]
    tensor([0, 1, 2])
    >>> reading[Pool((1, 1), "sum")]
    tensor([[3.]])
    """

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
