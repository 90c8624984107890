"""regard: self-attention you can look at.

The matrix of attention weights as a lazy value: ask it anything, exactly, in O(n) memory; it is never stored.
"""

from regard import backends, masks, readouts
from regard.attention import Attention, Reading, attention
from regard.checks import Changed, ShapeError, TooLarge, Unsupported

__version__ = "0.1.0"

__all__ = [
    "Attention",
    "Changed",
    "Reading",
    "ShapeError",
    "TooLarge",
    "Unsupported",
    "attention",
    "backends",
    "masks",
    "readouts",
]
