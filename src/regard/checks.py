"""Every sentence that a user can get back from the matrix and its masks: rule, numbers, shapes."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from regard.biases import Bias
    from regard.biases.distances import Entries
    from regard.masks import Mask
    from regard.scores import Score

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32)
ANSWER_LIMIT = 1 << 30  # bytes of an answer with more numbers per query than there are keys

MASK_AS_BOOLEAN = "a mask is not true or false: combine masks with & | ~ instead of and, or, not; got `{mask}`."
TENSOR_TIMES_MATRIX = (
    "v @ A is not a question to an attention matrix: A @ v averages the values of the keys, A.mT @ r sums over the queries."
)
DIAGONAL = (
    "torch.diagonal counts from the matrix's corner; A.diagonal(offset) counts from each query's own position among the keys."
)
STORE_NOTHING = (
    "A @ v, A.topk(k), A.entropy(), A.sum(-2), A.pool((64, 64)) and rows such as A[0, 0, 10] answer without it; "
    "to_dense(limit=None) builds it all the same."
)
NOT_IN_A_GRAPH = (
    "torch.compile: a compiled graph knows regard's own masks, biases, readouts and backends by name, and not {name}: use it "
    "outside of the compiled function, or in a function marked with @torch.compiler.disable."
)
ONCE_IN_A_GRAPH = (
    "attention: a compiled graph has first derivatives only; for gradients of gradients call the function without "
    "torch.compile."
)
INDEX_IN_A_GRAPH = (
    "A[…]: a compiled graph takes integers and slices; for chosen queries or keys ask A.read(Rows((0, 3))) or "
    "A.read(Columns((0, 3)))."
)
BUILT_IN_A_GRAPH = (
    "attention: a matrix that was built inside a compiled function answers A @ v and its questions there, and nowhere else: "
    "return the answers, or return query and key and build it outside."
)
TRANSFORMED_IN_A_GRAPH = (
    "torch.func transforms (vmap, grad, jvp, …) do not go through a reading of a compiled graph: for vmap give query and key "
    "their batch dimensions, (…, heads, n, dim), for grad call backward."
)
FARTHEST = 1 << 60  # no position lies beyond: larger numbers mean "without end", and stay clear of what an int64 can hold


class ShapeError(ValueError):
    """Shapes that do not fit together.

    >>> S @ torch.ones(4)
    Traceback (most recent call last):
        ...
    regard.checks.ShapeError: A @ v: keys and values must have the same length; got 3 keys ... and 4 values ...
    """


class Unsupported(NotImplementedError):
    """Something that regard cannot do; the sentence says what to do instead.

    >>> S * 2
    Traceback (most recent call last):
        ...
    regard.checks.Unsupported: A * x would be a stored matrix: ask first and compute then, as in (A @ v) * x, ...
    """


class NotATensor(Unsupported, AttributeError):
    """An attribute that tensors have and a matrix that is not stored has not."""


class TooLarge(MemoryError):
    """A dense matrix beyond the limit.

    >>> S.to_dense(limit=16)
    Traceback (most recent call last):
        ...
    regard.checks.TooLarge: to_dense: a matrix of shape (3, 3) would take 36 B, above the limit of 16 B. ...
    """


class Changed(RuntimeError):
    """A tensor was changed in place after the matrix was built on it.

    >>> x = torch.ones(3, 1)
    >>> B = regard.attention(x, x)
    >>> x += 1
    >>> B.entropy()
    Traceback (most recent call last):
        ...
    regard.checks.Changed: attention: a tensor of shape (3, 1) was changed in place after the matrix was built ...
    """


def _shape(tensor: Tensor) -> str:
    return listed(tensor.shape)


def one_of(number: int, *allowed: int | None) -> bool:
    """Whether it is one of them; not by `in`, with which torch.compile finds no symbols."""
    found = False
    for other in allowed:
        found = found or number == other
    return found


def listed(sizes: Iterable[int]) -> str:
    """A shape as Python writes it; not by str(), which torch.compile cannot trace where lengths are symbols."""
    numbers = [f"{n}" for n in sizes]
    return f"({', '.join(numbers)}{',' if len(numbers) == 1 else ''})"


# -- the call ---------------------------------------------------------------------------------------------------------


def tensor(operation: str, name: str, value: object) -> Tensor:
    """A dense floating-point tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{operation}: {name} must be a tensor; got {type(value).__name__}.")
    if value.is_nested or value.layout != torch.strided:
        raise TypeError(
            f"{operation}: {name} must be a dense tensor; got layout {value.layout}: pad it and say so with "
            "masks.padding(lengths), or pack it into one row and say so with masks.documents(ids)."
        )
    if value.dtype not in FLOATS:
        raise TypeError(
            f"{operation}: {name} must be float16, bfloat16, float32 or float64; got {value.dtype} of shape {_shape(value)}."
        )
    return value


