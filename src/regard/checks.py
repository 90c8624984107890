"""Every sentence that a user can get back from the matrix and its masks: rule, numbers, shapes."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

if TYPE_CHECKING:
    from regard.masks import Mask

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

MASK_AS_BOOLEAN = "a mask is not true or false: combine masks with & | ~ instead of and, or, not; got `{mask}`."
TENSOR_TIMES_MATRIX = (
    "v @ A is not a question to an attention matrix: A @ v averages the values of the keys, A.mT @ r sums over the queries."
)
DIAGONAL = (
    "torch.diagonal counts from the matrix's corner; A.diagonal(offset) counts from each query's own position among the keys."
)
FARTHEST = 1 << 60  # no position lies beyond: larger numbers mean "without end", and stay clear of what an int64 can hold


class ShapeError(ValueError):
    """Shapes that do not fit together."""


class Unsupported(NotImplementedError):
    """Something that regard cannot do; the sentence says what to do instead."""


class TooLarge(MemoryError):
    """A dense matrix beyond the limit."""


class Changed(RuntimeError):
    """A tensor was changed in place after the matrix was built on it."""


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


# -- the call ---------------------------------------------------------------------------------------------------------


def tensor(operation: str, name: str, value: object) -> Tensor:
    """A dense floating-point tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{operation}: {name} must be a tensor; got {type(value).__name__}.")
    if value.is_nested or value.layout != torch.strided:
        raise TypeError(
            f"{operation}: {name} must be a dense tensor; got layout {value.layout}: pad it and say so with "
            "masks.padding(lengths)."
        )
    if value.dtype not in FLOATS:
        raise TypeError(
            f"{operation}: {name} must be float16, bfloat16, float32 or float64; got {value.dtype} of shape {_shape(value)}."
        )
    return value


def query_and_key(query: object, key: object) -> tuple[Tensor, Tensor]:
    """Two tensors that a matrix of attention can be made of."""
    q, k = tensor("attention", "query", query), tensor("attention", "key", key)
    shapes = f"query {_shape(q)}, key {_shape(k)}"
    if q.dtype != k.dtype:
        raise TypeError(f"attention: query and key must have one dtype; got {q.dtype} and {k.dtype} ({shapes}).")
    if q.device != k.device:
        raise ValueError(f"attention: query and key must be on one device; got {q.device} and {k.device} ({shapes}).")
    if q.ndim < 2 or k.ndim != q.ndim:
        raise ShapeError(
            "attention: query and key must both be (…, heads, n, dim), or both (n, dim); "
            f"got {q.ndim} and {k.ndim} dimensions ({shapes})."
        )
    if q.shape[-1] != k.shape[-1] or q.shape[-1] == 0:
        raise ShapeError(
            f"attention: query and key must have the same dim, at least 1; got {q.shape[-1]} and {k.shape[-1]} ({shapes})."
        )
    if q.shape[:-3] != k.shape[:-3]:
        raise ShapeError(
            f"attention: query and key must have the same batch dimensions; got {tuple(q.shape[:-3])} and "
            f"{tuple(k.shape[:-3])} ({shapes})."
        )
    if q.ndim > 2:
        heads, kv_heads = q.shape[-3], k.shape[-3]
        if (heads == 0) != (kv_heads == 0) or (kv_heads and heads % kv_heads):
            raise ShapeError(
                f"attention: the number of key heads must divide the number of heads; got {heads} heads and "
                f"{kv_heads} key heads ({shapes})."
            )
    return q, k


def mask_fits(mask: object, batch: int, heads: int, queries: int, keys: int, device: torch.device) -> Mask:
    """A mask that lies on a matrix of that size."""
    from regard.masks import Mask

    if isinstance(mask, Tensor):
        _refuse_tensor_mask("attention", mask)
    if not isinstance(mask, Mask):
        raise TypeError(
            f"attention: mask must be one of regard.masks, such as causal & padding(lengths); got {type(mask).__name__}."
        )
    mask_lies_on("attention", mask, batch, heads, queries, keys)
    for held in mask.tensors():
        if held.device != device:
            raise ValueError(f"attention: mask and query must be on one device; got {held.device} and {device}.")
    return mask


def mask_lies_on(operation: str, mask: Mask, batch: int | None, heads: int | None, queries: int, keys: int) -> None:
    """A mask whose tensors have that size; None = any."""
    if misfits := mask.misfits(batch, heads, queries, keys):
        sizes = {"batch": batch, "heads": heads, "queries": queries, "keys": keys}
        given = ", ".join(f"{name} {size}" for name, size in sizes.items() if size is not None)
        raise ShapeError(f"{operation}: {'; '.join(misfits)} ({given}).")


