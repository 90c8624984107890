"""Loading a model to look at, and every sentence that can come back instead."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

pytest.importorskip("transformers")

import huggingface_hub
import torch
import transformers
from huggingface_hub import errors
from safetensors.torch import load_file, save_file

from regard import pretrained
from regard.checks import Unsupported
from regard.pretrained import Pretrained, Refused, load, positions, tokenize

demo = pytest.mark.skipif(importlib.util.find_spec(pretrained.PACKAGE) is None, reason="the demo extra is not installed")
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "animal", "was", "ti", "##red", "!"]


@pytest.fixture(scope="module")
def minilm() -> Pretrained:
    return load()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A directory with a random BERT and a tokenizer of eleven words."""
    directory = tmp_path / "model"
    directory.mkdir()
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY))
    tokenizer = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(VOCABULARY)}, model_max_length=16)
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(directory)
    return directory


def sentence(name: Any) -> str:
    with pytest.raises(Refused) as caught:
        load(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@demo
def test_without_a_name_the_packaged_model(minilm: Pretrained) -> None:
    assert minilm.name == "all-MiniLM-L6-v2"
    assert minilm.revision == f"sha256:{pretrained.PACKAGED_SHA256}"
    assert not minilm.model.training
    assert minilm.model.config._attn_implementation == "regard"


@demo
def test_the_package_of_the_model_is_read_and_not_imported() -> None:
    """In a process of its own: other tests import it to see whether it is there."""
    names = {pretrained.PACKAGE, "sentence_transformers"}
    code = f"import sys; from regard import pretrained; pretrained.load(); print({names} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


@demo
def test_other_weights_than_expected_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "PACKAGED_SHA256", "0" * 64)
    text = sentence(None)
    assert "0" * 64 in text
    assert "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db" in text


def test_without_the_demo_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'regard[demo]'" in sentence(None)


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "regard.transformers", None)
    assert "pip install 'regard[transformers]'" in sentence(None)


def test_a_directory(saved: Path) -> None:
    loaded = load(saved)
    assert (loaded.name, loaded.revision) == (str(saved), None)
    assert tokenize(loaded, "the animal was tired").pieces == ("[CLS]", "the", "animal", "was", "ti", "red", "[SEP]")
    with torch.no_grad():
        inputs = {"input_ids": torch.tensor([tokenize(loaded, "the animal").ids]), "output_attentions": True}
        assert not isinstance(loaded.model(**inputs).attentions[0], torch.Tensor)


def test_names_that_lead_nowhere(tmp_path: Path, saved: Path) -> None:
    assert "has no config.json" in sentence(tmp_path)
    assert "there is no directory" in sentence(tmp_path / "absent")
    assert "there is no directory" in sentence("../absent")
    assert "there is no directory" in sentence("one/two/three")
    assert "is empty" in sentence("  ")
    assert "is a file" in sentence(str(saved / "config.json"))


