"""A matrix that is not stored: it has a size, and what a tensor would answer with one is refused with what to ask instead."""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import numpy as np
import torch
from torch import Tensor

from regard import checks

DENSE_LIMIT = 1 << 30  # bytes that a stored matrix may take unless told otherwise

# What to use instead of what tensors have.
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


def instead(name: str, otherwise: str = ASK) -> str:
    return f"{INSTEAD.get(name, otherwise)}, or build it with A.to_dense()"


class Lazy(ABC):
    """A matrix that is not stored: where a tensor would have an answer of its size, a sentence says what to use."""

    _called: ClassVar[str]  # in sentences
    _backwards: ClassVar[str]  # what a product from the left is answered with

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
    def to_dense(self, limit: int | None = DENSE_LIMIT) -> Tensor: ...

    @property
    def ndim(self) -> int:
        """How many dimensions it has.

        >>> A.ndim
        4
        """
        return len(self.shape)

    def dim(self) -> int:
        """How many dimensions it has.

        >>> A.dim()
        4
        """
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def size(self, dim: int | None = None) -> Any:
        """The shape, or one number of it.

        >>> A.size(), A.size(-1)
        (torch.Size([2, 4, 6, 6]), 6)
        """
        return self.shape if dim is None else self.shape[checks.dimension("size", dim, self.ndim)]

    def numel(self) -> int:
        """How many weights it has: nothing of that size is stored.

        >>> A.numel()
        288
        """
        return math.prod(self.shape)

    def is_floating_point(self) -> bool:
        """True: weights are.

        >>> A.is_floating_point()
        True
        """
        return True

    @property
    def is_cuda(self) -> bool:
        """Whether its tensors are on a CUDA device.

        >>> A.is_cuda
        False
        """
        return self.device.type == "cuda"

    __array_ufunc__: ClassVar[None] = None  # NumPy's operators come to us instead of reading the matrix row by row

    if not TYPE_CHECKING:  # to a type checker, a name that is not there is not there

        def __getattr__(self, name: str) -> NoReturn:
            self._missing(name)

    def _missing(self, name: str) -> NoReturn:
        """What tensors have is refused with a sentence, and hasattr says no."""
        public = not name.startswith("_")
        if public and hasattr(Tensor, name):
            hint = instead(name, HIDE if name.endswith("_") else ASK)
            raise checks.NotATensor(f"{self._called} is not stored and has no {name}: {hint}.")
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
        from regard.functions import torch_function

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