def scale(value: float | None, dim: int) -> float:
    """A finite number; None = 1/√dim."""
    if value is None:
        return 1 / math.sqrt(dim)
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise TypeError(f"attention: scale must be a finite number; got {value!r}.")
    return number


def offset(value: int | Tensor | None, batch: int, queries: int, keys: int) -> int | tuple[int, ...]:
    """The position of query 0 among the keys: one number, or one per batch row."""
    if value is None:
        return keys - queries
    if not isinstance(value, Tensor | bool) and hasattr(value, "__index__"):
        return whole_number("attention", "offset", value, least=-FARTHEST)
    if not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"attention: offset must be None, an int or an integer tensor of shape (batch,); got {value!r}.")
    if value.ndim == 0:
        return int(value)
    if tuple(value.shape) != (batch,):
        raise ShapeError(f"attention: offset must have shape (batch,) = ({batch},); got {_shape(value)}.")
    return tuple(value.tolist())


# -- masks ------------------------------------------------------------------------------------------------------------


def _refuse_tensor_mask(operation: str, value: Tensor) -> NoReturn:
    if operation.startswith("padding"):
        raise TypeError(
            f"{operation}: must be boolean, (batch, keys), True for the keys to keep; got {value.dtype} of shape "
            f"{_shape(value)}. If 1 means keep, write padding(keep=tensor.bool())."
        )
    if value.dtype == torch.bool:
        raise TypeError(
            f"{operation}: a boolean tensor of shape {_shape(value)} does not say whether True keeps or drops: write "
            "regard.masks.dense(tensor) if True = may attend, dense(~tensor) if True = hidden."
        )
    raise TypeError(
        f"{operation}: a mask is boolean; got a {value.dtype} tensor of shape {_shape(value)}. If 1 means may attend, "
        "write regard.masks.dense(tensor.bool()); numbers that are added to the scores are a bias, not a mask."
    )


def boolean_mask(operation: str, value: object, most: int) -> Tensor:
    """A boolean tensor of at least one and at most so many dimensions."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{operation}: needs a boolean tensor; got {type(value).__name__}.")
    if value.dtype != torch.bool:
        _refuse_tensor_mask(operation, value)
    if not 1 <= value.ndim <= most:
        raise ShapeError(f"{operation}: needs 1 to {most} dimensions; got {value.ndim} (shape {_shape(value)}).")
    return value


def lengths_tensor(value: Tensor) -> Tensor:
    """A one-dimensional tensor of lengths."""
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        hint = "; a boolean tensor of kept keys is padding(keep=tensor)" if value.dtype == torch.bool else ""
        raise TypeError(f"padding: lengths must be integers; got {value.dtype} of shape {_shape(value)}{hint}.")
    if value.ndim != 1 or len(value) == 0:
        raise ShapeError(
            f"padding: lengths must have shape (batch,); got {_shape(value)}. "
            "A mask of kept keys is padding(keep=tensor.bool())."
        )
    return value


def at_least_one_length(values: Sequence[object]) -> None:
    """At least one length."""
    if not values:
        raise ShapeError("padding: lengths must name at least one batch row; got none.")


def whole_number(operation: str, name: str, value: object, least: int | None = 0) -> int:
    """An integer, not below least."""
    if isinstance(value, bool | Tensor) or not hasattr(value, "__index__"):
        raise TypeError(f"{operation}: {name} must be an integer; got {value!r}.")
    number = operator.index(value)
    if least is not None and number < least:
        raise ValueError(f"{operation}: {name} must be at least {least}; got {number}.")
    if number > FARTHEST:
        raise ValueError(f"{operation}: {name} must be at most 2**60; got {number}.")
    return number


def reach(operation: str, name: str, value: object, least: int = 0) -> int:
    """How far a mask reaches: an integer, where anything beyond every position means without end."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = max(min(value, FARTHEST), -FARTHEST) if least < 0 else min(value, FARTHEST)
    return whole_number(operation, name, value, least)


def indices(operation: str, value: object, device: torch.device | None) -> Tensor:
    """Integers that index an axis, as int64."""
    tensor = torch.as_tensor(value, device=device)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{operation}: batch, head, query and key are integers; got {tensor.dtype} of shape {_shape(tensor)}.")
    return tensor.long()


