"""Records on disk: what was saved comes back, and whatever was not saved is refused with one sentence."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("safetensors")

import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

import regard
from regard.checks import Unsupported
from regard.record import READOUTS, BadRecord, Layer, Record, Text, load
from regard.record.format import ZEROS, decode, encode
from regard.record.shapes import arrays_of, dtype_of

LAYER = Layer("self", 1, 1, 0.5, "causal & window(127, 0)", 0)
VERSIONS = {"regard": "0.1.0", "torch": "2.13.0"}


def arrays(tokens: int, layers: int, heads: int, readouts: tuple[str, ...] = READOUTS, seed: int = 0) -> dict[str, Any]:
    """Numbers that could be a record's."""
    generator = np.random.default_rng(seed)
    sizes = {"layers": layers, "heads": heads, "k": min(tokens, 3), "rows": min(tokens, 2), "columns": min(tokens, 4)}
    found = {}
    for name, axes in arrays_of(readouts).items():
        shape = tuple(sizes.get(axis, tokens) for axis in axes)
        drawn = generator.integers(-1, tokens, shape) if name == "topk.indices" else generator.random(shape)
        found[name] = drawn.astype(dtype_of(name))
    return found


def text_of(*pieces: str, layers: int = 1, heads: int = 1, readouts: tuple[str, ...] = READOUTS) -> Text:
    spans, start = [], 0
    for piece in pieces:
        spans.append((start, start + len(piece)))
        start += len(piece)
    read = arrays(len(pieces), layers, heads, readouts)
    special = tuple(piece.startswith("[") for piece in pieces)
    return Text("".join(pieces), tuple(range(len(pieces))), pieces, tuple(spans), special, read)


def record_of(*texts: Text, readouts: tuple[str, ...] = READOUTS) -> Record:
    return Record("a model", None, texts or (text_of("[CLS]", "a"),), (LAYER,), readouts, VERSIONS)


def same(one: Record, other: Record) -> bool:
    plain = [(r.model, r.revision, r.layers, r.readouts, dict(r.versions)) for r in (one, other)]
    words = [[(t.text, t.ids, t.pieces, t.spans, t.special) for t in r.texts] for r in (one, other)]
    numbers = [
        [(n, name, a.dtype, a.shape, a.tobytes()) for n, t in enumerate(r.texts) for name, a in t.arrays.items()]
        for r in (one, other)
    ]
    return plain[0] == plain[1] and words[0] == words[1] and numbers[0] == numbers[1]


# -- round trips -------------------------------------------------------------------------------------------------------

HOSTILE = [
    "\u202eright\u202c",
    "\u200b",
    "👩‍👩‍👧",
    "a\x00b",
    "e\u0301\u0301",
    "</script>",
    '"\\',
    "0" * 64,
    '"sha256":"' + "0" * 64,
    "\ud800",
    "漢",
]


@st.composite
def records(draw: st.DrawFn) -> Record:
    layers, heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    readouts = tuple(name for name in READOUTS if draw(st.booleans()))
    word = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=8))
    layer = st.builds(
        Layer, st.just("self"), st.just(heads), st.sampled_from([n for n in (1, 2, 3) if heads % n == 0]),
        st.floats(allow_nan=False, allow_infinity=False), word, st.integers(-5, 5),
    )  # fmt: skip
    texts = []
    for _ in range(draw(st.integers(1, 3))):
        pieces = tuple(draw(st.lists(word, min_size=1, max_size=7)))
        text = text_of(*pieces, layers=layers, heads=heads, readouts=readouts)
        special = tuple(draw(st.lists(st.booleans(), min_size=len(pieces), max_size=len(pieces))))
        texts.append(dataclasses.replace(text, special=special))
    kinds = tuple(draw(layer) for _ in range(layers))
    versions = draw(st.dictionaries(word, word, max_size=3))
    return Record(draw(word), draw(st.none() | word), tuple(texts), kinds, readouts, versions)


@given(records())
def test_what_was_saved_comes_back_and_is_saved_as_the_same_bytes(record: Record) -> None:
    data = encode(record)
    back = decode(data)
    assert same(record, back)
    assert encode(back) == data


def test_a_file_of_a_record(tmp_path: Path) -> None:
    record, path = record_of(text_of("[CLS]", "it"), text_of("x")), tmp_path / "r.safetensors"
    record.save(path)
    back = regard.load(path)
    assert isinstance(back, regard.Record)
    assert same(record, back)
    back.save(str(path))
    assert path.read_bytes() == encode(record)
    assert os.listdir(tmp_path) == ["r.safetensors"]
    assert repr(back) == "Record('a model', 1 layers of 1 heads, 2 and 1 tokens)"


