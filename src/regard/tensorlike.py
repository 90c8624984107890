"""What an attention matrix shares with a tensor, so that code written for a stored one keeps working.

Whatever has an answer of size O(n) is answered, what is only bookkeeping (`detach`, `squeeze`, `float`, …) stays lazy, what
must be stored is built under the size guard of `to_dense`, and everything else says what to ask instead.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor

from regard import checks, lazy
from regard.call import Call
from regard.indexing import rebuilt
from regard.layout import Layout
from regard.lazy import Lazy
from regard.readouts import Max, Pool, Received, Strongest
from regard.readouts.base import Readout
from regard.readouts.output import Output
from regard.readouts.total import Total

if TYPE_CHECKING:
    from regard.attention import Attention

Dims: TypeAlias = "int | tuple[int, ...] | None"

QUERIES, KEYS = -2, -1
ASK_FIRST = "Ask first and average then: A.sum(-2).mean(1), A.pool((64, 64)).mean(1), A.topk(8)."


class TensorLike(Lazy):
    """A tensor's methods for a matrix of shape (…, heads, queries, keys)."""

    call: Call
    layout: Layout
    _memo: list[Tensor]
    _called = "A"
    _backwards = checks.TENSOR_TIMES_MATRIX

    @abstractmethod
    def __getitem__(self, index: Any) -> Any: ...

    @abstractmethod
    def _one(self, question: Readout) -> Any: ...

    @abstractmethod
    def _ask(self, questions: tuple[Readout, ...]) -> list[tuple[Tensor, ...]]: ...

    # -- reductions --

    def sum(self, dim: Dims = None, keepdim: bool = False, *, dtype: torch.dtype | None = None, axis: Dims = None) -> Tensor:
        """dim = -2: what each key received, Σ_i A_ij; dim = -1: the sum of each row, 1 unless keys were cut away.

        Both of them, or all dimensions (None), are O(n) too, with heads and batch rows or without. Over heads or batch rows
        alone the answer is a stored matrix, added up tile by tile and refused above the limit of `to_dense`.

        >>> S.sum(-2)
        tensor([1.3750, 1.1250, 0.5000])
        >>> A.sum((-2, -1)).round()
        tensor([[6., 6., 6., 6.],
                [6., 6., 6., 6.]])
        """
        dims = checks.dimensions("sum", dim if axis is None else axis, self.ndim)
        return _shaped(self._summed("sum", dims), dims, keepdim, dtype)

    def mean(self, dim: Dims = None, keepdim: bool = False, *, dtype: torch.dtype | None = None, axis: Dims = None) -> Tensor:
        """dim = -2: Σ_i A_ij / queries; dim = -1: Σ_j A_ij / keys; other dimensions as in `sum`.

        >>> S.mean(-2)
        tensor([0.4583, 0.3750, 0.1667])
        """
        dims = checks.dimensions("mean", dim if axis is None else axis, self.ndim)
        return _shaped(self._summed("mean", dims) / math.prod([self.shape[d] for d in dims]), dims, keepdim, dtype)

    def amax(self, dim: Dims = None, keepdim: bool = False, *, axis: Dims = None) -> Tensor:
        """dim = -1: the largest weight of each query; dim = -2: that of each key; both, or None: that of each head, of all.

        >>> S.amax(-1), S.amax(-2)
        (tensor([1.0000, 0.7500, 0.5000]), tensor([1.0000, 0.7500, 0.5000]))
        """
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
        """dim = -1: the key of the largest weight of each query, -1 in an empty row; see `readouts.Max`.

        >>> S.argmax(-1)
        tensor([0, 1, 2])
        """
        return self._strongest("argmax", dim if axis is None else axis, keepdim).indices

    def max(self, dim: int | None = None, keepdim: bool = False) -> Any:
        """dim = -1: the largest weight of each query and its key, see `readouts.Max`; None: the largest weight of all.

        >>> S.max(-1).values
        tensor([1.0000, 0.7500, 0.5000])
        """
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
        checks.fits_dense(shape, self.call.dtype.itemsize, lazy.DENSE_LIMIT, operation, ASK_FIRST)
        over_heads = self.layout.heads is not None and -3 in dims
        batch = shape[: len(self.layout.batch)]
        groups = torch.arange(math.prod(batch)).reshape(batch).expand(self.layout.batch).flatten().tolist()
        ((found,),) = self._ask((Total(tuple(groups), math.prod(batch), over_heads),))
        return found.reshape(shape)

    # -- the same matrix --

    def detach(self) -> Attention:
        """The same matrix as a constant.

        >>> B = regard.attention(q.clone().requires_grad_(), k)
        >>> B.requires_grad, B.detach().requires_grad
        (True, False)
        """
        return self._with(self.call.constant())

    @property
    def requires_grad(self) -> bool:
        """Whether answers can be differentiated.

        >>> A.requires_grad, regard.attention(q.clone().requires_grad_(), k).requires_grad
        (False, True)
        """
        with torch.enable_grad():
            return self.call.differentiable

    def contiguous(self, **_: Any) -> Attention:
        """Itself.

        >>> A.contiguous() is A
        True
        """
        return self._self

    def clone(self, **_: Any) -> Attention:
        """The same matrix on tensors of its own, which changes of query and key in place do not reach.

        >>> x = torch.ones(3, 1)
        >>> B = regard.attention(x, x).clone()
        >>> x += 1
        >>> B.logsumexp().exp().round(decimals=2)
        tensor([8.1500, 8.1500, 8.1500])
        """
        return self._changed(Tensor.clone)

    def to(self, *args: Any, **kwargs: Any) -> Attention:
        """The same matrix on another device or in a wider dtype. Takes what Tensor.to takes.

        Weights of float16 and bfloat16 inputs are computed in float32 in any case: `float()` changes A.dtype alone.

        >>> A.to(torch.float64).dtype
        torch.float64
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
        """On the CPU; see `to`.

        >>> A.cpu().device
        device(type='cpu')
        """
        return self.to("cpu")

    def cuda(self, device: Any = None) -> Attention:
        """On that CUDA device, or the current one; see `to`.

        >>> (A.cuda() if torch.cuda.is_available() else A).shape
        torch.Size([2, 4, 6, 6])
        """
        return self.to("cuda" if device is None else device)

    def float(self) -> Attention:
        """In float32: the same weights.

        >>> regard.attention(q.half(), k.half()).float().dtype
        torch.float32
        """
        return self.to(torch.float32)

    def double(self) -> Attention:
        """In float64: weights computed from query and key in float64.

        >>> A.double().entropy().dtype
        torch.float64
        """
        return self.to(torch.float64)

    def half(self) -> Attention:
        """The same, if it is float16 already; Unsupported for others, whose weights would change.

        >>> regard.attention(q.half(), k.half()).half().dtype
        torch.float16
        """
        return self.to(torch.float16)

    def bfloat16(self) -> Attention:
        """The same, if it is bfloat16 already; Unsupported for others, whose weights would change.

        >>> regard.attention(q.bfloat16(), k.bfloat16()).bfloat16().dtype
        torch.bfloat16
        """
        return self.to(torch.bfloat16)

    def type(self, dtype: torch.dtype) -> Attention:
        """In that dtype; see `to`.

        >>> A.type(torch.float64).dtype
        torch.float64
        """
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
        """Without dimensions of size 1: lazy where batch rows or heads go, numbers where queries or keys do.

        >>> A[:1].squeeze(0).shape
        torch.Size([4, 6, 6])
        """
        dims = checks.dimensions("squeeze", dim, self.ndim)
        gone = [n == 1 and d - self.ndim in dims for d, n in enumerate(self.shape)]
        return self[tuple(0 if g else slice(None) for g in gone)] if any(gone) else self

    def unsqueeze(self, dim: int) -> Attention:
        """With one more batch dimension, of size 1.

        >>> A.unsqueeze(0).shape
        torch.Size([1, 2, 4, 6, 6])
        """
        place, batch = checks.dimension("unsqueeze", dim, self.ndim + 1) + self.ndim + 1, self.layout.batch
        if place > len(batch):
            raise checks.Unsupported(
                f"unsqueeze: an attention matrix of shape {tuple(self.shape)} takes a new dimension before its heads, dim 0 to "
                f"{len(batch)}; got {dim}. The answers are tensors: ask first and unsqueeze then."
            )
        return self._with(self.call, replace(self.layout, batch=(*batch[:place], 1, *batch[place:])))

    def transpose(self, dim0: int, dim1: int) -> Any:
        """A.mT, where the dimensions are queries and keys.

        >>> S.transpose(-1, -2) @ torch.ones(3)
        tensor([1.3750, 1.1250, 0.5000])
        """
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
        """A.mT of a matrix without heads.

        >>> S.T @ torch.ones(3)
        tensor([1.3750, 1.1250, 0.5000])
        """
        return self.mT if self.ndim == 2 else self._missing("T")

    # -- products by name, and the stored matrix --

    def matmul(self, other: Tensor) -> Tensor:
        """A @ other.

        >>> S.matmul(torch.tensor([0.0, 4.0, 8.0]))
        tensor([0.0000, 3.0000, 5.5000])
        """
        return self @ other

    bmm = mm = mv = matmul

    def numpy(self, *, force: bool = False) -> Any:
        """The stored matrix for NumPy, under the guard of to_dense.

        >>> S.numpy().round(3)
        array([[1.   , 0.   , 0.   ],
               [0.25 , 0.75 , 0.   ],
               [0.125, 0.375, 0.5  ]], dtype=float32)
        """
        return self.to_dense().numpy(force=force)

    def tolist(self) -> list[Any]:
        """The stored matrix as lists, under the guard of to_dense.

        >>> [[round(weight, 3) for weight in row] for row in S.tolist()]
        [[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.125, 0.375, 0.5]]
        """
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
