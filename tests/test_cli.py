"""The command line: what it shows, and the one sentence for everything that a user can get wrong."""

from __future__ import annotations

import importlib.util
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

pytest.importorskip("transformers")

import transformers

import regard
from regard import pretrained
from regard.cli import main
from regard.pretrained import Pretrained, Refused, Tokens, attentions, load, tokenize
from regard.view import looks as view
from regard.view.terminal import bar, safe, show

demo = pytest.mark.skipif(importlib.util.find_spec(pretrained.PACKAGE) is None, reason="the demo extra is not installed")
TIRED = "The animal didn't cross the street because it was too tired."
WIDE = "The animal didn't cross the street because it was too wide."


@pytest.fixture(scope="module")
def minilm() -> Pretrained:
    return load()


@pytest.fixture
def loaded(minilm: Pretrained, monkeypatch: pytest.MonkeyPatch) -> Pretrained:
    """The packaged model, loaded once for every command of this file."""
    monkeypatch.setattr(pretrained, "load", lambda name: minilm if name is None else load(name))
    return minilm


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """`regard view` writes its page where it runs."""
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, arguments, env={"COLUMNS": "100"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def complaint(*arguments: str) -> str:
    """The one sentence on stderr of a command that must fail."""
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("regard: ")
    return line


def weights_of(output: str, layer: int, head: int) -> list[tuple[str, float]]:
    """The strongest key and its weight in every table that shows that head."""
    rows = re.findall(rf"^\s*{layer}\s+{head}\s+(.+?)\s+(\d\.\d\d) ", output, re.MULTILINE)
    return [(key, float(weight)) for key, weight in rows]


@demo
def test_it_is_the_animal_when_it_is_tired(loaded: Pretrained) -> None:
    code, out, err = run("view", TIRED, WIDE, "--token", "it")
    assert (code, err) == (0, "")
    (tired, narrow), (wide, broad) = weights_of(out, 3, 1)
    assert (tired, wide) == ("animal", "animal")
    assert narrow == pytest.approx(0.68, abs=0.01)
    assert broad == pytest.approx(0.28, abs=0.01)
    assert "all-MiniLM-L6-v2: 6 layers of 12 heads, counted from 0; 16 and 16 tokens." in out
    assert "Every table shows the same heads" in out


@demo
def test_every_occurrence_is_shown_and_case_does_not_matter(loaded: Pretrained) -> None:
    _, out, _ = run("view", "The dog saw the cat.", "--token", "THE")
    assert out.count("layer   head") == 2
    assert "The #1  in" in out
    assert "the #4  in" in out


@demo
def test_without_a_token_every_token_has_its_strongest_look(loaded: Pretrained) -> None:
    _, out, _ = run("view", "The animal was tired.")
    shown = re.findall(r"^ (\S+) +\d+ +\d+ +\S+ +\d\.\d\d", out, re.MULTILINE)
    assert shown == ["The", "animal", "was", "tired", "."]


@demo
def test_what_a_user_got_wrong_is_one_sentence(loaded: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "the text is empty" in complaint("view", " ")
    assert "the token is empty" in complaint("view", TIRED, "--token", "")
    text = complaint("view", "The animal", "--token", "dog")
    assert "'dog' is not in the text; its tokens are: [CLS] The animal [SEP]" in text
    assert "has 602 tokens, and 'all-MiniLM-L6-v2' has positions for 512" in complaint("view", "animal " * 600)
    assert "has no config.json" in complaint("view", TIRED, "--model", str(tmp_path))
    assert "there is no directory" in complaint("view", TIRED, "--model", str(tmp_path / "absent"))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", _unreachable)
    assert "cannot be reached" in complaint("view", TIRED, "--model", "no-such/model")
    transformers.OpenAIGPTModel(
        transformers.OpenAIGPTConfig(vocab_size=50, n_positions=64, n_embd=32, n_layer=1, n_head=2)
    ).save_pretrained(tmp_path)
    load().tokenizer.save_pretrained(tmp_path)
    assert "OpenAIGPTModel (model type openai-gpt)" in complaint("view", TIRED, "--model", str(tmp_path))


def _unreachable(*_: object, **__: object) -> None:
    raise OSError("Name or service not known")


def test_without_the_demo_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'regard[demo]'" in complaint("view", TIRED)


def test_a_mistake_of_regard_itself_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str | None) -> Pretrained:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(pretrained, "load", broken)
    assert isinstance(CliRunner().invoke(main, ["view", "text"]).exception, RuntimeError)


@demo
def test_text_is_data(loaded: Pretrained) -> None:
    _, out, _ = run("view", "[red]x[/red] \x1b[31mred\x07 \u202eright :smile:", "--token", "red")
    assert "[red]x[/red] \\x1b[31mred\\x07 \\u202eright :smile:" in out
    assert "\x1b" not in out
    assert complaint("view", "x", "--token", "\x1b[31m") == (
        "regard: the token '\\x1b[31m' is not in the text; its tokens are: [CLS] x [SEP]."
    )


@demo
@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_any_width_will_do(minilm: Pretrained, columns: int) -> None:
    file = io.StringIO()
    show(Console(file=file, width=columns), minilm, [tokenize(minilm, TIRED)], "it")
    assert all(len(line) <= columns for line in file.getvalue().splitlines())
    if columns >= 40:
        assert weights_of(file.getvalue(), 3, 1)[0][1] == 0.68


@demo
def test_as_a_program_in_a_pipe_that_knows_only_ascii() -> None:
    command = [sys.executable, "-c", "from regard.cli import main; main()", "view", "Die Straße", "--token", "straße"]
    done = subprocess.run(
        command, capture_output=True, check=False, encoding="ascii", env={"PYTHONIOENCODING": "ascii", "COLUMNS": "80"}
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Stra\\xdfe" in done.stdout
    assert "###" in done.stdout
    assert "\x1b" not in done.stdout


def test_help_needs_no_model() -> None:
    program = "import sys; from regard.cli import main; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
    code, out, _ = run("--help")
    assert code == 0
    assert "view" in out
    assert "doctor" in out


def test_doctor_names_versions_devices_backends_and_extras() -> None:
    code, out, _ = run("doctor")
    assert code == 0
    assert regard.__version__ in out
    assert torch.__version__ in out
    for name, reasons in regard.backends.available():
        assert re.search(rf"{name} +{re.escape('; '.join(reasons) or 'usable')}", out)
    assert re.search(r"^  cpu ", out, re.MULTILINE)
    assert re.search(r"^  demo ", out, re.MULTILINE)


# -- looks, on matrices that are known -----------------------------------------------------------------------------


def tokens_of(*pieces: str, special: tuple[int, ...] = (0,)) -> Tokens:
    text = " ".join(pieces)
    spans, start = [], 0
    for piece in pieces:
        spans.append((start, start + len(piece)))
        start += len(piece) + 1
    marks = tuple(i in special for i in range(len(pieces)))
    return Tokens(text, tuple(range(len(pieces))), pieces, tuple(spans), marks)


def random_layers(count: int, mask: regard.masks.Mask) -> list[regard.Attention]:
    generator = torch.Generator().manual_seed(0)
    queries = (torch.randn(1, 3, count, 4, generator=generator) * 2 for _ in range(4))
    return [regard.attention(q, next(queries), mask=mask) for q in queries]


@pytest.mark.parametrize("mask", [regard.masks.full, regard.masks.causal])
def test_the_strongest_look_is_the_largest_of_all_rows(mask: regard.masks.Mask) -> None:
    tokens = tokens_of("[CLS]", *"abcde", "[SEP]", special=(0, 6))
    layers = random_layers(7, mask)
    found = view.strongest(layers, tokens)
    assert [look.query for look in found] == [1, 2, 3, 4, 5]
    for look in found:
        best = max(view.looks(layers, tokens, look.query), key=lambda other: other.weight)
        assert look.weight == pytest.approx(best.weight)
        if best.key is not None:
            assert (look.layer, look.head, look.key) == (best.layer, best.head, best.key)
            assert look.special == pytest.approx(best.special)
            assert look.itself == pytest.approx(best.itself)
        dense = layers[look.layer].to_dense()[0, look.head, look.query]
        assert look.weight == pytest.approx(float(max(dense[i] for i in range(1, 6) if i != look.query)))
    assert (found[0].key is None) == (mask is regard.masks.causal)


def test_heads_are_ranked_by_their_largest_weight_anywhere() -> None:
    def row(*weights: float) -> list[view.Look]:
        return [view.Look(0, head, 1, 2, weight, 0.0, 0.0) for head, weight in enumerate(weights)]

    assert view.shared_heads([row(0.1, 0.5, 0.2), row(0.9, 0.0, 0.2)], 2) == [(0, 0), (0, 1)]


@pytest.mark.parametrize(
    ("wanted", "places"),
    [("it", [1, 3]), ("IT", [1, 3]), ("bitter", [2, 3, 4]), ("b it ter", []), ("ter", [4]), ("[CLS]", [0]), (".", [5])],
)
def test_a_token_is_a_piece_or_a_whole_word(wanted: str, places: list[int]) -> None:
    spans = ((0, 0), (0, 2), (3, 4), (4, 6), (6, 9), (9, 10))
    tokens = Tokens("It bitter.", tuple(range(6)), ("[CLS]", "It", "b", "it", "ter", "."), spans, (True,) + (False,) * 5)
    if places:
        assert view.occurrences([tokens], wanted) == [places]
    else:
        with pytest.raises(Refused, match="is not in the text"):
            view.occurrences([tokens], wanted)


def test_blanks_may_belong_to_the_token_after_them() -> None:
    tokens = Tokens("so tokenization", (0, 1, 2), ("so", "token", "ization"), ((0, 2), (2, 8), (8, 15)), (False,) * 3)
    assert view.occurrences([tokens], "tokenization") == [[1, 2]]


@pytest.mark.parametrize(("weight", "drawn"), [(0.0, ""), (1.0, "████"), (0.5, "██"), (0.53, "██▏"), (0.03, "▏")])
def test_bars_are_true_to_an_eighth(weight: float, drawn: str) -> None:
    assert bar(weight, 4) == drawn
    assert len(bar(weight, 4, ascii_only=True)) == round(weight * 4)


@pytest.mark.parametrize(("text", "shown"), [("\x1b[0m", "\\x1b[0m"), ("a\nb", "a\\nb"), ("é漢", "é漢"), ("\u202e", "\\u202e")])
def test_control_characters_are_shown_and_not_obeyed(text: str, shown: str) -> None:
    assert safe(text) == shown


def test_encoder_decoders_are_refused_for_now() -> None:
    config = transformers.BartConfig(
        vocab_size=20, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=16,
    )  # fmt: skip
    model = Pretrained(transformers.BartModel(config).eval(), None, "a translator", None)
    with pytest.raises(Refused, match="'a translator' is an encoder-decoder"):
        attentions(model, tokens_of("a", "b"))


def test_a_model_without_attention_is_refused() -> None:
    config = transformers.FNetConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, intermediate_size=16, max_position_embeddings=16
    )
    model = Pretrained(transformers.FNetModel(config).eval(), None, "a mixer", None)
    with pytest.raises(Refused, match="'a mixer' hands out no attention weights"):
        attentions(model, tokens_of("a", "b"))


@demo
def test_texts_from_files(loaded: Pretrained, tmp_path: Path) -> None:
    (tmp_path / "tired.txt").write_text(TIRED + "\n", encoding="utf-8")
    _, out, _ = run("view", "--file", str(tmp_path / "tired.txt"), "--token", "it")
    assert "animal          0.68" in out
    (tmp_path / "latin.txt").write_bytes("das M\u00e4dchen".encode("latin-1"))
    assert "is not UTF-8: byte 5 is 0xe4" in complaint("view", "--file", str(tmp_path / "latin.txt"))
    assert "cannot be read: No such file" in complaint("heads", "--file", str(tmp_path / "absent.txt"))
    assert "there is no text: give one or several" in complaint("record", "--out", str(tmp_path / "x"))
