"""What the recipes read, vary and judge by, and what they say of data, checkpoints and disks that will not do."""

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
import wave
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch

for module in ("lightning", "torchmetrics", "sacrebleu", "seqeval", "tokenizers", "sklearn", "tensorboard", "matplotlib"):
    pytest.importorskip(module, reason=f"the recipes need {module}: pip install 'regard[recipes]'")

import lightning as L

from recipes.classifier import Classifier
from recipes.classify import Sentences, banking77, clinc150
from recipes.classify import main as classify
from recipes.command import Run
from recipes.data import Set, find
from recipes.entities import FILES, Tokens, columns, exchanged, f1, follows, likeliest, parts, slots, way
from recipes.images import Pictures, idx
from recipes.images import read as pictures
from recipes.pictures import shaded
from recipes.speech import MELS, recordings, silenced, spoken
from recipes.text import trained as vocabulary
from recipes.training import Batches, fit, one_cycle, read, trainer
from recipes.translate import pairs
from regard.pretrained import Refused
from regard.record import NotWritten

SLICES = Path(__file__).parent / "data" / "recipes"
WHOLE = Path(os.environ.get("REGARD_DATA") or Path(__file__).parents[2] / "shared" / "data")

# Lightning's and TensorBoard's own; a recipe's are errors.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:lightning"),
    pytest.mark.usefixtures("ctrl_c"),
]


# Where data is.


@pytest.mark.parametrize(
    ("recipe", "options", "looked"),
    [
        ("language", {}, "tinyshakespeare: input.txt"),
        ("classify", {}, "clinc150: data_full.json"),
        ("classify", {"task": "banking77"}, "banking77: train.csv"),
        ("entities", {}, "ncbi_disease: train.tsv"),
        ("entities", {"task": "wnut17"}, "wnut17: wnut17train.conll"),
        ("entities", {"task": "snips_slots"}, "snips_slots: train/seq.in"),
        ("images", {}, "fashion_mnist: train-images-idx3-ubyte.gz"),
        ("speech", {}, "fsdd: recordings.zip"),
        ("translate", {}, "multi30k: train.de.gz"),
    ],
)
def test_a_missing_folder(recipe: str, options: dict[str, str], looked: str, tmp_path: Path) -> None:
    main: Callable[..., None] = importlib.import_module(f"recipes.{recipe}").main
    with pytest.raises(Refused, match=rf"^{looked} was looked for at '.*', and is not there\. Download https://raw.*licence: "):
        main(Run(data=tmp_path / "none", out=tmp_path, smoke=True), **options)


