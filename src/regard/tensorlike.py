"""What an attention matrix shares with a tensor: reductions over queries and keys, torch.matmul, and clear refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regard import checks
from regard.readouts import Max, Received

if TYPE_CHECKING:
    from regard.attention import Attention

QUERIES, KEYS = -2, -1


def sum_over(A: Attention, dim: int | None, operation: str = "sum") -> Tensor:
    allowed = {QUERIES: "over queries: what each key received", KEYS: "over keys"}
    if (
        checks.dimension(
            operation, dim, A.ndim, allowed, "ask first and average then: A.sum(-2).mean(1), A.pool((64, 64)).mean(1)"
        )
        == QUERIES
    ):
        return A._one(Received())
    return (A @ torch.ones(A.shape[-1], 1, dtype=A.call.dtype, device=A.device))[..., 0]


def mean_over(A: Attention, dim: int | None) -> Tensor:
    count = A.shape[dim] if isinstance(dim, int) and -A.ndim <= dim < A.ndim else 0
    return sum_over(A, dim, "mean") / count


def amax(A: Attention, dim: int) -> Tensor:
    checks.dimension("amax", dim, A.ndim, {KEYS: "over keys"}, "A.pool(…, reduce='max')")
    return A._one(Max()).values


def argmax(A: Attention, dim: int) -> Tensor:
    checks.dimension("argmax", dim, A.ndim, {KEYS: "over keys"}, "A.topk(k)")
    return A._one(Max()).indices


def torch_function(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """torch.matmul(A, v) is A @ v; torch.sum, mean, amax and argmax over queries or keys are the methods."""
    from regard.attention import Attention

    named = dict(kwargs)
    args = args or (named.pop("input", None),)
    if func in (torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, torch.bmm):
        operands = (*args, *named.values())
        if func is not Tensor.__rmatmul__ and isinstance(operands[0], Attention) and len(operands) == 2:
            return operands[0] @ operands[1]
        raise TypeError(checks.TENSOR_TIMES_MATRIX)
    for name in ("sum", "mean", "amax", "argmax"):
        if func is getattr(torch, name) and isinstance(args[0], Attention):
            return getattr(args[0], name)(*args[1:], **named)
    if func is torch.diagonal:
        raise checks.Unsupported(checks.DIAGONAL)
    name = getattr(func, "__name__", str(func))
    raise checks.Unsupported(
        f"torch.{name} does not know an attention matrix: ask it with its own methods (A @ v, A.mT @ r, A.read(…)), or "
        "build it with A.to_dense()."
    )
