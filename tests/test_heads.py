"""Recorded numbers and the head table, against the weights that the model itself computes, stored in full."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")
pytest.importorskip("polars")

import polars as pl
import torch
import transformers
from rich.console import Console
from typer.testing import CliRunner

import regard
from regard import pretrained
from regard.checks import Unsupported
from regard.cli import main
from regard.pretrained import Pretrained, Refused, tokenize
from regard.record import READOUTS, NotWritten, Record, record
from regard.record.heads import write_csv, write_parquet
from regard.record.reading import _read
from regard.record.shapes import HEAD_TABLE, arrays_of
from regard.view.heads import show

demo = pytest.mark.skipif(importlib.util.find_spec(pretrained.PACKAGE) is None, reason="the demo extra is not installed")
TIRED = "The animal didn't cross the street because it was too tired."
WIDE = "The animal didn't cross the street because it was too wide."
LONG = "The animal didn't cross the street, because it was too tired. " * 6
NEAR = {"atol": 2e-5, "rtol": 1e-5}  # float32, and distances are up to the length of the text
COLUMNS = ["text", "layer", "head", *HEAD_TABLE]


@pytest.fixture(scope="module")
def minilm() -> Pretrained:
    return pretrained.load()


@pytest.fixture(scope="module")
def eager() -> Any:
    """The packaged model as transformers computes it, all weights stored."""
    return transformers.AutoModel.from_pretrained(pretrained._packaged(), attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def read(minilm: Pretrained) -> Record:
    return record(minilm, [TIRED, WIDE, LONG])


def weights(model: Any, ids: Any, keep: Any = None) -> torch.Tensor:
    """(layers, batch, heads, tokens, tokens)"""
    with torch.no_grad():
        attentions = model(torch.tensor(ids), attention_mask=keep, output_attentions=True).attentions
    return torch.stack(attentions)


def expected(A: np.ndarray, special: tuple[bool, ...], k: int) -> dict[str, np.ndarray]:
    """What each array must hold, from stored weights (layers, heads, tokens, tokens)."""
    count = A.shape[-1]
    i, j = np.indices((count, count))
    bins = min(count, 32)
    bounds = np.arange(bins + 1) * count // bins
    pooled = np.add.reduceat(np.add.reduceat(A, bounds[:-1], -1), bounds[:-1], -2)
    sizes = np.diff(bounds)
    with np.errstate(divide="ignore"):
        logs = np.where(A > 0, np.log(A), 0)
    return {
        "topk.values": -np.sort(-A, -1)[..., :k],
        "entropy": -(A * logs).sum(-1),
        "distance": (A * abs(i - j)).sum(-1),
        "maximum": A.max(-1),
        "self": np.where(i == j, A, 0).sum(-1),
        "previous": np.where(j == i - 1, A, 0).sum(-1),
        "next": np.where(j == i + 1, A, 0).sum(-1),
        "first": A[..., 0],
        "special": A[..., np.array(special)].sum(-1),
        "received": A.sum(-2),
        "pool": pooled / (sizes[:, None] * sizes),
    }


@demo
@pytest.mark.parametrize("number", [0, 1, 2])
def test_every_array_is_that_of_the_stored_weights(read: Record, eager: Any, number: int) -> None:
    text = read.texts[number]
    A = weights(eager, [text.ids])[:, 0].double().numpy()
    count = len(text.ids)
    k = count if count <= 64 else 8
    assert (count > 64) == (number == 2)
    for name, due in expected(A, text.special, k).items():
        np.testing.assert_allclose(text.arrays[name], due, **NEAR, err_msg=name)
    indices = text.arrays["topk.indices"]
    assert indices.shape == (6, 12, count, k)
    np.testing.assert_allclose(np.take_along_axis(A, indices.astype(np.int64), -1), text.arrays["topk.values"], **NEAR)
    assert set(text.arrays) == set(arrays_of(READOUTS))


@demo
def test_it_is_the_animal_when_it_is_tired(read: Record, tmp_path: Path) -> None:
    read.save(tmp_path / "r.regard.safetensors")
    for text, due in zip(regard.load(tmp_path / "r.regard.safetensors").texts, (0.68, 0.28), strict=False):
        row = 3, 1, text.pieces.index("it")
        found = dict(zip(text.arrays["topk.indices"][row].tolist(), text.arrays["topk.values"][row].tolist(), strict=True))
        assert found[text.pieces.index("animal")] == pytest.approx(due, abs=0.01)
        assert sum(found.values()) == pytest.approx(1, abs=1e-5)


@demo
def test_what_a_record_says_of_the_model(read: Record, minilm: Pretrained) -> None:
    assert (read.model, read.revision) == (minilm.name, minilm.revision)
    assert [layer.heads for layer in read.layers] == [12] * 6
    first = read.layers[0]
    assert (first.kind, first.kv_heads, first.mask, first.offset) == ("self", 12, "full", 0)
    assert first.scale == pytest.approx(32**-0.5)
    assert read.readouts == READOUTS
    assert read.versions["torch"] == torch.__version__
    assert list(read.versions) == ["numpy", "regard", "tokenizers", "torch", "transformers"]
    tokens = tokenize(minilm, TIRED)
    assert all(getattr(read.texts[0], f.name) == getattr(tokens, f.name) for f in dataclasses.fields(tokens))


@demo
def test_logsumexp_normalises_the_scores(minilm: Pretrained, read: Record) -> None:
    from regard.pretrained import attentions

    for n, matrix in enumerate(attentions(minilm, tokenize(minilm, TIRED))):
        scores = matrix.call.scale * matrix.call.query[0].double() @ matrix.call.key[0].double().mT
        np.testing.assert_allclose(read.texts[0].arrays["logsumexp"][n], scores.logsumexp(-1).numpy(), atol=1e-4)


@demo
def test_the_head_table(read: Record, eager: Any) -> None:
    frame = read.heads()
    assert frame.columns == COLUMNS
    assert frame.shape == (3 * 6 * 12, len(COLUMNS))
    assert frame.equals(frame.sort("text", "layer", "head"))
    assert set(frame.dtypes[3:]) == {pl.Float32}
    for number, text in enumerate(read.texts):
        due = expected(weights(eager, [text.ids])[:, 0].double().numpy(), text.special, 1)
        rows = frame.filter(pl.col("text") == number)
        for name in HEAD_TABLE:
            np.testing.assert_allclose(rows[name].to_numpy(), due[name].mean(-1).ravel(), **NEAR, err_msg=name)


@demo
def test_padding_changes_no_figure(read: Record, eager: Any) -> None:
    """Padded to the length of another text, and with padded queries at weight 0, the means are those of the record."""
    one, other = read.texts[0], read.texts[2]
    missing = len(other.ids) - len(one.ids)
    keep = torch.tensor([[1] * len(one.ids) + [0] * missing, [1] * len(other.ids)])
    A = weights(eager, [list(one.ids) + [0] * missing, list(other.ids)], keep)[:, 0].double().numpy()
    counted = keep[0].double().numpy() / len(one.ids)
    due = expected(A, (*one.special, *[False] * missing), 1)
    rows = read.heads().filter(pl.col("text") == 0)
    for name in HEAD_TABLE:
        np.testing.assert_allclose(rows[name].to_numpy(), (due[name] @ counted).ravel(), **NEAR, err_msg=name)


@demo
@pytest.mark.parametrize(
    "text", ["\u202eab\u202c ש\u200b", "👩‍👩‍👧", "a\x00b", "e\u0301", "x", "<img src=x onerror=alert(1)>", "מה זה?"]
)
def test_any_text_can_be_recorded(minilm: Pretrained, text: str, tmp_path: Path) -> None:
    read = record(minilm, text)
    read.save(tmp_path / "r")
    back = regard.load(tmp_path / "r").texts[0]
    assert back.text == text
    assert back.pieces == tokenize(minilm, text).pieces
    assert np.isfinite(read.heads().drop("text", "layer", "head").to_numpy()).all()


# -- small models ------------------------------------------------------------------------------------------------------


def gpt(minilm: Pretrained, **options: Any) -> Pretrained:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(minilm.tokenizer), hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, **options,
    )  # fmt: skip
    model = transformers.LlamaModel._from_config(config, attn_implementation="regard")
    return Pretrained(model.eval(), minilm.tokenizer, "a random llama", None)


@demo
def test_causal_layers_with_grouped_key_heads(minilm: Pretrained) -> None:
    read = record(gpt(minilm), [TIRED, LONG])
    assert {(y.heads, y.kv_heads, y.mask, y.offset) for y in read.layers} == {(4, 2, "causal", 0)}
    for text in read.texts:
        count, indices = len(text.ids), text.arrays["topk.indices"]
        visible = np.minimum(np.arange(count) + 1, indices.shape[-1])
        assert ((indices >= 0).sum(-1) == visible).all()
        assert (text.arrays["topk.values"][indices < 0] == 0).all()
        assert (text.arrays["next"] == 0).all()
        assert (text.arrays["first"][..., 0] == 1).all()


@demo
def test_one_token(minilm: Pretrained) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(pretrained._packaged())
    tokenizer._tokenizer.post_processor = None
    one = dataclasses.replace(gpt(minilm), tokenizer=tokenizer)
    read = record(one, "animal")
    (text,) = read.texts
    assert text.pieces == ("animal",)
    assert {a.shape for a in text.arrays.values()} == {(2, 4, 1), (2, 4, 1, 1)}
    row = read.heads().row(0, named=True)
    assert row == dict.fromkeys(COLUMNS, 0) | {"first": 1, "self": 1, "maximum": 1}


@demo
def test_top_is_for_long_texts(minilm: Pretrained) -> None:
    read = record(gpt(minilm), [TIRED, LONG], top=20, readouts=["topk"])
    assert [text.arrays["topk.values"].shape[-1] for text in read.texts] == [16, 20]
    assert record(gpt(minilm), LONG, top=1000, readouts=["topk"]).texts[0].arrays["topk.values"].shape[-2:] == (92, 92)
    with pytest.raises(ValueError, match="record: top must be at least 8; got 7"):
        record(minilm, TIRED, top=7)


@demo
def test_a_mask_that_depends_on_the_text(minilm: Pretrained) -> None:
    from regard.record.reading import _both

    layer = record(minilm, "x", readouts=[]).layers[0]
    both = _both(_both(layer, dataclasses.replace(layer, mask="dense((2, 2))")), layer)
    assert both.mask == "full or dense((2, 2))"


@demo
def test_models_that_cannot_be_recorded(minilm: Pretrained, monkeypatch: pytest.MonkeyPatch) -> None:
    from regard import pretrained

    def handing_out(*matrices: regard.Attention) -> str:
        monkeypatch.setattr(pretrained, "attentions", lambda pretrained, tokens: matrices)
        with pytest.raises(Refused, match=r"^'all-MiniLM-L6-v2' cannot be recorded: .*\.$") as refused:
            record(minilm, "x")
        return str(refused.value)

    x = torch.randn(1, 2, 3, 4)
    A = regard.attention(x, x)
    more = regard.attention(torch.cat((x, x), 1), x)
    assert "layer 0 has 2 heads and layer 1 has 4; a record needs as many in each" in handing_out(A, more)
    assert "layer 1 has a matrix of 2 × 3, and the text has 3 tokens" in handing_out(A, A[:, :, 1:])
    assert "must hold finite numbers" in handing_out(A, regard.attention(x * float("nan"), x))
    monkeypatch.undo()
    with pytest.raises(Refused, match="there is no text to record"):
        record(minilm, [])
    with pytest.raises(ValueError, match="record: a readout must be one of 'topk', "):
        record(minilm, "x", readouts=["surprise"])


@demo
def test_all_questions_are_asked_at_once(minilm: Pretrained, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    original = regard.Attention.read
    monkeypatch.setattr(regard.Attention, "read", lambda self, *q, **o: asked.append(q) or original(self, *q, **o))
    record(minilm, [TIRED, WIDE])
    assert len(asked) == 2 * 6


@demo
@pytest.mark.parametrize("name", READOUTS)
def test_a_readout_by_itself_is_the_same(minilm: Pretrained, read: Record, name: str) -> None:
    alone = record(minilm, TIRED, readouts=[name])
    assert alone.readouts == (name,)
    assert set(alone.texts[0].arrays) == set(arrays_of([name]))
    for array, numbers in alone.texts[0].arrays.items():
        np.testing.assert_allclose(numbers, read.texts[0].arrays[array], atol=1e-6)


@demo
def test_missing_readouts_are_named_with_the_call_that_adds_them(minilm: Pretrained) -> None:
    less = record(minilm, TIRED, readouts=[n for n in HEAD_TABLE if n not in ("entropy", "next")])
    with pytest.raises(Unsupported, match="heads: the record lacks entropy, next; read them with ") as refused:
        less.heads()
    call = re.search(r"regard\.record\.record\(.*readouts=\(.*\)\)", str(refused.value))
    assert call is not None
    more = eval(call.group(), {"regard": regard, "pretrained": minilm, "texts": TIRED})
    assert more.heads().columns == COLUMNS


def test_whole_rows_of_random_matrices_with_any_mask() -> None:
    """The arrays of a layer against stored weights, with sliding windows, grouped heads and rows that see no key."""
    torch.manual_seed(0)
    q, k = torch.randn(1, 4, 70, 8), torch.randn(1, 2, 70, 8)
    tokens = pretrained.Tokens("", (0,) * 70, ("x",) * 70, ((0, 0),) * 70, (True, *(False,) * 68, True))
    for mask in (regard.masks.full, regard.masks.causal & regard.masks.window(5), regard.masks.causal_from(-3)):
        A = regard.attention(q, k, mask=mask)
        found = _read(A, tokens, 8, READOUTS)
        dense = A.to_dense()[0].double().numpy()
        for name, due in expected(dense, tokens.special, 8).items():
            np.testing.assert_allclose(found[name], due, **NEAR, err_msg=f"{name} {mask}")


# -- files and the command ---------------------------------------------------------------------------------------------


@demo
def test_csv_and_parquet_hold_the_same_table(read: Record, tmp_path: Path) -> None:
    frame = read.heads()
    write_csv(frame, tmp_path / "h.csv")
    write_parquet(frame, tmp_path / "h.parquet")
    assert pl.read_parquet(tmp_path / "h.parquet").equals(frame)
    back = pl.read_csv(tmp_path / "h.csv", schema=frame.schema)
    assert back.equals(frame)
    with pytest.raises(NotWritten):
        write_csv(frame, tmp_path / "no" / "h.csv")


@pytest.fixture
def loaded(minilm: Pretrained, monkeypatch: pytest.MonkeyPatch) -> Pretrained:
    monkeypatch.setattr(pretrained, "load", lambda name: minilm)
    return minilm


def run(*arguments: str, columns: int = 80) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, arguments, env={"COLUMNS": str(columns)})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


@demo
def test_the_command_prints_the_table(loaded: Pretrained, tmp_path: Path) -> None:
    code, out, err = run("heads", TIRED, WIDE, "--csv", str(tmp_path / "h.csv"), "--parquet", str(tmp_path / "h.parquet"))
    assert (code, err) == (0, "")
    frame = pl.read_csv(tmp_path / "h.csv")
    assert pl.read_parquet(tmp_path / "h.parquet").shape == frame.shape == (144, len(COLUMNS))
    assert out.index(TIRED) < out.index(WIDE)
    rows = re.findall(r"^ +(\d+) +(\d+)" + r" +(\d+\.\d\d)" * 8 + " *$", out, re.MULTILINE)
    assert [tuple(row[:2]) for row in rows] == 2 * [(str(a), str(b)) for a in range(6) for b in range(12)]
    for shown, due in zip(rows, frame.iter_rows(), strict=True):
        assert [float(x) for x in shown[2:]] == pytest.approx(due[3:], abs=0.00501)
    assert re.search("layer +head +" + " +".join(HEAD_TABLE), out)
    assert "all-MiniLM-L6-v2: 6 layers of 12 heads, counted from 0; 16 and 16 tokens." in out


@demo
@pytest.mark.parametrize("columns", [20, 40, 60, 79, 80, 200])
def test_any_width_will_do(read: Record, columns: int) -> None:
    file = io.StringIO()
    show(Console(file=file, width=columns), read, read.heads())
    lines = file.getvalue().splitlines()
    assert all(len(line) <= columns for line in lines)
    assert ("No room for" in file.getvalue()) == (columns < 79)
    if columns >= 40:
        assert "…" not in "".join(line for line in lines if "layer" in line)


@demo
def test_what_a_user_got_wrong_is_one_sentence(loaded: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def complaint(*arguments: str) -> str:
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("regard: ")
        assert err.count("\n") == 1
        return err

    assert "the text is empty" in complaint("heads", " ")
    assert "has 602 tokens" in complaint("heads", "animal " * 600)
    assert "there is no directory" in complaint("heads", "x", "--csv", str(tmp_path / "no" / "x.csv"))
    assert "it is a directory" in complaint("heads", "x", "--parquet", str(tmp_path))
    assert "it is a directory" in complaint("record", "x", "--out", str(tmp_path))
    monkeypatch.setitem(sys.modules, "polars", None)
    assert "heads: a head table is a polars frame: pip install 'regard[record]'." in complaint("heads", "x")
    assert not list(tmp_path.iterdir())


@demo
def test_the_command_that_writes_a_record(loaded: Pretrained, tmp_path: Path) -> None:
    code, out, err = run("record", TIRED, "--out", str(tmp_path / "r.regard.safetensors"))
    assert (code, out, err) == (0, "", "")
    assert regard.load(tmp_path / "r.regard.safetensors").texts[0].text == TIRED


@demo
def test_text_is_data(loaded: Pretrained) -> None:
    _, out, _ = run("heads", "[red]x[/red] \x1b[31m \u202eright " + "x" * 100)
    assert "[red]x[/red] \\x1b[31m \\u202eright" in out
    assert "\x1b" not in out