def test_the_bytes_are_the_same_in_another_process(tmp_path: Path) -> None:
    record = record_of()
    record.save(tmp_path / "one")
    program = "import sys, regard; regard.load(sys.argv[1]).save(sys.argv[2])"
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", program, tmp_path / "one", tmp_path / "two"], env=environment, check=True)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_arrays_are_read_only_and_a_callers_own_stay_writable() -> None:
    mine = arrays(1, 1, 1)
    text = Text("x", (0,), ("x",), ((0, 1),), (False,), mine)
    with pytest.raises(ValueError, match="read-only"):
        text.arrays["entropy"][...] = 0
    with pytest.raises(TypeError):
        text.arrays["entropy"] = mine["self"]  # type: ignore[index]
    mine["entropy"][...] = 0


def test_order_of_memory_does_not_matter() -> None:
    text = text_of("a", "b", "c")
    turned = dataclasses.replace(text, arrays={name: np.asfortranarray(a) for name, a in text.arrays.items()})
    assert encode(record_of(turned)) == encode(record_of(text))


def test_a_query_that_sees_no_key_can_be_saved() -> None:
    text = text_of("a")
    empty = dict(text.arrays) | {"logsumexp": np.full((1, 1, 1), -np.inf, np.float32)}
    back = decode(encode(record_of(dataclasses.replace(text, arrays=empty))))
    assert back.texts[0].arrays["logsumexp"] == -np.inf


# -- damage ------------------------------------------------------------------------------------------------------------


def refusal(data: bytes) -> str:
    with pytest.raises(BadRecord) as refused:
        decode(data)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_every_flipped_bit_is_noticed() -> None:
    data = bytearray(encode(record_of(text_of("a"))))
    for place in range(len(data)):
        for bit in range(8):
            data[place] ^= 1 << bit
            refusal(bytes(data))
            data[place] ^= 1 << bit
    decode(bytes(data))


def test_every_byte_that_changed_in_a_larger_record_is_noticed() -> None:
    data = bytearray(encode(record_of(text_of("[CLS]", "漢", "</script>"), text_of("b"))))
    for place in range(len(data)):
        for other in (0x20, 0x0A, data[place] ^ 0xFF):  # blanks are padding to JSON
            before, data[place] = data[place], other
            if before != other:
                refusal(bytes(data))
            data[place] = before


def test_every_length_that_it_can_be_cut_to_is_refused() -> None:
    data = encode(record_of(text_of("a")))
    header = 8 + int.from_bytes(data[:8], "little")
    for length in range(len(data)):
        said = refusal(data[:length])
        if length > 8:
            assert said.startswith(f"is cut off: it has {length} bytes, and its header ")
            assert said.endswith(f"says {len(data)}" if length >= header else f"alone has {header}")
    assert "is damaged: it has" in refusal(data + b"\0")


def test_damage_is_said_where_it_is() -> None:
    data = encode(record_of(text_of("a")))
    layout = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    place = 8 + int.from_bytes(data[:8], "little") + layout["0.entropy"]["data_offsets"][0]
    flipped = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    assert refusal(flipped) == "is damaged: the bytes of tensor '0.entropy' are not those that were written"
    assert refusal(data.replace(b"a model", b"b model")) == "is damaged: its header is not the one that was written"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is not a record: 0 bytes"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "do not begin like a safetensors file"),
        (b'{"a": 1, "b": [2, 3, 4]}', "do not begin like a safetensors file"),
        (b"\x05" + b"\0" * 7 + b"{} x ", "is damaged, or not a record: its header is not JSON"),
        (b"\x06\x01" + b"\0" * 6 + b'{"a":' + b"[" * 257, "its header is not JSON"),
        (safetensors.numpy.save({"w": np.zeros(3)}), "is not a record: it is a safetensors file of something else"),
        (safetensors.numpy.save({"w": np.zeros(3)}, {"regard": "[]"}), "a safetensors file of something else"),
        (safetensors.numpy.save({"w": np.zeros(3)}, {"regard": '{"format":"x"}'}), "a safetensors file of something else"),
        (safetensors.numpy.save({"w": np.zeros(3)}, {"regard": '{"format":"regard.record"}'}), "has no checksum"),
    ],
)
def test_files_of_another_kind(data: bytes, said: str) -> None:
    assert said in refusal(data)


def test_load_names_the_file(tmp_path: Path) -> None:
    for name, said in (("absent", "cannot be read: No such file or directory."), ("", "cannot be read: Is a directory.")):
        with pytest.raises(BadRecord, match=re.escape(said)) as refused:
            load(tmp_path / name)
        assert str(refused.value).startswith(f"load: {str(tmp_path / name)!r} ")
    (tmp_path / "half").write_bytes(encode(record_of())[:-1])
    with pytest.raises(BadRecord, match=r"^load: '.*half' is cut off: .*\.$"):
        load(tmp_path / "half")
    with pytest.raises(BadRecord, match=r"cannot be read: embedded null byte\.$"):
        load("a\0b")