def test_where_data_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused) as refused:
        find(Run(data=tmp_path), "multi30k").file("train.de.gz")
    assert str(refused.value) == (
        f"multi30k: train.de.gz was looked for at {str(tmp_path / 'multi30k' / 'train.de.gz')!r}, and is not there. Download "
        "https://raw.githubusercontent.com/multi30k/dataset/a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw/train.de.gz"
        " (and what else the recipe reads of https://github.com/multi30k/dataset, licence: non-commercial research alone), put "
        "it into a folder 'multi30k', and name that folder's parent with --data or REGARD_DATA."
    )

    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setenv("REGARD_DATA", str(tmp_path / "told"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("recipes.data.urlopen", unreachable)
    with pytest.raises(
        Refused, match=r"at '.*told.*', '.*cache.*', and its source cannot be reached \(no network\)\. Download "
    ):
        find(Run(), "multi30k").file("train.de.gz")
    monkeypatch.setattr("recipes.data.urlopen", lambda *_, **__: io.BytesIO(b"fetched"))
    assert find(Run(), "multi30k").file("train.de.gz").read_bytes() == b"fetched"
    assert (tmp_path / "cache/regard/data/multi30k/train.de.gz").is_file()


SIZES: dict[str, tuple[Callable[[Set], list[int]], list[int]]] = {  # of training, validation and test data, as published
    "clinc150": (lambda files: list(map(len, clinc150(files))), [15_100, 3_100, 5_500]),
    "banking77": (lambda files: list(map(len, banking77(files))), [9_002, 1_001, 3_080]),
    "ncbi_disease": (lambda files: [len(columns(files, part)) for part in FILES["ncbi_disease"]], [5_432, 923, 940]),
    "wnut17": (lambda files: [len(columns(files, part)) for part in FILES["wnut17"]], [3_394, 1_009, 1_287]),
    "snips_slots": (lambda files: [len(slots(files, part)) for part in FILES["snips_slots"]], [13_084, 700, 700]),
    "multi30k": (lambda files: [len(pairs(files, part)) for part in ("train", "val")], [29_000, 1_014]),
    "fashion_mnist": (lambda files: [len(pictures(files, part)[1]) for part in ("train", "t10k")], [60_000, 10_000]),
    "tinyshakespeare": (lambda files: [sum(len(line) + 1 for line in files.lines("input.txt"))], [1_115_394]),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_whole_set_is_read(name: str) -> None:
    if not (WHOLE / name).is_dir():
        pytest.skip(f"{name} is not in {str(WHOLE)!r}; REGARD_DATA names another folder")
    sizes, published = SIZES[name]
    assert sizes(find(Run(data=WHOLE), name)) == published


# Lines that cannot be read.


def files(name: str, folder: Path, *, skip: bool = False) -> Set:
    return Set(name, (folder,), fetch=False, skip_malformed=skip)


def part(folder: Path, **files: bytes) -> Path:
    """Files of a set, compressed where their names end with gz."""
    for name, content in files.items():
        name = name.replace("_", ".")
        (folder / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    return folder


def test_malformed_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of = files("multi30k", part(tmp_path, train_de_gz=b"Eins\n\nDrei\n", train_en_gz=b"One\nTwo\nThree\n"))
    with pytest.raises(Refused, match=r"train.de.gz', line 2: no German or no English\. Lines like this: 1; --skip-malformed"):
        pairs(of, "train")
    assert pairs(files("multi30k", tmp_path, skip=True), "train") == [("Eins", "One"), ("Drei", "Three")]
    assert "line 2: no German or no English. Left out: 1 line." in capsys.readouterr().out
    part(tmp_path, train_de_gz=b"Eins\n", train_en_gz=b"One\nTwo\n")
    with pytest.raises(Refused, match=r"train.de.gz' has 1 lines, and train.en.gz beside it 2\.$"):
        pairs(of, "train")
    part(tmp_path, train_de_gz=b"Eins\nZw\xff\n")
    with pytest.raises(Refused, match=r"train.de.gz', line 2: not UTF-8 \(byte 2\)\.$"):
        pairs(of, "train")
    (tmp_path / "train.de.gz").write_bytes(gzip.compress(b"Eins\n" * 100)[:-9])
    with pytest.raises(Refused, match=r"train.de.gz' is no whole gzip file"):
        pairs(of, "train")


def test_malformed_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part(tmp_path, train_csv=b'text,category\n"a,\nb",c\nd\n', test_csv=b"text,category\n")
    with pytest.raises(Refused, match=r"train.csv', line 4: 1 columns, not a text and a category\. Lines like this: 1; "):
        banking77(files("banking77", tmp_path))
    place = tmp_path / "data_full.json"
    place.write_text('{"train":\n[,]}')
    with pytest.raises(Refused, match=r"data_full.json', line 2: "):
        clinc150(files("clinc150", tmp_path))
    place.write_text('{"train": []}')
    with pytest.raises(Refused, match=r"data_full.json' has not the lists train, oos_train, val, oos_val, test, oos_test\.$"):
        clinc150(files("clinc150", tmp_path))
    lists: dict[str, Any] = {side + name: [["hello", "greeting"]] for name in ("train", "val", "test") for side in ("", "oos_")}
    place.write_text(json.dumps(lists | {"val": [["hello", "greeting"], ["hello"], "hi"]}))
    with pytest.raises(
        Refused, match=r"data_full.json', val example 2: not a sentence and an intent\. Val examples like this: 2; "
    ):
        clinc150(files("clinc150", tmp_path))
    assert [len(examples) for examples in clinc150(files("clinc150", tmp_path, skip=True))] == [2, 2, 2]
    assert "Left out: 2 val examples." in capsys.readouterr().out
    with pytest.raises(Refused, match=r"^there is nothing to learn 'farewell' from: no training example is of it\.$"):
        Sentences([("bye", "farewell")], ["greeting"], vocabulary(["bye"] * 3, 20))


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


@pytest.mark.parametrize(("count", "side", "kind"), [(2, 28, 3), (1, 27, 3), (1, 28, 10)])
def test_pictures_and_labels_that_do_not_fit(count: int, side: int, kind: int, tmp_path: Path) -> None:
    shape = b"".join(n.to_bytes(4, "big") for n in (count, side, side))
    images = gzip.compress(b"\0\0\x08\x03" + shape + bytes(count * side * side))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(images)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x01" + bytes([kind])))
    with pytest.raises(Refused, match=r"and the labels beside it are no pictures of 28 × 28 and as many numbers below 10\.$"):
        pictures(files("fashion_mnist", tmp_path), "t10k")


def sound(samples: int, rate: int = 8000) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(rate)
        written.writeframes(bytes(range(1, 251)) * (2 * samples // 250))
    return buffer.getvalue()


def test_recordings_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "recordings.zip"
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr("7_ann_3.wav", sound(2000))
        archive.writestr("8_ann_4.wav", sound(2000, 16000))
        archive.writestr("8_ann_5.wav", sound(3000))
        archive.writestr("9_ann_4.wav", b"RIFF")
        archive.writestr("9_ann_5.wav", sound(2000)[:44] + bytes(4000))
        archive.writestr("ten.wav", sound(2000))
        archive.writestr("notes.txt", "")
    place.write_bytes(place.read_bytes().replace(sound(3000)[-6000:], bytes(6000)))  # which its checksum shows
    with pytest.raises(Refused, match=r"zip', recording 2: 8_ann_4.wav has 16000 samples .*\. Recordings like this: 5; "):
        recordings(files("fsdd", tmp_path))
    [one] = recordings(files("fsdd", tmp_path, skip=True))
    assert (one.digit, one.speaker, one.index, one.frames.shape) == (7, "ann", 3, (26, MELS))
    assert "Left out: 5 recordings." in capsys.readouterr().out
    place.write_bytes(b"PK")
    with pytest.raises(Refused, match=r"recordings.zip' is no whole zip file: download it again\.$"):
        recordings(files("fsdd", tmp_path))


# What is made of them.


def test_a_word_without_tokens_has_a_tag_all_the_same() -> None:
    sentence = ["a", "\u200b", "b"], ["O", "O", "B-x"]
    tokenizer = vocabulary(["a b"] * 3, 20)
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


def test_systems_of_the_shared_task_score_as_published() -> None:
    published = {  # Derczynski et al. 2017
        "uh_ritual": 41.86,
        "spinningbytes.txt": 40.78,
        "sjtu_adapt.txt": 40.42,
        "arcada": 39.98,
        "flytxt": 38.35,
        "mic-cis.txt": 37.06,
        "drexel_cci": 26.30,
    }
    text = gzip.decompress((SLICES / "wnut17" / "tags.tsv.gz").read_bytes()).decode()
    [names], *sentences = [[line.split("\t") for line in sentence.splitlines()] for sentence in text.split("\n\n")]
    wanted, *found = ([[row[n] for row in sentence] for sentence in sentences] for n in range(len(names)))
    assert {name: round(f1(wanted, tags), 2) for name, tags in zip(names[1:], found, strict=True)} == published


def test_pictures_are_moved_as_the_batch_says() -> None:
    some = torch.zeros(6, 28, 28, dtype=torch.uint8)
    some[:, 10:14, 9:12] = 255
    still, moved = Pictures(some, torch.arange(6)), Pictures(some, torch.arange(6), moved=True)
    x, kinds = moved[[3, 1, 2]]
    assert kinds.tolist() == [3, 1, 2]
    torch.testing.assert_close(moved[[3, 1, 2]][0], x, rtol=0, atol=0)
    torch.testing.assert_close(x.sum((1, 2, 3)), still[[3, 1, 2]][0].sum((1, 2, 3)))  # nothing left the picture
    assert x.shape == (3, 1, 28, 28)
    assert not torch.equal(x, still[[3, 1, 2]][0])


def test_recordings_are_varied_within_bounds() -> None:
    x = torch.randn(40, MELS)
    for seed in range(30):
        said = spoken(x, torch.Generator().manual_seed(seed))
        assert 35 <= len(said) <= 49
        assert said.shape[1] == MELS
        quiet = silenced(x, torch.Generator().manual_seed(seed), 8)
        assert int((quiet != x).any(1).sum()) <= 8
    assert spoken(x[:1], torch.Generator().manual_seed(0)).isfinite().all()


def test_a_long_sentence_is_drawn_on_several_lines(tmp_path: Path) -> None:
    heights = []
    for words in (3, 60):
        shaded(tmp_path / "drawn.png", [("a title", ["attention"] * words, torch.rand(words))])
        heights.append(int.from_bytes((tmp_path / "drawn.png").read_bytes()[20:24], "big"))
    assert heights[1] > 3 * heights[0]


# Batches, and what a run must survive.


def test_a_corpus_smaller_than_a_batch(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"^a batch has 64 examples, and there are 3 to train on: too few\.$"):
        Batches([1, 2, 3], 64, seed=1)
    place = tmp_path / "banking77"
    place.mkdir()
    with (place / "train.csv").open("w", newline="") as train, (place / "test.csv").open("w", newline="") as test:
        for file in (train, test):
            csv.writer(file).writerows([("text", "category"), *[(f"card {n}", f"lost_{n % 2}") for n in range(9)]])
    with pytest.raises(Refused, match=r"^a batch has 16 examples, and there are 8 to train on: too few\.$"):
        classify(Run(data=tmp_path, out=tmp_path, smoke=True, accelerator="cpu"), task="banking77")
    with pytest.raises(Refused, match=r"^there is but one class: nothing to learn\.$"):
        Classifier(torch.nn.Identity(), 1, 0.1)


def test_batches_are_of_seed_and_epoch_and_of_like_lengths() -> None:
    lengths = [n % 7 for n in range(103)]
    batches = Batches(lengths, 10, seed=1)
    first = list(batches)
    assert first == list(batches)
    assert len(first) == len(batches) == 10
    assert len({n for batch in first for n in batch}) == 100
    assert sum(max(lengths[n] for n in batch) - min(lengths[n] for n in batch) for batch in first) < 15
    batches.set_epoch(1)
    assert first != list(batches)
    assert first != list(Batches(lengths, 10, seed=2))


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 15, 100])
def test_rates_rise_and_fall_however_few_the_steps(steps: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    made = one_cycle(optimizer, 1.0, type("Told", (), {"estimated_stepping_batches": steps}))  # type: ignore[arg-type]
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made["lr_scheduler"]["scheduler"].step()
    assert all(0 <= rate <= 1 for rate in rates)
    if steps == 100:
        assert max(range(steps), key=rates.__getitem__) == 9
        assert rates[-1] < 1e-4


class Small(L.LightningModule):
    """One number that is trained."""

    def __init__(self, start: float = 1.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.number = torch.nn.Parameter(torch.tensor(start))

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        return (self.number * batch).mean() ** 2

    def validation_step(self, batch: torch.Tensor) -> None:
        self.log("val/loss", self.number.detach(), batch_size=1)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trained(out: Path, start: float = 1.0, epochs: int = 2, **told: Any) -> Path:
    run = Run(out=out, accelerator="cpu", **told)
    data = torch.utils.data.DataLoader(torch.ones(4))
    fit(run, trainer(run, "small", epochs, "val/loss", enable_progress_bar=False), Small(start), data, data)
    return run.folder("small")


def test_a_checkpoint_of_another_model(tmp_path: Path) -> None:
    last = trained(tmp_path) / "last.ckpt"
    with pytest.raises(Refused, match=r"last.ckpt' is a checkpoint of another model: start 1.0, not 2.0\.$"):
        trained(tmp_path, 2.0, resume=True)
    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Refused, match=r"last.ckpt' is no checkpoint of a recipe: "):
        trained(tmp_path, resume=True)
    with pytest.raises(Refused, match=r"^there is no checkpoint '.*none.ckpt': train first\.$"):
        read(tmp_path / "none.ckpt", Small())


def test_resuming_before_the_beginning_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path, resume=True)
    assert "last.ckpt' yet: this is the beginning." in capsys.readouterr().out


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_checkpoint_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    folder = trained(tmp_path)
    before = {file.name: file.read_bytes() for file in folder.glob("*.ckpt")}

    def full(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        said = (NotWritten, "No space left on device") if isinstance(error, OSError) else (Refused, "^interrupted in epoch 3")
        with pytest.raises(said[0], match=said[1]):
            trained(tmp_path, epochs=4, resume=True)
    assert {file.name: file.read_bytes() for file in folder.glob("*.ckpt")} == before
    assert not list(folder.glob(".regard-*"))
    trained(tmp_path, epochs=4, resume=True)  # once there is space again