def query_and_key(query: object, key: object, same_dim: bool) -> tuple[Tensor, Tensor]:
    """Two tensors that a matrix of attention can be made of."""
    q, k = tensor("attention", "query", query), tensor("attention", "key", key)
    if q.dtype != k.dtype:
        raise TypeError(f"attention: query and key must have one dtype; got {q.dtype} and {k.dtype} ({_both(q, k)}).")
    if q.device != k.device:
        raise ValueError(f"attention: query and key must be on one device; got {q.device} and {k.device} ({_both(q, k)}).")
    of_q, of_k = q.shape, k.shape
    if len(of_q) < 2 or len(of_k) != len(of_q):
        raise ShapeError(
            "attention: query and key must both be (…, heads, n, dim), or both (n, dim); "
            f"got {q.ndim} and {k.ndim} dimensions ({_both(q, k)})."
        )
    dim, key_dim = of_q[-1], of_k[-1]
    if (same_dim and dim != key_dim) or 0 in (dim, key_dim):
        raise ShapeError(
            f"attention: query and key must have the same dim, at least 1; got {dim} and {key_dim} ({_both(q, k)})."
        )
    if of_q[:-3] != of_k[:-3]:
        raise ShapeError(
            f"attention: query and key must have the same batch dimensions; got {listed(of_q[:-3])} and "
            f"{listed(of_k[:-3])} ({_both(q, k)})."
        )
    if len(of_q) > 2:
        heads, kv_heads = of_q[-3], of_k[-3]
        if (heads == 0) != (kv_heads == 0) or (kv_heads and heads % kv_heads):
            raise ShapeError(
                f"attention: the number of key heads must divide the number of heads; got {heads} heads and "
                f"{kv_heads} key heads ({_both(q, k)})."
            )
    return q, k


def _both(q: Tensor, k: Tensor) -> str:
    return f"query {_shape(q)}, key {_shape(k)}"


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


def scale(value: float | None, default: float) -> float:
    """A finite number; None = what the score says."""
    if value is None:
        return default
    number = _number(value)
    if not -math.inf < number < math.inf:
        raise TypeError(f"attention: scale must be a finite number; got {value!r}.")
    return number


def _number(value: object) -> float:
    """A number as a float, NaN if it is none, infinity if it is too large for one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def softcap(value: float | None) -> float | None:
    """A finite number above 0."""
    if value is None:
        return None
    number = _number(value)
    if not 0 < number < math.inf:
        raise ValueError(f"attention: softcap must be a finite number above 0; got {value!r}.")
    return number


def sinks(value: object, heads: int, device: torch.device) -> Tensor:
    """One logit per head, or one for all of them."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not _number(value) < math.inf:
            raise ValueError(f"attention: sinks must be below infinity; got {value!r}.")
        return torch.tensor(_number(value), device=device)
    given = tensor("attention", "sinks", value)
    if given.device != device:
        raise ValueError(f"attention: sinks and query must be on one device; got {given.device} and {device}.")
    if given.ndim > 1 or not one_of(given.numel(), 1, heads):
        raise ShapeError(f"attention: sinks must be one number per head, shape ({heads},); got shape {_shape(given)}.")
    return given