def test_a_directory_that_cannot_be_read(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    assert sentence(saved).startswith(f"the model {str(saved)!r} could not be loaded: ")
    (saved / "config.json").write_text("{")
    assert sentence(saved).startswith(f"the model {str(saved)!r} could not be loaded: ")


def test_weights_that_are_absent_are_not_made_up(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    weights = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    save_file(weights, saved / "model.safetensors", {"format": "pt"})
    load(saved)  # what comes after all attention may be absent
    weights.pop("encoder.layer.1.attention.self.query.weight")
    save_file(weights, saved / "model.safetensors", {"format": "pt"})
    assert "1 weights are not in its files, first encoder.layer.1.attention.self.query.weight" in sentence(saved)


def test_an_architecture_outside_the_interface(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text()) | {"model_type": "roformer"}
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(Unsupported, match=r"RoFormerModel \(model type roformer\)"):
        load(saved)


def response() -> Any:
    return Mock(headers={}, status_code=404)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("Name or service not known"), "cannot be reached; with a network run `hf download nobody/nothing`"),
        (errors.OfflineModeIsEnabled("offline"), "cannot be reached"),
        (errors.RepositoryNotFoundError("404", response=response()), "knows no public model of that name"),
        (errors.GatedRepoError("403", response=response()), "needs its owner's consent"),
        (errors.HfHubHTTPError("503 busy\nagain", response=response()), "the Hub answered: 503 busy"),
    ],
)
def test_a_model_that_the_hub_does_not_give(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    asked = Mock(side_effect=error)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", asked)
    text = sentence("nobody/nothing")
    assert said in text
    if "consent" not in said:
        assert "no directory 'nobody/nothing' here" in text
        assert huggingface_hub.constants.HF_HUB_CACHE in text
    assert asked.call_count == 1


def test_the_cache_is_enough_and_an_unknown_name_fails_at_once(saved: Path, tmp_path: Path) -> None:
    repository = tmp_path / "cache" / "models--some--body"
    shutil.copytree(saved, repository / "snapshots" / "abc123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    part = tmp_path / "cache" / "models--a--part"
    (part / "snapshots" / "def456").mkdir(parents=True)
    shutil.copy(saved / "config.json", part / "snapshots" / "def456")
    (part / "refs").mkdir()
    (part / "refs" / "main").write_text("def456")
    program = """
        import time
        from regard.pretrained import Refused, load
        loaded = load("some/body")
        print(loaded.name, loaded.revision)
        start = time.monotonic()
        for name in ("no-such/model", "a/part"):
            try:
                load(name)
            except Refused as refused:
                print(refused)
        assert time.monotonic() - start < 5
    """
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    first, unknown, incomplete = done.stdout.splitlines()
    assert first == "some/body abc123"
    assert "no directory 'no-such/model' here, no complete copy in the cache" in unknown
    assert "no complete copy in the cache" in incomplete
    assert time.monotonic() - start < 120


@demo
def test_nothing_of_a_text_is_cut(minilm: Pretrained) -> None:
    words = " animal" * 400  # the file of this tokenizer says to cut at 128, and to fill up to 128
    assert len(tokenize(minilm, words).ids) == 402
    assert len(tokenize(minilm, "animal").ids) == 3
    with pytest.raises(Refused, match=r"the text has 513 tokens, and 'all-MiniLM-L6-v2' has positions for 512: shorten it"):
        tokenize(minilm, " animal" * 511)
    for nothing in ("", " \n\t"):
        with pytest.raises(Refused, match="the text is empty"):
            tokenize(minilm, nothing)


@demo
def test_tokens_stand_where_the_text_has_them(minilm: Pretrained) -> None:
    tokens = tokenize(minilm, "The 𓂀 tokenization[SEP]")
    assert tokens.pieces == ("[CLS]", "The", "𓂀", "token", "ization", "[SEP]", "[SEP]")
    place = tokens.pieces.index("𓂀")
    assert tokens.text[slice(*tokens.spans[place])] == "𓂀"
    assert not tokens.special[place]  # unknown to the vocabulary, and still a word
    assert [piece for piece, special in zip(tokens.pieces, tokens.special, strict=True) if special] == [
        "[CLS]", "[SEP]", "[SEP]",
    ]  # fmt: skip


def test_positions_of_roberta_start_after_the_padding() -> None:
    config = transformers.RobertaConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=12, pad_token_id=1,
    )  # fmt: skip
    model = transformers.RobertaModel(config).eval()
    assert positions(model) == 10
    model(torch.full((1, 10), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, 11), 5))


def test_a_model_and_a_tokenizer_that_do_not_belong_together(saved: Path) -> None:
    found = load(saved)
    wider = transformers.BertTokenizer(vocab={word: i for i, word in enumerate([*VOCABULARY, "street"])})
    with pytest.raises(Refused, match="gives token 11, and the model knows 11: two models"):
        tokenize(Pretrained(found.model, wider, "mixed", None), "the street")
    (saved / "config.json").unlink()
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4
    )
    transformers.ViTModel(config).save_pretrained(saved)
    assert "reads pixel_values, not text" in sentence(saved)


def test_a_directory_without_a_tokenizer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    gpt2 = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20)
    transformers.GPT2Model(gpt2).save_pretrained(tmp_path)
    with pytest.raises(Refused, match="tokenizer"):
        tokenize(load(tmp_path), "the animal")
