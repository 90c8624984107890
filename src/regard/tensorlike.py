"""What an attention matrix shares with a tensor, so that code written for a stored one keeps working.

Whatever has an answer of size O(n) is answered, what is only bookkeeping (`detach`, `squeeze`, `float`, …) stays lazy, what
must be stored is built under the size guard of `to_dense`, and everything else says what to ask instead.
"""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from regard import checks
from regard.call import Call
from regard.indexing import rebuilt
from regard.layout import Layout
from regard.readouts import Max, Pool, Received
from regard.readouts.base import Dense, Finished, FinishedReadout, Parts, Readout
from regard.readouts.output import Output
from regard.readouts.topk import Strongest

if TYPE_CHECKING:
    from regard.attention import Attention

Dims: TypeAlias = "int | tuple[int, ...] | None"

QUERIES, KEYS = -2, -1
DENSE_LIMIT = 1 << 30  # bytes that a stored matrix may take unless told otherwise

ASK_FIRST = "Ask first and average then: A.sum(-2).mean(1), A.pool((64, 64)).mean(1), A.topk(8)."
TAKE_LESS = "Take less of it, A[..., :64, :64] or single rows, or ask first: A.sum(-2), A.pool((64, 64)), A.topk(8)."

# -- what to use instead of what tensors have -------------------------------------------------------------------------

ASK = "ask it with its own methods (A @ v, A.mT @ r, A.topk(k), A.sum(-2), A.read(…))"
PRODUCTS = "A @ v averages the values of the keys, A.mT @ r sums over the queries"
COMPUTE_THEN = "ask first and compute then, as in (A @ v) * x, A.sum(-2) * x or A[..., rows, :] * x"
RESHAPE_THEN = "the answers are tensors: ask first and reshape then"
COMPARE = "A.topk(k) names what is strong, A[..., rows, :] > x compares some rows"
HIDE = "what is hidden is said when the matrix is built, regard.attention(…, mask=…)"
PICK = "A[…] takes integers, slices and index tensors"

INSTEAD = {
    name: instead
    for instead, names in {
        PRODUCTS: "einsum tensordot addmm baddbmm addbmm inner outer dot vdot linear kron chain_matmul multi_dot __rmatmul__",
        "A.topk(k) gives the strongest keys of each query": "topk sort argsort kthvalue msort median nanmedian mode quantile "
        "min amin argmin aminmax",
        COMPUTE_THEN: "mul multiply div divide true_divide floor_divide remainder add sub subtract rsub neg negative pow "
        "square sqrt exp abs absolute round clamp clip lerp addcmul addcdiv cumsum cumprod prod diff sigmoid relu tanh norm",
        "A.entropy() and A.kl(B) take the logarithm, A[..., rows, :].log() is that of some rows": "log log2 log10 log1p xlogy",
        COMPARE: "gt ge lt le eq ne greater greater_equal less less_equal not_equal isclose allclose equal where any all "
        "nonzero argwhere count_nonzero logical_and logical_or logical_not isnan isinf isfinite",
        "its rows are softmaxes already, and A.logsumexp() is what they were divided by": "softmax log_softmax",
        HIDE: "masked_fill masked_select masked_scatter tril triu index_fill nan_to_num",
        "A.dropout(p, seed) is lazy": "dropout",
        "A.entropy() and A.distance() say how far a row is spread": "std var std_mean var_mean",
        PICK: "gather index_select take take_along_dim narrow select unbind split chunk tensor_split unfold item",
        RESHAPE_THEN: "view view_as reshape reshape_as flatten unflatten permute movedim moveaxis expand expand_as repeat "
        "repeat_interleave tile roll flip rot90 ravel broadcast_to",
        "A.mT exchanges queries and keys": "T H mH t adjoint",
        "A.pool((rows, columns)) is a picture of any size": "interpolate avg_pool2d max_pool2d adaptive_avg_pool2d "
        "adaptive_max_pool2d conv2d histc histogram bincount",
        "A.detach() is the same matrix as a constant": "data",
        "gradients flow from every answer to query, key and value": "backward grad grad_fn retain_grad register_hook is_leaf",
    }.items()
    for name in names.split()
}