def function(operation: str, value: object) -> Callable[..., Any]:
    """Something that can be called."""
    if not callable(value):
        raise TypeError(f"{operation}: needs a function of (batch, head, query, key); got {type(value).__name__}.")
    return value


def where_result(value: object, wanted: torch.Size, expression: str) -> Tensor:
    """What a where function gave back: booleans that broadcast to the tile."""
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{expression}: the function must return a boolean tensor; got {got}.")
    try:
        fits = torch.broadcast_shapes(value.shape, wanted) == wanted
    except RuntimeError:
        fits = False
    if not fits:
        raise ShapeError(
            f"{expression}: the function's result must broadcast to (batch, heads, queries, keys) = {tuple(wanted)}; "
            f"got {_shape(value)}."
        )
    return value


def combined(symbol: str, other: object) -> NoReturn:
    """What a mask was combined with, and is no mask."""
    if isinstance(other, Tensor):
        _refuse_tensor_mask(f"mask {symbol} tensor", other)
    raise TypeError(f"mask {symbol} other: a mask combines with masks only; got {type(other).__name__}.")


# -- questions --------------------------------------------------------------------------------------------------------


def questions(operation: str, asked: Sequence[object]) -> None:
    """Values of regard.readouts."""
    from regard.readouts.base import Readout

    for question in asked:
        if not isinstance(question, Readout):
            raise TypeError(f"{operation}: questions are values of regard.readouts, such as TopK(8); got {question!r}.")


def operand(operation: str, name: str, value: object, device: torch.device) -> Tensor:
    """A value or r, on the matrix's device."""
    given = tensor(operation, name, value)
    if given.device != device:
        raise ValueError(f"{operation}: {name} must be on the matrix's device {device}; got {given.device}.")
    return given


def operand_shape(
    operation: str, name: str, axis: str, given: Tensor, length: int, wanted: str, fits: bool, shape: Sequence[int]
) -> None:
    """A value with one row per key, or an r with one row per query, and heads that fit."""
    rows = given.shape[0] if given.ndim == 1 else given.shape[-2]
    if rows != length:
        raise ShapeError(
            f"{operation}: {axis} and {name} must have the same length; got {length} {axis} (matrix {tuple(shape)}) and "
            f"{rows} {name} (shape {_shape(given)})."
        )
    if not fits:
        raise ShapeError(
            f"{operation}: {name} must have shape {wanted}; got {_shape(given)} for a matrix of shape {tuple(shape)}."
        )


def unchanged(watched: Iterable[tuple[Tensor, int]]) -> None:
    """Tensors that were not changed in place since the matrix was built."""
    from regard.masks.algebra import version

    for held, then in watched:
        if version(held) != then:
            raise Changed(
                f"attention: a tensor of shape {_shape(held)} was changed in place after the matrix was built (version "
                f"{then}, now {version(held)}): the answers would be those of another matrix. Build it again, or clone first."
            )


def fits_dense(shape: Sequence[int], bytes_each: int, limit: int | None) -> None:
    """A dense matrix within the limit."""
    size = math.prod(shape) * bytes_each
    if limit is not None and size > limit:
        raise TooLarge(
            f"to_dense: a matrix of shape {tuple(shape)} would take {human(size)}, above the limit of {human(limit)}. "
            "A @ v, A.topk(k), A.entropy(), A.sum(-2), A.pool((64, 64)) and rows such as A[0, 0, 10] answer without it; "
            "to_dense(limit=None) builds it all the same."
        )


def human(size: float) -> str:
    """A number of bytes as a person says it."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:,.3g} TiB" if size < 1000 else f"{size:,.0f} TiB"


def dimension(operation: str, dim: object, ndim: int, allowed: dict[int, str], instead: str) -> int:
    """One of the allowed dimensions, counted from the end."""
    if isinstance(dim, bool) or not isinstance(dim, int) or not -ndim <= dim < ndim:
        raise IndexError(f"{operation}: dim must be an integer from {-ndim} to {ndim - 1}; got {dim!r}.")
    back = dim if dim < 0 else dim - ndim
    if back not in allowed:
        names = " or ".join(f"{d} ({name})" for d, name in allowed.items())
        raise Unsupported(
            f"{operation}: dim {dim} of an attention matrix has no answer of size O(n); use {names}, or {instead}."
        )
    return back


def choice(operation: str, name: str, value: object, allowed: Sequence[object]) -> None:
    """One of a few values."""
    if value not in allowed:
        raise ValueError(f"{operation}: {name} must be one of {', '.join(map(repr, allowed))}; got {value!r}.")
