"""torch's functions of lazy matrices: torch.matmul(A, v) is A @ v, torch.sum(A, -2) is A.sum(-2), and so on."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regard import checks, lazy
from regard.lazy import Lazy, instead
from regard.tensorlike import TensorLike

TAKE_LESS = "Take less of it, A[..., :64, :64] or single rows, or ask first: A.sum(-2), A.pool((64, 64)), A.topk(8)."
PRODUCT = (
    torch.matmul,
    Tensor.matmul,
    Tensor.__matmul__,
    torch.bmm,
    torch.mm,
    torch.mv,
    operator.matmul,
)  # the last one in torch.export
JOINED = (torch.stack, torch.cat, torch.concat, torch.concatenate)
METHODS = {
    getattr(torch, name): name
    for name in (
        *("sum", "mean", "amax", "argmax", "max", "detach", "clone", "squeeze", "unsqueeze", "transpose", "swapaxes"),
        *("swapdims", "numel", "is_floating_point", "topk"),
    )
}


def torch_function(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """torch.matmul(A, v) is A @ v, torch.sum(A, -2) is A.sum(-2), and so on."""
    if func in PRODUCT:
        left, *right = (*args, *kwargs.values())
        if isinstance(left, Lazy) and len(right) == 1:
            return left.__matmul__(right[0])  # not @, whose operands torch.compile exchanges
        if func is Tensor.matmul and torch.compiler.is_compiling():
            return _exchanged(left, right[0])
        raise TypeError(next(operand for operand in right if isinstance(operand, Lazy))._backwards)
    if func in JOINED:
        return _joined(func, *args, **kwargs)
    named = dict(kwargs)
    args = args or (named.pop("input", None),)
    if isinstance(args[0], TensorLike) and func in METHODS:
        return getattr(args[0], METHODS[func])(*args[1:], **named)
    if func is torch.diagonal:
        raise checks.Unsupported(checks.DIAGONAL)
    name = getattr(func, "__name__", str(func))
    raise checks.Unsupported(f"torch.{name} does not know an attention matrix: {instead(name)}.")


def _exchanged(given: Tensor, matrix: Lazy) -> Tensor:
    """What torch.compile makes of A @ v, and of v @ A too: the shapes have to tell which of them was meant."""
    rows, columns = matrix.shape[-2:]
    if given.ndim and given.shape[-1] == rows:
        if given.shape[-2 if given.ndim > 1 else -1] == columns:
            raise checks.Unsupported(
                f"{matrix._called} @ v: torch.compile exchanges the operands of @, and a v of shape "
                f"{checks.listed(given.shape)} could stand on either side of a matrix with {rows} rows and {columns} columns: "
                f"write torch.matmul({matrix._called}, v) in compiled functions."
            )
        raise TypeError(matrix._backwards)
    return matrix.__matmul__(given)


def _joined(func: Any, tensors: Sequence[Any], *args: Any, **kwargs: Any) -> Tensor:
    """torch.stack and torch.cat of lazy matrices and tensors: stored, under a guard for all of them together."""
    result = func([torch.empty(t.shape, device="meta") for t in tensors], *args, **kwargs)  # its shape, or torch's refusal
    bytes_each = max(torch.promote_types(t.dtype, torch.float32).itemsize for t in tensors)
    checks.fits_dense(result.shape, bytes_each, lazy.DENSE_LIMIT, func.__name__, TAKE_LESS)
    return func([t if isinstance(t, Tensor) else t.to_dense(limit=None) for t in tensors], *args, **kwargs)
