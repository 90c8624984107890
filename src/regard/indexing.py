"""A[…]: which parts stay lazy and which become numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from regard import checks
from regard.call import Call
from regard.compiled.spans import Span
from regard.layout import Layout
from regard.plan import Axes

if TYPE_CHECKING:
    from regard.attention import Attention

Item: TypeAlias = "int | slice | Sequence[int] | Tensor"
Index: TypeAlias = Any  # an Item, an Ellipsis or a tuple of them
PAIRS = 128  # pairs of (query, key) that are looked up at once


def select(A: Attention, index: Index) -> Any:
    """The part of A that index names."""
    *leading, rows, columns = _expanded(index, A)
    A.call.check_unchanged()
    part = _leading(A, leading) if any(not _is_all(item) for item in leading) else A
    if isinstance(rows, slice) and isinstance(columns, slice):
        return _columns(_rows(part, rows), columns)
    if isinstance(rows, int):
        return _rows(part, slice(rows, rows + 1)).to_dense()[..., 0, :][..., columns]
    if isinstance(rows, Tensor) and isinstance(columns, Tensor):
        return _pairs(part, rows, columns)
    narrowed = _columns(_rows(part, _flat(rows)), _flat(columns))
    numbers = narrowed.to_dense()
    if isinstance(columns, Tensor):
        return numbers.unflatten(-1, columns.shape) if columns.ndim != 1 else numbers
    if isinstance(columns, int):
        numbers = numbers[..., 0]
    if isinstance(rows, Tensor) and rows.ndim != 1:
        return numbers.unflatten(-1 if isinstance(columns, int) else -2, rows.shape)
    return numbers


def _is_all(item: Any) -> bool:
    return isinstance(item, slice) and item.start is None and item.stop is None and item.step is None


def _flat(item: int | slice | Tensor) -> slice | list[int]:
    if isinstance(item, int):
        return slice(item, item + 1)
    return item if isinstance(item, slice) else _run(item.flatten().tolist())


def _run(places: list[int]) -> slice | list[int]:
    """Neighbours in order as a slice, which takes a view and keeps the axis a range."""
    first = places[0] if places else 0
    return slice(first, first + len(places)) if places == list(range(first, first + len(places))) else places


def _expanded(index: Index, A: Attention) -> list[Any]:
    """One int, slice or index tensor for each dimension, counted from 0."""
    given = list(index) if isinstance(index, tuple) else [index]
    dots = [n for n, item in enumerate(given) if item is Ellipsis]
    ndim = A.ndim
    if len(dots) > 1 or len(given) - len(dots) > ndim:
        raise IndexError(f"A[…]: at most {ndim} indices and one ellipsis; got {index!r}.")
    at = dots[0] if dots else len(given)
    given[at : at + len(dots)] = [slice(None)] * (ndim - len(given) + len(dots))
    axes = ["batch rows"] * len(A.layout.batch) + ["heads"] * (A.layout.heads is not None) + ["queries", "keys"]
    items = [_item(item, size, axis) for item, size, axis in zip(given, A.shape, axes, strict=True)]
    picks = [n for n, item in enumerate(items) if isinstance(item, Tensor)]
    if len(picks) > 1 and picks != [ndim - 2, ndim - 1]:
        raise IndexError("A[…]: index tensors on more than one dimension go on queries and keys together, and nowhere else.")
    for n in picks:
        item = items[n]
        if axes[n] == "heads" and isinstance(item, Tensor) and item.ndim != 1:
            raise IndexError(f"A[…]: an index tensor on heads has one dimension; got shape {tuple(item.shape)}.")
    return items


def _item(item: Any, size: int, axis: str) -> int | slice | Tensor:
    if isinstance(item, slice):
        if item.step is not None and item.step < 1:
            raise ValueError(f"A[…]: a slice must step forward; got step {item.step}.")
        return item
    if isinstance(item, Tensor | Sequence | np.ndarray) and not isinstance(item, str):
        if torch.compiler.is_compiling():
            raise checks.Unsupported(checks.INDEX_IN_A_GRAPH)
        return _places(_index_tensor(item), size, axis)
    if isinstance(item, int | torch.SymInt) and not isinstance(item, bool):
        return _place(cast(int, item), size, axis)
    if isinstance(item, bool | np.bool_) or not hasattr(item, "__index__"):
        raise IndexError(f"A[…]: takes integers, slices, an ellipsis and index tensors; got {item!r}.")
    return _place(int(item.__index__()), size, axis)


def _index_tensor(item: Any) -> Tensor:
    try:
        tensor = torch.as_tensor(item)
    except (TypeError, ValueError, RuntimeError) as error:
        raise IndexError(f"A[…]: an index tensor holds integers; got {item!r}.") from error
    if not tensor.numel() and tensor.dtype != torch.bool:
        return tensor.long()  # an empty list is a tensor of floats
    if tensor.is_floating_point() or tensor.is_complex() or (tensor.dtype == torch.bool and tensor.ndim != 1):
        raise IndexError(f"A[…]: an index tensor holds integers; got {tensor.dtype} of shape {tuple(tensor.shape)}.")
    return tensor


def _place(index: int, size: int, axis: str) -> int:
    if not -size <= index < size:
        raise IndexError(f"A[…]: index {index} is out of range for {size} {axis}.")
    return index + size if index < 0 else index


def _places(index: Tensor, size: int, axis: str) -> int | Tensor:
    """The places that an index tensor names, on the CPU: those marked True, or those counted, also from the end."""
    if index.dtype == torch.bool:
        if len(index) != size:
            raise IndexError(f"A[…]: a boolean index has one entry for each of {size} {axis}; got {len(index)}.")
        return index.nonzero()[:, 0].cpu()
    places = torch.tensor([_place(i, size, axis) for i in index.flatten().tolist()], dtype=torch.int64)
    return int(places) if index.ndim == 0 else places.reshape(index.shape)


def _chosen(axis: Sequence[int], places: slice | list[int]) -> Sequence[int]:
    """A slice of a range is a range; anything else becomes a tuple."""
    return axis[places] if isinstance(places, slice) else tuple(axis[p] for p in places)


def _taken(tensor: Tensor, dim: int, places: slice | list[int]) -> Tensor:
    if isinstance(places, slice):
        return tensor[(slice(None),) * dim + (places,)]
    return tensor.index_select(dim, torch.tensor(places, dtype=torch.int64, device=tensor.device))


def rebuilt(A: Attention, call: Call, layout: Layout | None = None, take: Any = None) -> Attention:
    """A on a part of its call, which watches the same tensors; what is known of the log-sum-exp is narrowed by take."""
    from regard.attention import Attention

    part = Attention(call if torch.is_grad_enabled() else call.constant(), layout or A.layout, A.backend, A.drop)
    if torch.compiler.is_compiling():
        return part
    part._memo.extend(A._memo if take is None else map(take, A._memo))
    return part


def _leading(A: Attention, items: list[Any]) -> Attention:
    """Batch rows and heads: always lazy."""
    call = A.call
    batches, heads, layout = (_traced_places if torch.compiler.is_compiling() else _leading_places)(A.layout, items)

    def narrowed(call: Call) -> Call:
        axes = call.axes
        return replace(
            call,
            query=_taken(_taken(call.query, 0, batches), 1, heads),
            sinks=None if call.sinks is None else _taken(call.sinks, 0, heads),
            combine=_taken(call.combine, 0, heads) if call.combine is not None and len(call.combine) > 1 else call.combine,
            key=_heads_of_key(_taken(call.key, 0, batches), call.shape[1], heads),
            axes=Axes(_chosen(axes.batch, batches), _chosen(axes.heads, heads), axes.queries, axes.keys),
            whole=None if call.whole is None else narrowed(call.whole),
        )

    return rebuilt(A, narrowed(call), layout, lambda t: _taken(_taken(t, 0, batches), 1, heads))


def _leading_places(layout: Layout, items: list[Any]) -> tuple[slice | list[int], slice | list[int], Layout]:
    """Which of the folded batch rows and of the heads are picked, and how they are laid out."""
    batch_items = tuple(items if layout.heads is None else items[:-1])
    batch = torch.arange(math.prod(layout.batch)).reshape(layout.batch)[batch_items]
    batches = slice(None) if all(map(_is_all, batch_items)) else _run(batch.reshape(-1).tolist())
    if layout.heads is None:
        return batches, slice(None), Layout(tuple(batch.shape), None)
    picked = torch.arange(layout.heads)[items[-1]]
    heads = items[-1] if isinstance(items[-1], slice) else _run(picked.reshape(-1).tolist())
    return batches, heads, Layout(tuple(batch.shape), len(picked) if picked.ndim else None)


def _traced_places(layout: Layout, items: list[Any]) -> tuple[slice | list[int], slice | list[int], Layout]:
    """The same by arithmetic, in which lengths may be symbols; for integers and slices."""
    sizes = layout.leading
    slices = [item if isinstance(item, slice) else slice(item, item + 1) for item in items]
    left = [None if isinstance(i, int) else Span(0, n)[i].count for i, n in zip(items, sizes, strict=True)]
    heads, count = slice(None), None
    if layout.heads is not None:
        heads, count = slices.pop(), left.pop()
    shape = tuple([n for n in left if n is not None])
    if all(_is_all(item) for item in slices):
        return slice(None), heads, Layout(shape, count)
    if len(slices) == 1:
        return slices[0], heads, Layout(shape, count)
    places = [0]
    for size, part in zip(layout.batch, slices, strict=True):
        places = [place * size + n for place in places for n in list(range(size))[part]]
    return places, heads, Layout(shape, count)


def _heads_of_key(key: Tensor, heads: int, picked: slice | list[int]) -> Tensor:
    """The key heads that the picked heads meet: still grouped where whole groups were picked in order."""
    if _is_all(picked):
        return key
    group = heads // max(key.shape[1], 1)
    places = list(range(heads))[picked] if isinstance(picked, slice) else picked
    meets = [p // group for p in places]
    whole = [m for m in dict.fromkeys(meets) for _ in range(group)] == meets
    return _taken(key, 1, _run(list(dict.fromkeys(meets)) if whole else meets))


def _rows(A: Attention, places: slice | list[int]) -> Attention:
    if _is_all(places):
        return A

    def narrowed(call: Call) -> Call:
        axes = replace(call.axes, queries=_chosen(call.axes.queries, places))
        whole = None if call.whole is None else narrowed(call.whole)
        return replace(call, query=_taken(call.query, 2, places), axes=axes, whole=whole)

    return rebuilt(A, narrowed(A.call), take=lambda t: _taken(t, 2, places))


def _columns(A: Attention, places: slice | list[int]) -> Attention:
    """A part of the keys, which keeps the log-sum-exp of the whole."""
    if _is_all(places):
        return A
    call = A.call
    axes = replace(call.axes, keys=_chosen(call.axes.keys, places))
    return rebuilt(A, replace(call, key=_taken(call.key, 2, places), axes=axes, whole=call.whole or call))


def _pairs(A: Attention, rows: Tensor, columns: Tensor) -> Tensor:
    """A[…, rows, columns] element by element: a few rows and columns at a time, of which the diagonal is kept."""
    try:
        shape = torch.broadcast_shapes(rows.shape, columns.shape)
    except RuntimeError as error:
        raise IndexError(
            "A[…]: index tensors on queries and keys must broadcast together; got shapes "
            f"{tuple(rows.shape)} and {tuple(columns.shape)}."
        ) from error
    i, j = (x.expand(shape).flatten().tolist() for x in (rows, columns))
    found = [
        _columns(_rows(A, i[n : n + PAIRS]), j[n : n + PAIRS]).to_dense().diagonal(dim1=-2, dim2=-1)
        for n in range(0, max(len(i), 1), PAIRS)
    ]
    return torch.cat(found, -1).unflatten(-1, shape) if len(shape) != 1 else torch.cat(found, -1)