# -- files that are whole, and wrong -----------------------------------------------------------------------------------


def forged(change: Any = None, tensors: Any = None) -> bytes:
    """A file with correct checksums whose header or tensors somebody changed, written as the documentation says."""
    data = encode(record_of(text_of("[CLS]", "a")))
    held = safetensors.numpy.load(data)
    header = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["regard"])
    header["sha256"] = ZEROS
    if tensors is not None:
        tensors(held)
        header["tensors"] = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in held.items()}
    if change is not None:
        header = change(header) or header
    saved = safetensors.numpy.save(held, {"regard": json.dumps(header)})
    return saved.replace(ZEROS.encode(), hashlib.sha256(saved).hexdigest().encode(), 1)


def test_a_file_written_as_documented_is_read() -> None:
    assert same(decode(forged()), record_of(text_of("[CLS]", "a")))


def test_a_newer_version() -> None:
    said = "has version 2 of the format, and this regard reads up to 1: pip install --upgrade regard"
    assert refusal(forged(lambda h: h.update(version=2, sha256="of another kind", texts=None))) == said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda h: h.update(version=0), "there is no version 0 of the format"),
        (lambda h: h.update(version="1"), "'version' of its header is of a wrong type"),
        (lambda h: h.update(version=True), "'version' of its header is of a wrong type"),
        (lambda h: h.pop("model") and None, "its header has no 'model'"),
        (lambda h: h.update(more=1), "its header has an unknown field 'more'"),
        (lambda h: h.update(model=None), "'model' of its header is of a wrong type"),
        (lambda h: h.update(versions={"torch": 2}), "'versions' must be str throughout"),
        (lambda h: h.update(readouts=["entropy", "topk"]), "'readouts' must be some of topk, entropy,"),
        (lambda h: h.update(readouts=[["entropy"]]), "'readouts' must be some of topk, entropy,"),
        (lambda h: h.update(readouts=["entropy"]), "in text 0, 'distance' belongs to no readout of the record"),
        (lambda h: h.update(layers=[]), "there must be a layer and a text"),
        (lambda h: h.update(texts=[]), "there must be a layer and a text"),
        (lambda h: h["layers"].append(h["layers"][0]), "must have the shape (layers 2, heads 1, queries 2, k ≤ 2)"),
        (lambda h: h["layers"].append(h["layers"][0] | {"heads": 2}), "its layers must all have the same number of heads"),
        (lambda h: h["layers"][0].update(kv_heads=0), "layer 0 has 1 heads, 0 key heads and the scale 0.5"),
        (lambda h: h["layers"][0].update(scale=float("nan")), "layer 0 has 1 heads, 1 key heads and the scale nan"),
        (lambda h: h["layers"][0].update(mask=None), "'mask' of layer 0 is of a wrong type"),
        (lambda h: h.update(layers=["x"]), "layer 0 must be an object"),
        (lambda h: h["texts"][0].update(ids=[1]), "text 0 has 1 tokens in 'ids' and 2 in 'pieces'"),
        (lambda h: h["texts"][0]["special"].append(True), "text 0 has 2 tokens in 'ids' and 3 in 'special'"),
        (lambda h: h["texts"][0].update(ids=[1, 2.5]), "'ids' of text 0 must be int throughout"),
        (lambda h: h["texts"][0].update(special=[0, 1]), "'special' of text 0 must be bool throughout"),
        (lambda h: h["texts"][0].update(pieces=["a", None]), "'pieces' of text 0 must be str throughout"),
        (lambda h: h["texts"][0].update(spans=[[0, 1], 2]), "'spans' of text 0 must be list throughout"),
        (lambda h: h["texts"][0].update(spans=[[0, 1], [1, 2, 3]]), "text 0 has 6 characters, and a token at [1, 2, 3]"),
        (lambda h: h["texts"][0].update(spans=[[0, 1], [6, 7]]), "text 0 has 6 characters, and a token at [6, 7]"),
        (lambda h: h["texts"][0].update(spans=[[0, 1], [True, 2]]), "'spans' of text 0 must be int throughout"),
        (lambda h: h["texts"][0].update(ids=[], pieces=[], spans=[], special=[]), "text 0 has no tokens"),
        (
            lambda h: h["texts"][0].update(ids=[1], pieces=["a"], spans=[[0, 1]], special=[False]),
            "in text 0, 'topk.values' must have the shape (layers 1, heads 1, queries 1, k ≤ 1); it has (1, 1, 2, 2)",
        ),
        (lambda h: h["texts"].append(h["texts"][0]), "in text 1, 'topk.values' is missing"),
        (lambda h: h["tensors"].pop("0.entropy") and None, "its checksums are not those of its tensors"),
        (lambda h: h["tensors"].update({"0.entropy": ZEROS}), "tensor '0.entropy' does not have the SHA-256"),
    ],
)  # fmt: skip
def test_headers_that_do_not_fit(change: Any, said: str) -> None:
    assert said in refusal(forged(change))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (lambda t: t.pop("0.entropy"), "in text 0, 'entropy' is missing"),
        (lambda t: t.update({"0.more": t["0.entropy"]}), "in text 0, 'more' belongs to no readout of the record"),
        (lambda t: t.update({"7.entropy": t["0.entropy"]}), "tensor '7.entropy' belongs to none of its 1 texts"),
        (lambda t: t.update({"0.entropy": t["0.entropy"][0]}), "'entropy' must have the shape (layers 1, heads 1, queries 2)"),
        (lambda t: t.update({"0.entropy": t["0.entropy"][..., :1]}), "it has (1, 1, 1)"),
        (lambda t: t.update({"0.pool": np.zeros((1, 1, 3, 1), "f4")}), "rows ≤ 2, columns ≤ 2); it has (1, 1, 3, 1)"),
        (lambda t: t.update({"0.pool": np.zeros((1, 1, 0, 1), "f4")}), "rows ≤ 2, columns ≤ 2); it has (1, 1, 0, 1)"),
        (lambda t: t.update({"0.entropy": t["0.entropy"].astype("f8")}), "tensor '0.entropy' is F64, not one of F32, I32"),
        (lambda t: t.update({"0.entropy": t["0.entropy"].astype("i4")}), "'entropy' must be float32; it is int32"),
        (lambda t: t.update({"0.topk.indices": t["0.topk.indices"][..., :1]}), "differ in shape"),
        (lambda t: t.update({"0.topk.indices": t["0.topk.indices"] + 3}), "'topk.indices' must name keys from 0 to 1, or -1"),
        (lambda t: t.update({"0.entropy": t["0.entropy"] * np.nan}), "'entropy' must hold finite numbers"),
        (lambda t: t.update({"0.logsumexp": t["0.logsumexp"] * np.inf}), "'logsumexp' must hold finite numbers"),
    ],
)
def test_tensors_that_do_not_fit(tensors: Any, said: str) -> None:
    assert said in refusal(forged(tensors=tensors))