def probability(operation: str, name: str, value: object) -> float:
    """A number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{operation}: {name} must be a number from 0 to 1; got {value!r}.")
    return float(value)


def seed(operation: str, value: object) -> int | Tensor:
    """A whole number; one that is drawn inside a graph stays a tensor."""
    if not isinstance(value, Tensor):
        return whole_number(operation, "seed", value)
    if value.ndim or value.is_floating_point() or value.is_complex():
        raise TypeError(f"{operation}: seed must be an integer; got a {value.dtype} tensor of shape {listed(value.shape)}.")
    return value if torch.compiler.is_compiling() else whole_number(operation, "seed", int(value))


def sentences(operation: str, given: Sequence[object]) -> None:
    """At least one text."""
    if not given:
        raise ValueError(f"{operation}: there must be at least one sentence; got none.")
    for text in given:
        if not isinstance(text, str):
            raise TypeError(f"{operation}: sentences must be texts; got {type(text).__name__}.")


def evaluated(operation: str, training: bool) -> None:
    """A model that drops nothing."""
    if training:
        raise ValueError(f"{operation}: the model is in training mode, in which it drops by chance; call model.eval() first.")


def words_fit(operation: str, shape: tuple[int, ...], queries: int, keys: int, most: int) -> None:
    """One word for each row and each column of a matrix that is small enough to be drawn."""
    if shape != (queries, keys):
        raise ShapeError(
            f"{operation}: weights must be (queries, keys) with one word for each; got shape {shape} for {queries} queries and "
            f"{keys} keys. Choose one head, such as A[0, 3]."
        )
    if max(shape, default=0) > most:
        raise TooLarge(
            f"{operation}: at most {most} queries and keys can be drawn with their words; got {shape}. Take a part, "
            "A[0, 3, :64, :64], or a picture of the whole, A.pool((64, 64))."
        )


def comparable(operation: str, first: object, second: object) -> None:
    """Two matrices whose rows can be compared."""
    from regard.attention import Attention

    if not isinstance(second, Attention) or not isinstance(first, Attention):
        raise TypeError(f"{operation}: B must be an attention matrix; got {type(second).__name__}.")
    if first.shape != second.shape:
        raise ShapeError(f"{operation}: both matrices must have one shape; got {tuple(first.shape)} and {tuple(second.shape)}.")
    if first.device != second.device:
        raise ValueError(f"{operation}: both matrices must be on one device; got {first.device} and {second.device}.")


def offset(value: int | Tensor | None, batch: int, queries: int, keys: int) -> int | tuple[int, ...]:
    """The position of query 0 among the keys: one number, or one per batch row; in a compiled graph these stay a tensor."""
    if value is None:
        return keys - queries
    if not isinstance(value, Tensor | bool) and (isinstance(value, int | torch.SymInt) or hasattr(value, "__index__")):
        return whole_number("attention", "offset", value, least=-FARTHEST)
    if not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"attention: offset must be None, an int or an integer tensor of shape (batch,); got {value!r}.")
    _stored("attention: offset", value)
    if value.ndim == 0:
        return cast(Any, value.expand(batch)) if torch.compiler.is_compiling() else int(value)
    if tuple(value.shape) != (batch,):
        raise ShapeError(f"attention: offset must have shape (batch,) = ({batch},); got {_shape(value)}.")
    if torch.compiler.is_compiling():
        return cast(Any, value)
    return tuple(whole_number("attention", "offset", n, least=-FARTHEST) for n in value.tolist())


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
            "regard.masks.dense(tensor) if True = may attend, dense(~tensor) if True = hidden; for (batch, keys), "
            "padding(keep=tensor)."
        )
    raise TypeError(
        f"{operation}: a mask is boolean; got a {value.dtype} tensor of shape {_shape(value)}. If 1 means may attend, "
        "write regard.masks.dense(tensor.bool()); numbers that are added to the scores are a bias, not a mask."
    )


def _stored(operation: str, value: Tensor) -> None:
    """A tensor that stores every number: no jagged, no sparse one."""
    if value.is_nested or value.layout != torch.strided:
        got = "a nested one" if value.is_nested else f"layout {value.layout}"
        raise TypeError(
            f"{operation}: needs a dense tensor; got {got}. Sequences of different lengths are padded, masks.padding(lengths), "
            "or packed, masks.documents(ids)."
        )


def boolean_mask(operation: str, value: object, most: int) -> Tensor:
    """A boolean tensor of at least one and at most so many dimensions."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{operation}: needs a boolean tensor; got {type(value).__name__}.")
    _stored(operation, value)
    if value.dtype != torch.bool:
        _refuse_tensor_mask(operation, value)
    if not 1 <= value.ndim <= most:
        raise ShapeError(f"{operation}: needs 1 to {most} dimensions; got {value.ndim} (shape {_shape(value)}).")
    return value


