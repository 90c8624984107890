"""A record as one HTML file that works from disk: data, style and modules are in it, and it asks nobody for anything."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regard.pretrained import Tokens
from regard.record import Record, Text
from regard.record.files import write_whole
from regard.record.shapes import HEAD_TABLE
from regard.view.looks import occurrences

NEEDED = ("topk", "pool", *HEAD_TABLE)  # what the page shows of a record
ROWS = ("special", "self")  # what it says of every query
LARGEST = 4 << 20  # bytes that the weights of a text may take; beyond, the strongest keys of each query have to do
STRONGEST = 8
FULL = 65535  # stands for a weight of 1, so that every weight is exact to 0.00001
IMPORT = re.compile(r"^import\s+(?:\{[^}]*\}\s+from\s+)?\"\./([\w-]+\.js)\";\n", re.MULTILINE)


def write(record: Record, path: str | Path, token: str | None = None) -> None:
    """Write the page of a record, whole or not at all; it opens at a token, or at the most telling one."""
    write_whole(path, render(record, token))


def render(record: Record, token: str | None = None) -> bytes:
    """The page of a record; the same record gives the same bytes."""
    record.require("page", NEEDED)
    style, script = _static("page.css"), modules("app.js")
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_hash(script)}'",
            f"style-src '{_hash(style)}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    parts = {"policy": policy, "style": style, "script": script, "data": _harmless(_data(record, token))}
    # One pass, so that nothing in a part is taken for a place.
    return re.sub(r"\{(policy|style|script|data)\}", lambda place: parts[place[1]], _static("page.html")).encode()


def modules(entry: str) -> str:
    """A module and all that it imports as one script: each file once, after those that it needs.

    The files share one scope then, so that their names at the top level have to differ.
    """
    done: dict[str, str] = {}

    def add(name: str) -> None:
        if name in done:
            return
        done[name] = ""  # on its way; a circle of imports ends here
        source = _static(name)
        for needed in IMPORT.findall(source):
            add(needed)
        del done[name]
        done[name] = re.sub(r"^export (?=(?:async )?function|const|class)", "", IMPORT.sub("", source), flags=re.MULTILINE)

    add(entry)
    return "\n".join(done.values())


def _static(name: str) -> str:
    return (files("regard.view") / "static" / name).read_text(encoding="utf-8")


def _hash(inlined: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(inlined.encode()).digest()).decode()


def _harmless(data: dict[str, Any]) -> str:
    """JSON in which nothing can end the element that it stands in."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _data(record: Record, token: str | None) -> dict[str, Any]:
    """What static/data.js reads; its typedef Raw says what is what."""
    places = None if token is None else occurrences([_tokens(text) for text in record.texts], token)
    return {
        "model": record.model,
        "revision": record.revision,
        "versions": dict(record.versions),
        "layers": len(record.layers),
        "heads": record.layers[0].heads,
        "kinds": [
            {"kind": layer.kind, "mask": layer.mask, "scale": layer.scale, "kv_heads": layer.kv_heads}
            for layer in record.layers
        ],
        "texts": [_text(text) for text in record.texts],
        "wanted": places,
    }


def _tokens(text: Text) -> Tokens:
    return Tokens(text.text, text.ids, text.pieces, text.spans, text.special)


def _text(text: Text) -> dict[str, Any]:
    arrays = text.arrays
    values, indices = arrays["topk.values"], arrays["topk.indices"]
    count = len(text.pieces)
    whole = values.shape[-1] == count and 2 * values.size <= LARGEST
    if whole:
        values = _by_key(values, indices)
    else:
        values, indices = values[..., :STRONGEST], indices[..., :STRONGEST]
    width = 1 if count <= 255 else 2
    none = (1 << 8 * width) - 1
    pool = arrays["pool"]
    return {
        "text": text.text,
        "pieces": list(text.pieces),
        "spans": [list(span) for span in text.spans],
        "special": [int(special) for special in text.special],
        "kept": values.shape[-1],
        "weights": _base64(_sixteen_bits(values)),
        "indices": None if whole else _base64(np.where(indices < 0, none, indices).astype(f"<u{width}")),
        "bytes": width,
        "bins": list(pool.shape[-2:]),
        "pictures": _base64(_pictures(pool, text.special)),
        "rows": {name: _base64(_sixteen_bits(arrays[name])) for name in ROWS},
        "means": {name: _base64(arrays[name].mean(-1).astype("<f4")) for name in HEAD_TABLE},
    }


def _by_key(values: NDArray[Any], indices: NDArray[Any]) -> NDArray[Any]:
    """All weights of a text in the order of its keys; places without a key have the index -1 and weigh nothing."""
    *rows, count = values.shape
    ordered = np.zeros((*rows, count + 1), values.dtype)  # the last column takes what has no key
    np.put_along_axis(ordered, indices.astype(np.int64) % (count + 1), values, -1)
    return ordered[..., :count]


def _sixteen_bits(weights: NDArray[Any]) -> NDArray[Any]:
    return np.rint(np.clip(weights.astype(np.float64), 0, 1) * FULL).astype("<u2")


def _pictures(pool: NDArray[Any], special: tuple[bool, ...]) -> NDArray[Any]:
    """How dark each bin is: the square root of its share of the head's largest one beyond separators and the first token."""
    columns, count = pool.shape[-1], len(special)
    aside = [any(special[c * count // columns : (c + 1) * count // columns]) or c == 0 for c in range(columns)]
    beyond = pool[..., [c for c in range(columns) if not aside[c]]]
    most = np.max(beyond if beyond.size else pool, axis=(-2, -1), keepdims=True, initial=0)
    share = np.divide(pool, most, out=np.zeros_like(pool), where=most > 0)
    return np.rint(255 * np.sqrt(np.clip(share, 0, 1))).astype(np.uint8)


def _base64(array: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