def _instead(name: str, otherwise: str = ASK) -> str:
    return f"{INSTEAD.get(name, otherwise)}, or build it with A.to_dense()"


class Lazy:
    """A matrix that is not stored: where a tensor would have an answer of its size, a sentence says what to use."""

    _called: ClassVar[str]  # in sentences
    _backwards: ClassVar[str]  # what a product from the left is answered with

    __array_ufunc__: ClassVar[None] = None  # NumPy's operators come to us instead of reading the matrix row by row

    if not TYPE_CHECKING:  # to a type checker, a name that is not there is not there

        def __getattr__(self, name: str) -> NoReturn:
            self._missing(name)

    def _missing(self, name: str) -> NoReturn:
        """What tensors have is refused with a sentence, and hasattr says no."""
        public = not name.startswith("_")
        if public and hasattr(Tensor, name):
            instead = _instead(name, HIDE if name.endswith("_") else ASK)
            raise checks.NotATensor(f"{self._called} is not stored and has no {name}: {instead}.")
        near = difflib.get_close_matches(name, [n for n in dir(self) if n[0] != "_"]) if public else []
        hint = f": did you mean {' or '.join(near)}" if near else ""
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}.")

    def __eq__(self, other: object) -> bool:
        """Whether it is the same object; the elements are not compared."""
        if isinstance(other, Tensor | np.ndarray | int | float):
            _refuse(f"{self._called} == x", COMPARE)
        return self is other

    __hash__ = object.__hash__

    def __bool__(self) -> NoReturn:
        raise checks.Unsupported(f"{self._called} is neither true nor false: compare it with None, or ask it a question.")

    def __setitem__(self, index: object, value: object) -> NoReturn:
        raise checks.Unsupported(f"{self._called} is not stored, and nothing is written to it: {HIDE}.")

    def __rmatmul__(self, other: object) -> NoReturn:
        raise TypeError(self._backwards)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return torch_function(func, args, kwargs or {})


def _refuse(expression: str, instead: str) -> NoReturn:
    raise checks.Unsupported(f"{expression} would be a stored matrix: {instead}, or build A with A.to_dense().")


def _operator(expression: str, instead: str) -> Callable[..., NoReturn]:
    def refused(self: Lazy, *others: object) -> NoReturn:
        _refuse(expression.format(self._called), instead)

    return refused