def lengths_tensor(value: Tensor) -> Tensor:
    """A one-dimensional tensor of lengths, none below 0 as far as one can see without waiting for a device."""
    _stored("padding", value)
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        hint = "; a boolean tensor of kept keys is padding(keep=tensor)" if value.dtype == torch.bool else ""
        raise TypeError(f"padding: lengths must be integers; got {value.dtype} of shape {_shape(value)}{hint}.")
    if value.ndim != 1 or len(value) == 0:
        raise ShapeError(
            f"padding: lengths must have shape (batch,); got {_shape(value)}. "
            "A mask of kept keys is padding(keep=tensor.bool())."
        )
    if value.device.type == "cpu" and not torch.compiler.is_compiling() and int(value.min()) < 0:
        raise ValueError(f"padding: lengths must be at least 0; got {int(value.min())}.")
    return value


def ids(operation: str, name: str, value: object) -> Tensor:
    """Integers, one per place, with or without batch rows; what is not yet a tensor becomes one."""
    if isinstance(value, Tensor) and (value.is_nested or value.layout != torch.strided):
        layout = "nested" if value.is_nested else value.layout
        raise TypeError(
            f"{operation}: {name} must be a dense tensor; got layout {layout}. The mask of a packed (jagged) tensor is "
            "masks.documents.from_cu_seqlens(tensor.offsets())."
        )
    if not isinstance(value, Tensor):
        try:
            value = torch.tensor(value)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"{operation}: {name} must be integers; got {value!r:.60}.") from None
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{operation}: {name} must be integers; got {value.dtype} of shape {_shape(value)}.")
    if value.ndim not in (1, 2):
        raise ShapeError(f"{operation}: {name} must have one dimension, or two with the batch; got shape {_shape(value)}.")
    return value


def ids_match(keys: Tensor, queries: Tensor) -> None:
    """The ids of keys and those of queries can be compared."""
    if keys.device != queries.device:
        raise ValueError(f"documents: ids and query_ids must be on one device; got {keys.device} and {queries.device}.")
    if keys.ndim == queries.ndim == 2 and 1 != len(keys) != len(queries) != 1:
        raise ShapeError(
            f"documents: ids and query_ids must have the same batch rows; got {_shape(keys)} and {_shape(queries)}."
        )


def cu_seqlens(name: str, value: object) -> Tensor:
    """Where each of several documents begins, and where the last one ends."""
    begins = ids("documents", name, value)
    if begins.ndim != 1 or len(begins) == 0:
        raise ShapeError(f"documents: {name} must have shape (documents + 1,), as [0, 3, 10] has; got shape {_shape(begins)}.")
    if torch.compiler.is_compiling():
        raise Unsupported(
            f"documents: a compiled graph does not look at numbers, and {name} is made of them: make the mask outside, or from "
            "ids, documents(ids)."
        )
    steps = begins.long().diff()
    if begins[0] != 0 or (steps < 0).any():
        falls = (steps < 0).nonzero().flatten().tolist()
        got = f"the first is {int(begins[0])}" if begins[0] != 0 else f"falls after entry {falls[0]}"
        raise ValueError(f"documents: {name} must begin with 0 and never fall, as in [0, 3, 10]; {got}.")
    return begins