def test_a_record_that_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    text = text_of("a", "b")
    for wrong in (
        dataclasses.replace(text, ids=(1,)),
        dataclasses.replace(text, arrays=arrays(1, 1, 1)),
        dataclasses.replace(text, arrays={name: a.astype("f8") for name, a in text.arrays.items()}),
    ):
        with pytest.raises(BadRecord, match=r"^save: the record does not fit together: .*\.$"):
            record_of(wrong).save(tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_without_safetensors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    record_of().save(tmp_path / "x")
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    for ask in (lambda: record_of().save(tmp_path / "y"), lambda: load(tmp_path / "x")):
        with pytest.raises(Unsupported, match=r"pip install 'regard\[record\]'"):
            ask()


# -- the documentation -------------------------------------------------------------------------------------------------


def test_the_documented_reader_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    page = (Path(__file__).parents[1] / "docs" / "record-format.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert "regard." not in block.replace("regard.safetensors", "").replace('"regard.record"', "")
    text = text_of("[CLS]", "it", layers=1, heads=2)
    layer = dataclasses.replace(LAYER, heads=2)
    Record("a model", None, (text,), (layer,), READOUTS, VERSIONS).save(tmp_path / "example.regard.safetensors")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(block, "record-format.md", "exec"), names)
    shown = [
        f"{weight:.2f}" for weight, key in zip(names["values"][0, 1, 1], names["indices"][0, 1, 1], strict=True) if key >= 0
    ]
    assert re.findall(r"it → .*: (.*)", capsys.readouterr().out) == shown
    for name in arrays_of(READOUTS):
        assert f"| `{name}` |" in page
    assert set(re.findall(r"^\| `(\w+)` \| (?:string|integer|object|array)", page, re.MULTILINE)) == set(names["header"])


def test_reading_records_needs_neither_model_nor_table() -> None:
    program = (
        "import sys, regard; regard.Record; print([m for m in ('polars', 'safetensors', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_an_unknown_name_of_the_package() -> None:
    with pytest.raises(AttributeError, match="module 'regard' has no attribute 'recrd'"):
        _ = regard.recrd
