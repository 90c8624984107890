"""Pictures: a mask in text, a matrix as a small image in a notebook, a small matrix with its words."""

from __future__ import annotations

import base64
import html
import struct
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regard import checks
from regard.masks import Mask
from regard.masks.algebra import EMPTY, FULL, MIXED, Box, grid

if TYPE_CHECKING:
    from regard.attention import Attention

__all__ = ["svg"]

SYMBOLS = {EMPTY: "·", MIXED: "▒", FULL: "■", None: "?"}
LOOKED_AT = 1 << 12  # pairs that are evaluated at once to find out what a cell holds
LOOKS = 1 << 10  # how often one picture may look; cells beyond are drawn as unknown
SWEEP_LIMIT = 1 << 31  # pairs that a notebook may compute to show a matrix unasked
SIDE = 64  # bins of a thumbnail
SHOWN = 16  # heads shown
MOST = 128  # words on a side of a picture with words
SQUARE, LETTER = 26, 6.5  # pixels of a weight, and of a letter beside it
INK = (20, 70, 130)


def draw_mask(mask: Mask, rows: range, columns: range, offset: int, cells: int = 16, batch: int = 0, head: int = 0) -> str:
    """The mask over rows × columns in at most cells × cells symbols; every cell is exact, none is guessed.

    A large picture of a mask that can only be known pair by pair may end in cells that were not looked at: "?".
    """
    looks = iter(range(LOOKS))
    tall, wide = (max(1, -(-len(n) // cells)) for n in (rows, columns))

    def kind(rows: range, columns: range) -> int | None:
        top, bottom, left, right = (np.array([n]) for axis in (rows, columns) for n in (axis[0], axis[-1]))
        found = int(mask.box(Box((batch,), (head,), top, bottom, left, right, offset, offset))[0])
        if found != MIXED:
            return found
        if next(looks, None) is None:
            return None
        if len(rows) * len(columns) <= LOOKED_AT:
            device = next((t.device for t in mask.tensors()), torch.device("cpu"))
            seen = mask.allows(*grid((batch,), (head,), rows, columns, device), offset)
            return FULL if bool(seen.all()) else MIXED if bool(seen.any()) else EMPTY
        quarters = (kind(r, c) for r in _cut(rows) for c in _cut(columns))
        first = next(quarters)
        if first in (MIXED, None):
            return first
        other = next((q for q in quarters if q != first), first)
        return MIXED if other in (EMPTY, FULL) and other != first else other

    lines = [
        " ".join(SYMBOLS[kind(rows[i : i + tall], columns[j : j + wide])] for j in range(0, len(columns), wide))
        for i in range(0, len(rows), tall)
    ]
    size = f"{len(rows)} queries × {len(columns)} keys"
    return "\n".join([*lines, size if tall == wide == 1 else f"{size}, one cell = {tall} × {wide}"])


def _cut(axis: range) -> list[range]:
    middle = len(axis) // 2
    return [axis[:middle], axis[middle:]] if middle else [axis]


def html_of(attention: Attention) -> str:
    """Thumbnails of the heads of the first batch row, each pooled to at most 64 × 64 and as dark as its weights."""
    title = html.escape(repr(attention))
    batch, heads, queries, keys = attention.call.shape
    if not all(attention.call.shape):
        return f"<p><code>{title}</code>: nothing to draw.</p>"
    if heads * queries * keys > SWEEP_LIMIT:
        return f"<p><code>{title}</code>: too large to be drawn unasked; ask for A.pool((64, 64)).</p>"
    bins = (min(SIDE, queries), min(SIDE, keys))
    first = attention[(0,) * len(attention.layout.batch)]
    first = first if attention.layout.heads is None else first[:SHOWN]
    pooled = first.pool(bins).detach().float().reshape(-1, *bins).cpu().numpy()
    figures = "".join(_figure(image, head) for head, image in enumerate(pooled))
    more = "" if batch == 1 and heads <= SHOWN else f" (batch row 0, {len(pooled)} of {heads} heads)"
    note = f"mean weight in {bins[0]} × {bins[1]} bins; queries run down, keys across{more}"
    return f"<div><code>{title}</code><br>{note}<div style='display:flex;flex-wrap:wrap;gap:8px'>{figures}</div></div>"


def _figure(image: NDArray[np.float32], head: int) -> str:
    unknown = int(np.isnan(image).sum())
    image = np.nan_to_num(image)
    top = float(image.max())
    caption = f"head {head}: up to {top:.3g}" + (f", NaN in {unknown} bins" if unknown else "")
    dark = np.sqrt(image / top) if top > 0 else image
    data = base64.b64encode(png(255 - np.round(255 * dark).astype(np.uint8))).decode()
    return (
        "<figure style='margin:0;text-align:center;font-size:smaller'>"
        f"<img width=128 height=128 style='image-rendering:pixelated;border:1px solid #888' alt='{caption}' "
        f"src='data:image/png;base64,{data}'><figcaption>{caption}</figcaption></figure>"
    )


def svg(weights: Tensor | Attention, queries: Sequence[str], keys: Sequence[str]) -> str:
    """One matrix with its words: queries down, keys across, squares as dark as the root of their weight, from 0.1 on a number.

    Args:
        weights: (queries, keys), each from 0 to 1, such as A[0, 3] or a mean over heads; at most 128 of each.
        queries, keys: what stands beside the rows and above the columns.

    Raises:
        ShapeError: not one word for each row and column. TooLarge: more than 128 of them.

    >>> drawn = svg(torch.eye(2), ["to", "help"], ["zu", "helfen"])
    >>> drawn[:4], drawn.count("<rect")
    ('<svg', 5)
    """
    checks.words_fit("svg", tuple(weights.shape), len(queries), len(keys), MOST)
    dense = (weights if isinstance(weights, Tensor) else weights.to_dense()).detach().float().cpu()
    left, top = (12 + LETTER * max(map(len, words), default=0) for words in (queries, keys))
    drawn = [
        f'<text x="{left - 5:g}" y="{top + SQUARE * (n + 0.5) + 4:g}" text-anchor="end">{html.escape(word)}</text>'
        for n, word in enumerate(queries)
    ]
    drawn += [
        f'<text transform="translate({left + SQUARE * (n + 0.5) + 4:g} {top - 5:g}) rotate(-90)">{html.escape(word)}</text>'
        for n, word in enumerate(keys)
    ]
    for i, row in enumerate(dense.tolist()):
        for j, weight in enumerate(row):
            drawn.append(_square(left + j * SQUARE, top + i * SQUARE, weight))
    width, height = left + SQUARE * len(keys) + 4, top + SQUARE * len(queries) + 4
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    title = f"attention weights of {len(queries)} queries (down) and {len(keys)} keys (across)"
    style = "text{font:12px sans-serif}.n{font-size:10px;text-anchor:middle}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size}><title>{title}</title><style>{style}</style>'
    return "\n".join([f'{head}<rect width="100%" height="100%" fill="#fff"/>', *drawn, "</svg>", ""])


def _square(x: float, y: float, weight: float) -> str:
    if weight != weight:
        return f'<text class="n" x="{x + SQUARE / 2:g}" y="{y + SQUARE / 2 + 3:g}">NaN</text>'
    dark = min(max(weight, 0.0), 1.0) ** 0.5
    shade = ",".join(str(round(255 + dark * (full - 255))) for full in INK)
    square = f'<rect x="{x:g}" y="{y:g}" width="{SQUARE - 1}" height="{SQUARE - 1}" fill="rgb({shade})"/>'
    if weight < 0.1:
        return square
    number = f"{weight:.2f}".removeprefix("0")
    place = f'x="{x + SQUARE / 2 - 0.5:g}" y="{y + SQUARE / 2 + 3:g}"'
    return f'{square}<text class="n" {place} fill="{"#fff" if dark > 0.5 else "#222"}">{number}</text>'


def png(grey: NDArray[np.uint8]) -> bytes:
    """An 8-bit grey image as PNG (the format's own specification, without a plotting library)."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = grey.shape
    lines = b"".join(b"\0" + line.tobytes() for line in grey)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