SIGNS = {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%", "pow": "**"}
LOGICAL = {"and": "&", "or": "|", "xor": "^"}
for _verb, _sign in (SIGNS | LOGICAL).items():
    _hint = COMPARE if _verb in LOGICAL else COMPUTE_THEN
    setattr(Lazy, f"__{_verb}__", _operator(f"{{}} {_sign} x", _hint))
    setattr(Lazy, f"__r{_verb}__", _operator(f"x {_sign} {{}}", _hint))
for _verb, _sign in {"lt": "<", "le": "<=", "gt": ">", "ge": ">="}.items():
    setattr(Lazy, f"__{_verb}__", _operator(f"{{}} {_sign} x", COMPARE))
for _verb, _expression in {"neg": "-{}", "pos": "+{}", "abs": "abs({})", "invert": "~{}"}.items():
    setattr(Lazy, f"__{_verb}__", _operator(_expression, COMPUTE_THEN))


# -- the mixin --------------------------------------------------------------------------------------------------------


class TensorLike(Lazy, ABC):
    """A tensor's methods for a matrix of shape (…, heads, queries, keys)."""

    call: Call
    layout: Layout
    _memo: list[Tensor]
    _called = "A"
    _backwards = checks.TENSOR_TIMES_MATRIX

    @property
    @abstractmethod
    def shape(self) -> torch.Size: ...

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype: ...

    @property
    @abstractmethod
    def device(self) -> torch.device: ...

    @property
    @abstractmethod
    def mT(self) -> Any: ...

    @abstractmethod
    def __matmul__(self, value: Tensor) -> Tensor: ...

    @abstractmethod
    def __getitem__(self, index: Any) -> Any: ...

    @abstractmethod
    def to_dense(self, limit: int | None = DENSE_LIMIT) -> Tensor: ...

    @abstractmethod
    def _one(self, question: Readout) -> Any: ...

    @abstractmethod
    def _ask(self, questions: tuple[Readout, ...]) -> list[tuple[Tensor, ...]]: ...

    # -- sizes --

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def dim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def size(self, dim: int | None = None) -> Any:
        """The shape, or one number of it."""
        return self.shape if dim is None else self.shape[checks.dimension("size", dim, self.ndim)]

    def numel(self) -> int:
        return math.prod(self.shape)

    def is_floating_point(self) -> bool:
        return True

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    # -- reductions --

    def sum(self, dim: Dims = None, keepdim: bool = False, *, dtype: torch.dtype | None = None, axis: Dims = None) -> Tensor:
        """dim = -2: what each key received, Σ_i A_ij; dim = -1: the sum of each row, 1 unless keys were cut away.

        Both of them, or all dimensions (None), are O(n) too, with heads and batch rows or without. Over heads or batch rows
        alone the answer is a stored matrix, added up tile by tile and refused above the limit of `to_dense`.
        """
        dims = checks.dimensions("sum", dim if axis is None else axis, self.ndim)
        return _shaped(self._summed("sum", dims), dims, keepdim, dtype)

    def mean(self, dim: Dims = None, keepdim: bool = False, *, dtype: torch.dtype | None = None, axis: Dims = None) -> Tensor:
        """dim = -2: Σ_i A_ij / queries; dim = -1: Σ_j A_ij / keys; other dimensions as in `sum`."""
        dims = checks.dimensions("mean", dim if axis is None else axis, self.ndim)
        return _shaped(self._summed("mean", dims) / math.prod(self.shape[d] for d in dims), dims, keepdim, dtype)

    def amax(self, dim: Dims = None, keepdim: bool = False, *, axis: Dims = None) -> Tensor:
        """dim = -1: the largest weight of each query; dim = -2: that of each key; both, or None: that of each head, of all."""
        dims = checks.dimensions("amax", dim if axis is None else axis, self.ndim)
        if KEYS in dims:
            largest = self._one(Max()).values[..., None]
        elif QUERIES in dims:
            keys = self.shape[KEYS]
            largest = self._one(Pool((1, max(keys, 1)), "max"))[..., :keys]
        else:
            raise checks.Unsupported(
                f"amax: over dim {dim} it would be a stored matrix: use dim=-1 (the largest weight of each query), -2 (of each "
                "key) or both, or A.to_dense().amax(dim)."
            )
        rest = tuple(d for d in dims if largest.shape[d] != 1)
        return _shaped(largest.amax(rest, keepdim=True) if rest else largest, dims, keepdim)

    def argmax(self, dim: int | None = None, keepdim: bool = False, *, axis: int | None = None) -> Tensor:
        """dim = -1: the key of the largest weight of each query, -1 in an empty row; see `readouts.Max`."""
        return self._strongest("argmax", dim if axis is None else axis, keepdim).indices

    def max(self, dim: int | None = None, keepdim: bool = False) -> Any:
        """dim = -1: the largest weight of each query and its key, see `readouts.Max`; None: the largest weight of all."""
        return self.amax() if dim is None else self._strongest("max", dim, keepdim)

    def _strongest(self, operation: str, dim: int | None, keepdim: bool) -> Strongest:
        if dim is None or checks.dimension(operation, dim, self.ndim) != KEYS:
            raise checks.Unsupported(
                f"{operation}: an attention matrix knows the strongest key of each query, dim=-1; got dim {dim}. A.topk(k) "
                "gives more of them, A.amax(-2) the largest weight of each key."
            )
        found = self._one(Max())
        return Strongest(*(part[..., None] for part in found)) if keepdim else found

    def _summed(self, operation: str, dims: tuple[int, ...]) -> Tensor:
        """The sum over those dimensions, kept with size 1: over queries or keys first, which leaves O(n)."""
        if KEYS in dims:
            ones = torch.ones((), dtype=self.call.dtype, device=self.device).expand(self.call.shape[0], 1, self.shape[KEYS], 1)
            found = self._one(Output(ones))  # not A @ ones: questions are about the weights before dropout
        elif QUERIES in dims:
            found = self._one(Received())[..., None, :]
        else:
            return self._added(operation, dims)
        rest = tuple(d for d in dims if found.shape[d] != 1)
        return found.sum(rest, keepdim=True) if rest else found

    def _added(self, operation: str, dims: tuple[int, ...]) -> Tensor:
        """The sum over heads or batch rows alone, kept with size 1."""
        shape = [1 if d - self.ndim in dims else n for d, n in enumerate(self.shape)]
        checks.fits_dense(shape, self.call.dtype.itemsize, DENSE_LIMIT, operation, ASK_FIRST)
        over_heads = self.layout.heads is not None and -3 in dims
        batch = shape[: len(self.layout.batch)]
        groups = torch.arange(math.prod(batch)).reshape(batch).expand(self.layout.batch).flatten().tolist()
        ((found,),) = self._ask((Total(tuple(groups), math.prod(batch), over_heads),))
        return found.reshape(shape)

    # -- the same matrix --

    def detach(self) -> Attention:
        """The same matrix as a constant."""
        return self._with(self.call.constant())

    @property
    def requires_grad(self) -> bool:
        """Whether answers can be differentiated."""
        with torch.enable_grad():
            return self.call.differentiable

    def contiguous(self, **_: Any) -> Attention:
        """Itself."""
        return self._self

    def clone(self, **_: Any) -> Attention:
        """The same matrix on tensors of its own, which changes of query and key in place do not reach."""
        return self._changed(Tensor.clone)

    def to(self, *args: Any, **kwargs: Any) -> Attention:
        """The same matrix on another device or in a wider dtype. Takes what Tensor.to takes.

        Weights of float16 and bfloat16 inputs are computed in float32 in any case: `float()` changes A.dtype alone.
        """
        copy = kwargs.pop("copy", False)
        try:
            device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        except (TypeError, RuntimeError) as error:
            given = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())])
            raise TypeError(f"to: takes a device, a dtype, both, or a tensor that has them; got {given}.") from error
        moved = self.clone() if copy else self._self
        if device is not None and torch.empty(0, device=device).device != moved.device:  # "cuda" is "cuda:0"
            moved = moved._changed(lambda t: t.to(device), device=device)
        return moved if dtype is None else moved._widened(dtype)

    def cpu(self) -> Attention:
        return self.to("cpu")

    def cuda(self, device: Any = None) -> Attention:
        return self.to("cuda" if device is None else device)

    def float(self) -> Attention:
        """In float32: the same weights."""
        return self.to(torch.float32)

    def double(self) -> Attention:
        """In float64: weights computed from query and key in float64."""
        return self.to(torch.float64)

    def half(self) -> Attention:
        return self.to(torch.float16)

    def bfloat16(self) -> Attention:
        return self.to(torch.bfloat16)

    def type(self, dtype: torch.dtype) -> Attention:
        return self.to(dtype)

    def _widened(self, dtype: torch.dtype) -> Attention:
        if dtype == self.dtype:
            return self._self
        if dtype not in checks.FLOATS or torch.promote_types(self.dtype, dtype) != dtype:
            raise checks.Unsupported(
                f"to: an attention matrix of {self.dtype} does not become {dtype}, which would change its weights: cast the "
                f"answers, as in A.topk(k).values.to({dtype}), or build it on query and key of that dtype."
            )
        if dtype == torch.promote_types(self.call.dtype, dtype) == self.call.dtype:
            return self._with(replace(self.call, stated=dtype))  # what is computed stays as it is
        wider = self._changed(lambda t: t.to(dtype), stated=None)
        wider._memo.clear()  # that log-sum-exp has fewer digits
        return wider

    def _changed(self, change: Callable[[Tensor], Tensor], device: torch.device | None = None, **fields: Any) -> Attention:
        """The same matrix on other tensors, with its mask on that device."""
        self.call.check_unchanged()  # the copy would hide what changed before

        def changed(call: Call) -> Call:
            mask = call.mask if device is None else call.mask.to(device)
            whole = None if call.whole is None else changed(call.whole)
            moved = call.with_tensors(*map(change, call.tensors))
            return replace(moved, mask=mask, whole=whole, **fields).watching()

        return self._with(changed(self.call), take=change)

    def _with(self, call: Call, layout: Layout | None = None, take: Callable[[Tensor], Tensor] | None = None) -> Attention:
        return rebuilt(self._self, call, layout, take)

    @property
    def _self(self) -> Attention:
        return cast("Attention", self)

    # -- its dimensions --

    def squeeze(self, dim: Dims = None) -> Any:
        """Without dimensions of size 1: lazy where batch rows or heads go, numbers where queries or keys do."""
        dims = checks.dimensions("squeeze", dim, self.ndim)
        gone = [n == 1 and d - self.ndim in dims for d, n in enumerate(self.shape)]
        return self[tuple(0 if g else slice(None) for g in gone)] if any(gone) else self

    def unsqueeze(self, dim: int) -> Attention:
        """With one more batch dimension, of size 1."""
        place, batch = checks.dimension("unsqueeze", dim, self.ndim + 1) + self.ndim + 1, self.layout.batch
        if place > len(batch):
            raise checks.Unsupported(
                f"unsqueeze: an attention matrix of shape {tuple(self.shape)} takes a new dimension before its heads, dim 0 to "
                f"{len(batch)}; got {dim}. The answers are tensors: ask first and unsqueeze then."
            )
        return self._with(self.call, replace(self.layout, batch=(*batch[:place], 1, *batch[place:])))

    def transpose(self, dim0: int, dim1: int) -> Any:
        """A.mT, where the dimensions are queries and keys."""
        dims = {checks.dimension("transpose", dim, self.ndim) for dim in (dim0, dim1)}
        if dims == {QUERIES, KEYS}:
            return self.mT
        if len(dims) == 1:
            return self
        raise checks.Unsupported(
            f"transpose: an attention matrix exchanges queries and keys, A.mT; got dims {dim0} and {dim1}. The answers are "
            "tensors: ask first and transpose then."
        )

    swapaxes = swapdims = transpose

    @property
    def T(self) -> Any:
        """A.mT of a matrix without heads."""
        return self.mT if self.ndim == 2 else self._missing("T")

    # -- products by name, and the stored matrix --

    def matmul(self, other: Tensor) -> Tensor:
        """A @ other."""
        return self @ other

    bmm = mm = mv = matmul

    def numpy(self, *, force: bool = False) -> Any:
        """The stored matrix for NumPy, under the guard of to_dense."""
        return self.to_dense().numpy(force=force)

    def tolist(self) -> list[Any]:
        """The stored matrix as lists, under the guard of to_dense."""
        return self.to_dense().tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """The stored matrix for NumPy, under the guard of to_dense."""
        if copy is False:
            raise ValueError("np.array(A, copy=False): an attention matrix is not stored, so that NumPy cannot share it.")
        stored = self.to_dense().numpy(force=True)
        return stored if dtype is None else stored.astype(dtype, copy=False)


