"""regard: self-attention you can look at.

The matrix of attention weights as a lazy value: ask it anything, exactly, in O(n) memory; it is never stored.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from regard import backends, biases, masks, readouts, scores
from regard.attention import Attention, Reading, attention
from regard.checks import Changed, ShapeError, TooLarge, Unsupported

if TYPE_CHECKING:
    from regard import nn
    from regard.embeddings import embed
    from regard.record import Record, load

__version__ = "0.1.0"

__all__ = [
    "Attention",
    "Changed",
    "Reading",
    "Record",
    "ShapeError",
    "TooLarge",
    "Unsupported",
    "attention",
    "backends",
    "biases",
    "embed",
    "load",
    "masks",
    "nn",
    "readouts",
    "scores",
]


def __getattr__(name: str) -> Any:
    """Layers, records and models are imported when they are asked for."""
    if name == "nn":
        return import_module("regard.nn")
    if name == "embed":
        from regard.embeddings import embed

        return embed
    if name in ("Record", "load"):
        from regard import record

        return getattr(record, name)
    raise AttributeError(f"module 'regard' has no attribute {name!r}")
