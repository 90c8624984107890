"""Which arrays a readout has in a record, and whether they belong to the text and the layers beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROWS = ("layers", "heads", "queries")

# Readout → its arrays → their axes. Queries and keys are the tokens; the other axes are at most as long.
ARRAYS: dict[str, dict[str, tuple[str, ...]]] = {
    "topk": {"topk.values": (*ROWS, "k"), "topk.indices": (*ROWS, "k")},
    "entropy": {"entropy": ROWS},
    "logsumexp": {"logsumexp": ROWS},
    "distance": {"distance": ROWS},
    "maximum": {"maximum": ROWS},
    "self": {"self": ROWS},
    "previous": {"previous": ROWS},
    "next": {"next": ROWS},
    "first": {"first": ROWS},
    "special": {"special": ROWS},
    "received": {"received": ("layers", "heads", "keys")},
    "pool": {"pool": ("layers", "heads", "rows", "columns")},
}
READOUTS = tuple(ARRAYS)
HEAD_TABLE = ("entropy", "distance", "first", "special", "previous", "next", "self", "maximum")


def arrays_of(readouts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The arrays of some readouts and their axes."""
    return {name: axes for readout in readouts for name, axes in ARRAYS[readout].items()}


def dtype_of(name: str) -> np.dtype[Any]:
    """int32 for indices of keys, float32 for everything else; little-endian, as on disk."""
    return np.dtype("<i4" if name == "topk.indices" else "<f4")


def misfit(arrays: Mapping[str, NDArray[Any]], readouts: Sequence[str], layers: int, heads: int, tokens: int) -> str | None:
    """What is wrong with the arrays of a text, in words; None if nothing is."""
    wanted = arrays_of(readouts)
    if missing := [name for name in wanted if name not in arrays]:
        return f"{missing[0]!r} is missing"
    if strange := sorted(set(arrays) - set(wanted)):
        return f"{strange[0]!r} belongs to no readout of the record"
    sizes = {"layers": layers, "heads": heads, "queries": tokens, "keys": tokens}
    for name, axes in wanted.items():
        array = arrays[name]
        if array.dtype != dtype_of(name):
            return f"{name!r} must be {dtype_of(name).name}; it is {array.dtype}"
        fits = array.ndim == len(axes) and all(
            size == sizes[axis] if axis in sizes else 1 <= size <= tokens for size, axis in zip(array.shape, axes, strict=True)
        )
        if not fits:
            due = ", ".join(f"{axis} {sizes[axis]}" if axis in sizes else f"{axis} ≤ {tokens}" for axis in axes)
            return f"{name!r} must have the shape ({due}); it has {array.shape}"
        if wrong := _wrong_numbers(name, array, tokens):
            return wrong
    if "topk" in readouts and arrays["topk.values"].shape != arrays["topk.indices"].shape:
        return "'topk.values' and 'topk.indices' differ in shape"
    return None


def _wrong_numbers(name: str, array: NDArray[Any], tokens: int) -> str | None:
    if name == "topk.indices":
        inside = array.size == 0 or (int(array.min()) >= -1 and int(array.max()) < tokens)
        return None if inside else f"{name!r} must name keys from 0 to {tokens - 1}, or -1; it has others"
    finite = np.isfinite(array)
    if name == "logsumexp":
        finite |= array == -math.inf  # a query that sees no key
    return None if bool(finite.all()) else f"{name!r} must hold finite numbers; it has others"