def _shaped(answer: Tensor, dims: tuple[int, ...], keepdim: bool, dtype: torch.dtype | None = None) -> Tensor:
    """A reduction that kept its dimensions, as it was asked for."""
    return (answer if keepdim else answer.squeeze(dims)).to(dtype or answer.dtype)


@dataclass(frozen=True)
class Total(FinishedReadout):
    """Weights added up over batch rows, heads or both: (totals, heads or 1, queries, keys). Asked as A.sum(1) or A.mean(0).

    Tiles are added up as they come, so that neither the answer nor its backward ever holds every head.
    """

    groups: tuple[int, ...]  # to which of the totals each batch row is added
    totals: int
    over_heads: bool

    def size(self, call: Call) -> int:
        return self.totals * math.prod(call.shape[2:]) * (1 if self.over_heads else call.shape[1])

    def dense(self, matrix: Dense) -> Parts:
        weights = matrix.weights.sum(1, keepdim=True) if self.over_heads else matrix.weights
        return (weights.new_zeros(self.totals, *weights.shape[1:]).index_add(0, self._groups(weights), weights),)

    def start(self, call: Call) -> Tensor:
        _, heads, queries, keys = call.shape
        return call.query.new_zeros((self.totals, 1 if self.over_heads else heads, queries, keys), dtype=call.dtype)

    def add(self, state: Tensor, tile: Finished) -> None:
        weights = tile.weights.sum(1, keepdim=True) if self.over_heads else tile.weights
        state[:, :, tile.rows, tile.columns].index_add_(0, self._groups(weights, tile.batch), weights)

    def pull(self, tile: Finished, parts: Parts, grads: Parts) -> Tensor:
        grad = grads[0][:, :, tile.rows, tile.columns]
        return grad.index_select(0, self._groups(grad, tile.batch)).expand_as(tile.weights)

    def _groups(self, near: Tensor, batch: slice = slice(None)) -> Tensor:
        return torch.tensor(self.groups[batch], dtype=torch.int64, device=near.device)