def as_many_documents(keys: Tensor, queries: Tensor) -> None:
    """Two cu_seqlens that speak of the same documents."""
    if len(keys) != len(queries):
        raise ShapeError(
            "documents: cu_seqlens and query_cu_seqlens must name equally many documents; got "
            f"{len(keys) - 1} and {len(queries) - 1}."
        )


def shift(operation: str, value: object, batch: int) -> int | Tensor:
    """An offset to look at a mask with: one number, or one per batch row."""
    if not isinstance(value, Tensor):
        return whole_number(operation, "offset", value, least=-FARTHEST)
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{operation}: offset must be an int or an integer tensor of shape (batch,); got {value.dtype}.")
    if value.ndim and tuple(value.shape) != (batch,):
        raise ShapeError(f"{operation}: offset must have shape (batch,) = ({batch},); got {_shape(value)}.")
    return value


def at_least_one_length(values: Sequence[object]) -> None:
    """At least one length."""
    if not values:
        raise ShapeError("padding: lengths must name at least one batch row; got none.")


def whole_number(operation: str, name: str, value: object, least: int | None = 0) -> int:
    """An integer, not below least."""
    if isinstance(value, int | torch.SymInt) and not isinstance(value, bool):
        number = cast(int, value)  # a symbol of a graph stays one
    elif isinstance(value, bool | Tensor) or not hasattr(value, "__index__"):
        raise TypeError(f"{operation}: {name} must be an integer; got {value!r}.")
    else:
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


def not_looked_up(error: Exception, expression: str, pairs: Sequence[Tensor]) -> NoReturn:
    """Pairs that do not broadcast, or lie outside of what a mask knows."""
    names = ("batch", "head", "query", "key", "offset")
    shapes = ", ".join(f"{name} {_shape(t)}" for name, t in zip(names, pairs, strict=True))
    said = str(error).replace("torch.Size", "")
    raise IndexError(f"allows: {expression} cannot be looked up there ({shapes}); PyTorch said {said!r}.") from error


def function(operation: str, value: object) -> Callable[..., Any]:
    """Something that can be called."""
    if not callable(value):
        raise TypeError(f"{operation}: needs a function of (batch, head, query, key); got {type(value).__name__}.")
    if torch.compiler.is_compiling():
        return value  # which a compiled graph refuses as a mask
    try:
        inspect.signature(value).bind(0, 0, 0, 0)
    except ValueError:  # a function of C says nothing about its arguments
        return value
    except TypeError as error:
        raise TypeError(f"{operation}: the function must take (batch, head, query, key); got one with {error}.") from error
    return value


def where_failed(error: RuntimeError, device: torch.device, expression: str) -> NoReturn:
    """What went wrong inside a where function."""
    raise ValueError(
        f"{expression}: the function failed on indices on {device}; tensors that it holds must be there too, and broadcast "
        f"with them. PyTorch said {str(error)!r}."
    ) from error


def where_result(value: object, wanted: torch.Size, device: torch.device, expression: str) -> Tensor:
    """What a where function gave back: booleans that broadcast to the tile, where its indices are."""
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{expression}: the function must return a boolean tensor; got {got}.")
    if value.device != device:
        raise ValueError(
            f"{expression}: the function must return a tensor on the device of its indices, {device}; got {value.device}."
        )
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


# -- biases and scores ------------------------------------------------------------------------------------------------


def weights(operation: str, name: str, value: object, shapes: dict[int, str]) -> Tensor:
    """A floating-point tensor with one of those numbers of dimensions."""
    given = tensor(operation, name, value)
    if given.ndim not in shapes:
        raise ShapeError(f"{operation}: {name} must have shape {' or '.join(shapes.values())}; got {_shape(given)}.")
    return given


