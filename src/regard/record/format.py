"""A record as one safetensors file: docs/record-format.md says what is in it. Nothing in it is ever executed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from regard import checks
from regard.record import header as headers
from regard.record.header import BadRecord
from regard.record.shapes import arrays_of, misfit
from regard.record.values import Record, Text

KEY = "regard"  # of the header in the file's __metadata__
ZEROS = "0" * 64  # stand for the file's own checksum while it is computed
LONGEST = 100_000_000  # bytes that safetensors reads as a header
TYPES = {"float32": "F32", "int32": "I32"}  # as safetensors calls them


def encode(record: Record) -> bytes:
    """The bytes of a record, the same ones for the same record. Raises BadRecord for one that could not be loaded again."""
    numpy = _safetensors("save")
    tensors = {f"{n}.{name}": array for n, text in enumerate(record.texts) for name, array in text.arrays.items()}
    header = {"sha256": ZEROS, **headers.write(record, {name: _sha(array.tobytes()) for name, array in tensors.items()})}
    try:
        headers.read(header)
        for number, text in enumerate(record.texts):
            _check_arrays(record, number, text, text.arrays)
    except BadRecord as error:
        raise BadRecord(f"save: the record {error}.") from None
    # One key only, and ASCII only: safetensors does not order several, and half a surrogate pair has no UTF-8.
    written = json.dumps(header, separators=(",", ":"))
    data = numpy.save({name: array.copy(order="C") for name, array in tensors.items()}, {KEY: written})
    if int.from_bytes(data[:8], "little") > LONGEST:
        raise checks.Unsupported(
            f"save: texts, tokens and their places take more than {checks.human(LONGEST)}, the most that the header of a "
            "safetensors file may have; save fewer texts in a record."
        )
    digits = _sha(data).encode()
    return data.replace(ZEROS.encode(), digits, 1)  # the first: nothing but names of fields stands before it


def load(path: str | Path) -> Record:
    """Read a record that `Record.save` wrote. Raises `regard.record.BadRecord`, one sentence, if it is not as it was.

    >>> made.save(folder / "cat.regard.safetensors")
    >>> regard.load(folder / "cat.regard.safetensors").texts[0].text
    'The cat sat.'
    """
    try:
        return decode(Path(path).read_bytes())
    except BadRecord as error:
        raise BadRecord(f"load: {str(path)!r} {error}.") from error.__cause__
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadRecord(f"load: {str(path)!r} cannot be read: {why}.") from error


def decode(data: bytes) -> Record:
    """A record from its bytes; the text of a BadRecord goes on after the name of the file."""
    layout, header = _headers(data)
    due = header.get("sha256")
    if not isinstance(due, str) or len(due) != len(ZEROS) or not due.isascii():
        raise BadRecord("is damaged: its header has no checksum")
    if _sha(data.replace(due.encode(), ZEROS.encode(), 1)) != due:
        raise BadRecord(f"is damaged: {_damaged(data, layout, header)}")
    parsed = headers.read(header)
    tensors = _tensors(data, layout)
    texts = []
    for number, words in enumerate(parsed.texts):
        prefix = f"{number}."
        arrays = {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
        _check_arrays(parsed, number, words, arrays)
        ordered = {name: arrays[name] for name in arrays_of(parsed.readouts)}
        texts.append(Text(words.text, words.ids, words.pieces, words.spans, words.special, ordered))
    names = {f"{number}.{name}" for number in range(len(texts)) for name in texts[number].arrays}
    if strange := sorted(set(tensors) - names):
        raise BadRecord(f"does not fit together: tensor {strange[0]!r} belongs to none of its {len(texts)} texts")
    if set(parsed.checksums) != names:
        raise BadRecord("does not fit together: its checksums are not those of its tensors")
    for name, array in tensors.items():
        if _sha(array.tobytes()) != parsed.checksums[name]:
            raise BadRecord(f"is damaged: tensor {name!r} does not have the SHA-256 that the header says")
    return Record(parsed.model, parsed.revision, tuple(texts), parsed.layers, parsed.readouts, parsed.versions)


def _check_arrays(record: Record | headers.Header, number: int, text: Text, arrays: Mapping[str, NDArray[Any]]) -> None:
    if wrong := misfit(arrays, record.readouts, len(record.layers), record.layers[0].heads, len(text.ids)):
        raise BadRecord(f"does not fit together: in text {number}, {wrong}")


def _headers(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The layout that safetensors reads, and regard's own header in it."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 9 or length > LONGEST or data[8:9] != b"{":
        raise BadRecord(f"is not a record: {len(data)} bytes that do not begin like a safetensors file")
    if len(data) < 8 + length:
        raise BadRecord(f"is cut off: it has {len(data)} bytes, and its header alone has {8 + length}")
    layout = _json(data[8 : 8 + length])
    if layout is None:
        raise BadRecord("is damaged, or not a record: its header is not JSON")
    end = 8 + length + max((offsets[1] for _, offsets in _entries(layout)), default=0)
    if len(data) != end:
        what = "is cut off" if len(data) < end else "is damaged"
        raise BadRecord(f"{what}: it has {len(data)} bytes, and its header says {end}")
    metadata = layout.get("__metadata__")
    inner = metadata.get(KEY) if isinstance(metadata, dict) else None
    header = _json(inner.encode("utf-8", "surrogatepass")) if isinstance(inner, str) else None
    if header is None or header.get("format") != headers.FORMAT:
        raise BadRecord("is not a record: it is a safetensors file of something else, or its header is damaged")
    version = header.get("version")
    if isinstance(version, int) and version > headers.VERSION:
        raise BadRecord(
            f"has version {version} of the format, and this regard reads up to {headers.VERSION}: pip install --upgrade regard"
        )
    return layout, header


def _json(text: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _entries(layout: dict[str, Any]) -> list[tuple[str, tuple[int, int]]]:
    """The tensors that a layout names in the way it should, and where their bytes are."""
    found = []
    for name, entry in layout.items():
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if isinstance(offsets, list) and len(offsets) == 2 and all(type(n) is int and n >= 0 for n in offsets):
            found.append((name, (offsets[0], offsets[1])))
    return found


def _damaged(data: bytes, layout: dict[str, Any], header: dict[str, Any]) -> str:
    """Which part of a file is not what was written, after the checksum of the whole has told that one is not."""
    start = 8 + int.from_bytes(data[:8], "little")
    known = header.get("tensors")
    for name, (begin, end) in _entries(layout):
        if isinstance(known, dict) and name in known and _sha(data[start + begin : start + end]) != known[name]:
            return f"the bytes of tensor {name!r} are not those that were written"
    return "its header is not the one that was written"


def _tensors(data: bytes, layout: dict[str, Any]) -> dict[str, NDArray[Any]]:
    for name, entry in layout.items():
        if name != "__metadata__" and (not isinstance(entry, dict) or entry.get("dtype") not in TYPES.values()):
            kind = entry.get("dtype") if isinstance(entry, dict) else entry
            raise BadRecord(f"does not fit together: tensor {name!r} is {kind}, not one of {', '.join(TYPES.values())}")
    numpy = _safetensors("load")
    from safetensors import SafetensorError

    try:
        found: dict[str, NDArray[Any]] = numpy.load(data)
    except SafetensorError as error:
        raise BadRecord(f"is damaged: {error}") from error
    return found


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _safetensors(operation: str) -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise checks.Unsupported(f"{operation}: a record is a safetensors file: pip install 'regard[record]'.") from error
    return safetensors.numpy