# -- torch's functions ------------------------------------------------------------------------------------------------

PRODUCT = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, torch.mm, torch.mv)
JOINED = (torch.stack, torch.cat, torch.concat, torch.concatenate)
METHODS = {
    getattr(torch, name): name
    for name in (
        *("sum", "mean", "amax", "argmax", "max", "detach", "clone", "squeeze", "unsqueeze", "transpose", "swapaxes"),
        *("swapdims", "numel", "is_floating_point"),
    )
}


def torch_function(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """torch.matmul(A, v) is A @ v, torch.sum(A, -2) is A.sum(-2), and so on."""
    if func in PRODUCT:
        left, *right = (*args, *kwargs.values())
        if isinstance(left, Lazy) and len(right) == 1:
            return left @ right[0]
        raise TypeError(next(operand for operand in right if isinstance(operand, Lazy))._backwards)
    if func in JOINED:
        return _joined(func, *args, **kwargs)
    named = dict(kwargs)
    args = args or (named.pop("input", None),)
    if isinstance(args[0], TensorLike):
        if func in METHODS:
            return getattr(args[0], METHODS[func])(*args[1:], **named)
        if func is torch.topk:
            return _topk(*args, **named)
    if func is torch.diagonal:
        raise checks.Unsupported(checks.DIAGONAL)
    name = getattr(func, "__name__", str(func))
    raise checks.Unsupported(f"torch.{name} does not know an attention matrix: {_instead(name)}.")


def _topk(A: Attention, k: int, dim: int = KEYS, largest: bool = True, sorted: bool = True) -> Strongest:
    if checks.dimension("topk", dim, A.ndim) != KEYS or not largest:
        raise checks.Unsupported(
            f"topk: an attention matrix has the largest weights of each query, dim=-1; got dim={dim}, largest={largest}."
        )
    return A.topk(k)


def _joined(func: Any, tensors: Sequence[Any], *args: Any, **kwargs: Any) -> Tensor:
    """torch.stack and torch.cat of lazy matrices and tensors: stored, under a guard for all of them together."""
    result = func([torch.empty(t.shape, device="meta") for t in tensors], *args, **kwargs)  # its shape, or torch's refusal
    bytes_each = max(torch.promote_types(t.dtype, torch.float32).itemsize for t in tensors)
    checks.fits_dense(result.shape, bytes_each, DENSE_LIMIT, func.__name__, TAKE_LESS)
    return func([t if isinstance(t, Tensor) else t.to_dense(limit=None) for t in tensors], *args, **kwargs)