def dense_bias(value: object) -> Tensor:
    """A floating-point tensor of one to four dimensions, and not a mask."""
    if isinstance(value, Tensor) and value.dtype == torch.bool:
        raise TypeError(
            f"dense: a bias is made of numbers that are added to the scores; got a boolean tensor of shape {_shape(value)}. "
            "Who may attend is a mask: write mask=regard.masks.dense(tensor) if True = may attend, dense(~tensor) if True = "
            "hidden."
        )
    if isinstance(value, Tensor) and not value.is_floating_point() and not value.is_complex():
        raise TypeError(
            f"dense: a bias is made of floating-point numbers; got {value.dtype} of shape {_shape(value)}. Write "
            "regard.biases.dense(tensor.float()) to add them, mask=regard.masks.dense(tensor.bool()) if 1 means may attend."
        )
    given = tensor("dense", "the bias", value)
    if not 1 <= given.ndim <= 4:
        raise ShapeError(f"dense: the bias needs 1 to 4 dimensions; got {given.ndim} (shape {_shape(given)}).")
    return given


def entries(by: object) -> None:
    """What says which entry of a table a distance takes."""
    from regard.biases.distances import Entries

    if not isinstance(by, Entries):
        raise TypeError(
            f"relative: by must be clipped(), t5() or exact(lowest) of regard.biases; got {getattr(by, '__name__', repr(by))}."
        )


def entries_fit(by: Entries, table: Tensor) -> None:
    """A table with a number of entries that can be."""
    if reason := by.why_not(table.shape[1]):
        raise ShapeError(f"relative: {reason} (table {_shape(table)}).")


def temperature(value: object) -> float:
    """A finite number above 0."""
    number = _number(value)
    if not 0 < number < math.inf:
        raise TypeError(f"cosine: temperature must be a finite number above 0, or a tensor of them; got {value!r}.")
    return number


def added(other: object) -> NoReturn:
    """What a bias was added to, and is no bias."""
    from regard.masks import Mask

    if isinstance(other, Tensor):
        raise TypeError(
            f"bias + tensor: got a {other.dtype} tensor of shape {_shape(other)}: write bias + regard.biases.dense(tensor)."
        )
    if isinstance(other, Mask):
        raise TypeError(f"bias + mask: a mask is not added; pass it beside the bias, mask=…; got `{other.expression}`.")
    raise TypeError(
        f"bias + other: a bias adds to biases only, such as alibi(8) + dense(tensor); got {type(other).__name__}. One number "
        "added to every score changes no weight."
    )


def bias_fits(
    bias: object, batch: int, heads: int, queries: int, keys: int, positions: tuple[int, int] | None, device: torch.device
) -> Bias:
    """A bias that fits a matrix of that size; positions = the least and the greatest position of a query, None = later."""
    from regard.biases import Bias
    from regard.masks import Mask

    if isinstance(bias, Tensor):
        raise TypeError(
            f"attention: a bias is one of regard.biases; got a {bias.dtype} tensor of shape {_shape(bias)}: write "
            "regard.biases.dense(tensor)."
        )
    if isinstance(bias, Mask):
        raise TypeError(f"attention: a mask is not a bias; pass it as mask=…; got `{bias.expression}`.")
    if not isinstance(bias, Bias):
        raise TypeError(f"attention: bias must be one of regard.biases, such as alibi(8); got {type(bias).__name__}.")
    if positions is not None:
        bias_lies_on(bias, batch, heads, queries, keys, positions)
    for held in bias.tensors():
        if held.device != device:
            raise ValueError(f"attention: bias and query must be on one device; got {held.device} and {device}.")
    return bias


def bias_lies_on(bias: Bias, batch: int, heads: int, queries: int, keys: int, positions: tuple[int, int]) -> None:
    """A bias whose tensors have that size, and an entry for each distance that occurs."""
    if misfits := bias.misfits(batch, heads, queries, keys, positions):
        raise ShapeError(
            f"attention: {'; '.join(misfits)} (batch {batch}, heads {heads}, queries {queries} at positions {positions[0]} … "
            f"{positions[1]}, keys {keys})."
        )


