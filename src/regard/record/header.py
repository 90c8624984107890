"""The header of a record's file: everything that is not an array, as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from regard.record.shapes import READOUTS
from regard.record.values import Layer, Record, Text

FORMAT = "regard.record"
VERSION = 1

FIELDS = {
    "sha256": str, "format": str, "version": int, "model": str, "revision": (str, type(None)), "versions": dict,
    "readouts": list, "layers": list, "texts": list, "tensors": dict,
}  # fmt: skip
TEXT_FIELDS = {"text": str, "ids": list, "pieces": list, "spans": list, "special": list}
LAYER_FIELDS = {"kind": str, "heads": int, "kv_heads": int, "scale": float, "mask": str, "offset": int}


class BadRecord(ValueError):
    """A file that is not a record, or no longer the one that was written.

    >>> regard.load(folder / "nothing.regard.safetensors")
    Traceback (most recent call last):
        ...
    regard.record.header.BadRecord: load: '...nothing.regard.safetensors' cannot be read: No such file or directory.
    """


@dataclass(frozen=True)
class Header:
    """What a header says; the texts have no arrays yet."""

    model: str
    revision: str | None
    texts: tuple[Text, ...]
    layers: tuple[Layer, ...]
    readouts: tuple[str, ...]
    versions: Mapping[str, str]
    checksums: Mapping[str, str]


def write(record: Record, checksums: Mapping[str, str]) -> dict[str, Any]:
    """The header of a record, without the checksum of the file."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": record.model,
        "revision": record.revision,
        "versions": dict(sorted(record.versions.items())),
        "readouts": list(record.readouts),
        "layers": [asdict(layer) for layer in record.layers],
        "texts": [
            {
                "text": text.text,
                "ids": list(text.ids),
                "pieces": list(text.pieces),
                "spans": [list(span) for span in text.spans],
                "special": list(text.special),
            }
            for text in record.texts
        ],
        "tensors": dict(sorted(checksums.items())),
    }


def read(header: Mapping[str, Any]) -> Header:
    """A header whose every field is what it must be. Raises BadRecord."""
    _fields(header, FIELDS, "its header")
    if header["version"] != VERSION:
        raise _misfit(f"there is no version {header['version']} of the format")
    for name in ("versions", "tensors"):
        _all_are(str, header[name].values(), f"{name!r}")
    readouts = tuple(header["readouts"])
    if readouts != tuple(name for name in READOUTS if name in readouts):
        raise _misfit(f"'readouts' must be some of {', '.join(READOUTS)}, in this order")
    layers = tuple(_layer(layer, f"layer {number}") for number, layer in enumerate(header["layers"]))
    if not layers or not header["texts"]:
        raise _misfit("there must be a layer and a text")
    if len({layer.heads for layer in layers}) != 1:
        raise _misfit("its layers must all have the same number of heads")
    texts = tuple(_text(text, f"text {number}") for number, text in enumerate(header["texts"]))
    model, revision = header["model"], header["revision"]
    return Header(model, revision, texts, layers, readouts, header["versions"], header["tensors"])


def _layer(layer: Any, where: str) -> Layer:
    _fields(layer, LAYER_FIELDS, where)
    heads, kv_heads, scale = layer["heads"], layer["kv_heads"], layer["scale"]
    if not (0 < kv_heads <= heads and heads % kv_heads == 0 and abs(scale) < math.inf):
        raise _misfit(f"{where} has {heads} heads, {kv_heads} key heads and the scale {scale}")
    return Layer(**layer)


def _text(text: Any, where: str) -> Text:
    _fields(text, TEXT_FIELDS, where)
    count = len(text["ids"])
    for name in ("pieces", "spans", "special"):
        if len(text[name]) != count:
            raise _misfit(f"{where} has {count} tokens in 'ids' and {len(text[name])} in {name!r}")
    if count == 0:
        raise _misfit(f"{where} has no tokens")
    _all_are(int, text["ids"], f"'ids' of {where}")
    _all_are(str, text["pieces"], f"'pieces' of {where}")
    _all_are(bool, text["special"], f"'special' of {where}")
    _all_are(list, text["spans"], f"'spans' of {where}")
    for span in text["spans"]:
        _all_are(int, span, f"'spans' of {where}")
        if len(span) != 2 or not 0 <= span[0] <= span[1] <= len(text["text"]):
            raise _misfit(f"{where} has {len(text['text'])} characters, and a token at {span}")
    spans = tuple((first, last) for first, last in text["spans"])
    return Text(text["text"], tuple(text["ids"]), tuple(text["pieces"]), spans, tuple(text["special"]), {})


def _fields(value: Any, fields: Mapping[str, Any], where: str) -> None:
    """An object with these fields and no others, each of its type."""
    if not isinstance(value, dict):
        raise _misfit(f"{where} must be an object")
    if missing := [name for name in fields if name not in value]:
        raise _misfit(f"{where} has no {missing[0]!r}")
    if strange := [name for name in value if name not in fields]:
        raise _misfit(f"{where} has an unknown field {strange[0]!r}")
    for name, kind in fields.items():
        if not isinstance(value[name], kind) or isinstance(value[name], bool):
            raise _misfit(f"{name!r} of {where} is of a wrong type")


def _all_are(kind: type, values: Any, what: str) -> None:
    if not all(type(value) is kind for value in values):
        raise _misfit(f"{what} must be {kind.__name__} throughout")


def _misfit(what: str) -> BadRecord:
    return BadRecord(f"does not fit together: {what}")