def score_fits(
    score: object, heads: int, kv_heads: int, dim: int, key_dim: int, device: torch.device, dtype: torch.dtype
) -> Score:
    """A score that compares queries and keys of that size and of that dtype."""
    from regard.scores import Score

    if not isinstance(score, Score):
        raise TypeError(
            "attention: score must be one of regard.scores, such as cosine(0.1); got "
            f"{getattr(score, '__name__', type(score).__name__)}."
        )
    if misfits := score.misfits(heads, kv_heads, dim, key_dim):
        raise ShapeError(f"attention: {'; '.join(misfits)} (heads {heads}, kv_heads {kv_heads}, dim {dim}, key_dim {key_dim}).")
    for held in score.tensors():
        if held.device != device:
            raise ValueError(f"attention: score and query must be on one device; got {held.device} and {device}.")
        if held.dtype == torch.float64 != dtype:
            raise TypeError(
                f"attention: a score with float64 tensors would be computed in float32 for a query of {dtype}; give both in "
                f"float64, or the score in float32 (`{score.expression}`)."
            )
    return score


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
    operation: str,
    name: str,
    axis: str,
    given: Tensor,
    length: int,
    wanted: Callable[[], str],
    fits: bool,
    shape: Sequence[int],
) -> None:
    """A value with one row per key, or an r with one row per query, and heads that fit."""
    rows = given.shape[0] if given.ndim == 1 else given.shape[-2]
    if rows != length:
        raise ShapeError(
            f"{operation}: {axis} and {name} must have the same length; got {length} {axis} (matrix {listed(shape)}) and "
            f"{rows} {name} (shape {_shape(given)})."
        )
    if not fits:
        raise ShapeError(
            f"{operation}: {name} must have shape {wanted()}; got {_shape(given)} for a matrix of shape {listed(shape)}."
        )


def segments(operation: str, value: object, count: int | None) -> tuple[Tensor, int]:
    """The segment of each key, as an int64 tensor of its own, (batch or 1, keys), and how many segments there are."""
    try:
        given = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        given = None
    if given is not None and not isinstance(value, Tensor) and not given.numel():
        given = given.long()  # an empty list is a tensor of floats
    if given is None or given.layout != torch.strided or given.dtype not in INTEGERS:
        got = f"{value!r}" if given is None else f"{given.dtype}, {given.layout}, of shape {_shape(given)}"
        raise TypeError(f"{operation}: segments must be a dense tensor of integers, one per key; got {got}.")
    if given.ndim not in (1, 2):
        raise ShapeError(f"{operation}: segments must have shape (keys,) or (batch, keys); got {_shape(given)}.")
    held = given.detach().to(torch.int64, copy=True)
    rows = held.reshape(-1, held.shape[-1]) if held.ndim == 2 else held[None]
    if torch.compiler.is_compiling():
        if count is None:
            raise Unsupported(f"{operation}: a compiled graph does not look at numbers: say count, the number of segments.")
        return rows, whole_number(operation, "count", count)  # looked at when the graph runs
    least, most = (int(held.min()), int(held.max())) if held.numel() else (0, -1)
    number = most + 1 if count is None else whole_number(operation, "count", count)
    if least < 0 or most >= number:
        raise ValueError(
            f"{operation}: segments must be at least 0 and below count = {number}; got numbers from {least} to {most} "
            f"(shape {_shape(given)})."
        )
    return rows, number


def segments_fit(operation: str, held: Tensor, shape: Sequence[int]) -> None:
    """One segment per key of a (batch, heads, queries, keys) matrix, the same in all batch rows or in each its own."""
    batch, keys = shape[0], shape[-1]
    if held.shape[1] != keys or not one_of(len(held), 1, batch):
        raise ShapeError(
            f"{operation}: segments must have one entry for each of {keys} keys, and 1 or {batch} batch rows; got "
            f"{_shape(held)} for a matrix of shape {listed(shape)} (batch, heads, queries, keys)."
        )


def fits_answer(operation: str, name: str, number: int, shape: Sequence[int], bytes_each: int, instead: str) -> None:
    """More numbers per query than there are keys only in an answer that is not large."""
    size = math.prod(shape[:3]) * number * bytes_each
    if number > shape[3] and max(size, number) > ANSWER_LIMIT:
        raise TooLarge(
            f"{operation}: {name} = {number} for a matrix of {shape[3]} keys (shape {listed(shape)}) would take {human(size)}, "
            f"above the limit of {human(ANSWER_LIMIT)}: {instead}."
        )


def fits_picture(bins: tuple[int, int], shape: Sequence[int], bytes_each: int) -> None:
    """A picture with more bins than the matrix has cells only if it is not large."""
    size = math.prod(shape[:2]) * math.prod(bins) * bytes_each
    if size > ANSWER_LIMIT and math.prod(bins) > math.prod(shape[2:]):
        raise TooLarge(
            f"pool: {bins} bins for each of {math.prod(shape[:2])} heads (shape {tuple(shape)}) would take {human(size)}, "
            f"above the limit of {human(ANSWER_LIMIT)}: at most {tuple(shape[2:])} bins hold something."
        )


def temperatures(values: Tensor) -> Tensor:
    """Temperatures above 0, as far as one can see without waiting for a device."""
    if values.device.type == "cpu" and not torch.compiler.is_compiling() and bool((values <= 0).any()):
        raise ValueError(f"cosine: temperatures must be above 0; got {float(values.min()):g}.")
    return values


def changed(held: Tensor, then: int, now: int) -> NoReturn:
    """A tensor that was changed in place since the matrix was built."""
    raise Changed(
        f"attention: a tensor of shape {_shape(held)} was changed in place after the matrix was built (version {then}, now "
        f"{now}): the answers would be those of another matrix. Build it again, or clone first."
    )


def fits_dense(
    shape: Sequence[int], bytes_each: int, limit: int | None, operation: str = "to_dense", instead: str = STORE_NOTHING
) -> None:
    """A dense matrix within the limit."""
    size = math.prod(shape) * bytes_each
    if limit is not None and size > whole_number(operation, "limit (in bytes)", limit):
        raise TooLarge(
            f"{operation}: a matrix of shape {listed(shape)} would take {human(size)}, above the limit of {human(limit)}. "
            f"{instead}"
        )


def human(size: float) -> str:
    """A number of bytes as a person says it."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:,.3g} TiB" if size < 1000 else f"{size:,.0f} TiB"


def dimension(operation: str, dim: Any, ndim: int) -> int:
    """A dimension, counted from the end."""
    try:
        number = ndim if isinstance(dim, bool) else operator.index(dim)
    except TypeError:
        number = ndim
    if not -ndim <= number < ndim:
        raise IndexError(f"{operation}: dim must be an integer from {-ndim} to {ndim - 1}; got {dim!r}.")
    return number if number < 0 else number - ndim


def dimensions(operation: str, dim: object, ndim: int) -> tuple[int, ...]:
    """One dimension, several, or all of them (None), counted from the end, in order."""
    given = tuple(dim) if isinstance(dim, tuple | list) else () if dim is None else (dim,)
    if not given:
        return tuple(range(-ndim, 0))
    found = {dimension(operation, d, ndim) for d in given}
    if len(found) < len(given):
        raise IndexError(f"{operation}: a dimension is named once; got {dim!r} of {ndim} dimensions.")
    return tuple(sorted(found))


def choice(operation: str, name: str, value: object, allowed: Sequence[object]) -> None:
    """One of a few values."""
    if value not in allowed:
        raise ValueError(f"{operation}: {name} must be one of {', '.join(map(repr, allowed))}; got {value!r}.")
