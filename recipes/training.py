"""The trainer, which is Lightning's: what all recipes set in it, and what a run must survive."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, Timer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import distributed
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Sampler

from recipes.command import Run
from regard.pretrained import Refused
from regard.record.files import write_whole


class Batches(Sampler[list[int]]):
    """An epoch's batches, by seed and epoch alone: so a run that goes on draws what it would have drawn.

    Args:
        examples: a list of the length of each (a number, or several to sort by): those of a batch are alike, for padding costs
            time. Anything else that has a length: as they come.
        size: how many examples a batch has, over all processes, which share it out.
        count: how many batches an epoch has; None = as many as are full.
    """

    def __init__(self, examples: Sized, size: int, seed: int, *, count: int | None = None) -> None:
        self.examples, self.size, self.seed, self.epoch = examples, size, seed, 0
        if len(examples) < size:
            raise Refused(f"a batch has {size} examples, and there are {len(examples)} to train on: too few.")
        self.count = len(examples) // size if count is None else min(count, len(examples) // size)

    def set_epoch(self, epoch: int) -> None:
        """Lightning tells."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[int]]:
        chance = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        order = torch.randperm(len(self.examples), generator=chance)[: self.count * self.size].tolist()
        if isinstance(self.examples, list):
            pool = 50 * self.size  # sorted as a whole, an epoch would have the same batches each time
            order = [i for n in range(0, len(order), pool) for i in sorted(order[n : n + pool], key=self.examples.__getitem__)]
        rank, world = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
        for n in torch.randperm(self.count, generator=chance).tolist():
            yield order[n * self.size + rank : (n + 1) * self.size : world]


def loader(examples: Any, batches: Iterable[list[int]]) -> DataLoader[Any]:
    """Batches of examples, each of which is examples[numbers]."""
    return DataLoader(examples, batch_size=None, sampler=batches)


def in_order(examples: Any, size: int = 100) -> DataLoader[Any]:
    """All examples, as they come."""
    return loader(examples, [part.tolist() for part in torch.arange(len(examples)).split(size)])


class StepSeed(Callback):
    """Every step begins with chance of its own, so nothing of it has to be saved."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        torch.manual_seed((self.seed * 10_000_019 + trainer.global_step) * 1009 + trainer.global_rank)


class WholeFiles(TorchCheckpointIO):
    """A checkpoint is on disk as a whole, or the one before it still is, also where the temporary folder is another disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, buffer.getvalue())


def trainer(
    run: Run, name: str, epochs: int, monitor: str, mode: str = "min", patience: int | None = None, **settings: Any
) -> L.Trainer:
    """Lightning's trainer with checkpoints after every epoch (last.ckpt, and best.ckpt by `monitor`), logs, and a clock."""
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # the data is in memory
    warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", ".*exists and is not empty.*")  # a run begins anew in the folder of the last one
    warnings.filterwarnings("ignore", ".*sync_dist=True.*")  # where every process validates on all, they agree
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    L.seed_everything(run.seed, verbose=False)
    folder = run.folder(name)
    usual = settings.pop("precision", "32-true")
    precision: Any = run.precision or usual
    world = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # under torchrun
    each_epoch: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
    callbacks: list[Callback] = [
        StepSeed(run.seed),
        Timer(),
        ModelCheckpoint(folder, "best", monitor, mode=mode, **each_epoch),
        ModelCheckpoint(folder, "last", **each_epoch),  # save_last=True would keep it only where it is the best, too
    ]
    if patience is not None:
        callbacks.append(EarlyStopping(monitor, mode=mode, patience=patience, check_on_train_epoch_end=True))
    return L.Trainer(
        accelerator=run.accelerator,
        strategy="ddp" if world > 1 and run.strategy == "auto" else run.strategy,
        devices=world if world > 1 else "auto",
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", "1")),
        precision=precision,
        max_epochs=epochs,
        callbacks=callbacks,
        logger=[CSVLogger(folder, "csv"), TensorBoardLogger(folder, "tensorboard")],
        plugins=[WholeFiles()],
        use_distributed_sampler=False,  # `Batches` shares out what there is to train on; every process validates on all
        num_sanity_val_steps=0,
        enable_model_summary=False,
        **settings,
    )


def one_cycle(optimizer: torch.optim.Optimizer, rates: float | list[float], trainer: L.Trainer) -> dict[str, Any]:
    """The optimiser, and the rates' way: up in the first tenth of all steps, and down again (Smith and Topin 2019)."""
    steps = max(2, int(trainer.estimated_stepping_batches))
    up = max(0.1, 1.5 / steps)  # PyTorch divides by 0 where the way up is a single step
    schedule = OneCycleLR(optimizer, rates, steps, pct_start=up)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(run: Run, trainer: L.Trainer, model: L.LightningModule, train: Any, val: Any) -> float:
    """Trains, from the last checkpoint with --resume, then puts the best weights into the model; returns minutes."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    kept = next(c for c in callbacks if isinstance(c, ModelCheckpoint) and c.monitor)
    timer = next(c for c in callbacks if isinstance(c, Timer))
    last = Path(kept.dirpath or "") / "last.ckpt"
    begun = run.resume and last.is_file()
    if begun:
        read(last, model)
    elif run.resume:
        print(f"there is no {str(last)!r} yet: this is the beginning.")
    else:
        last.unlink(missing_ok=True)  # or a run that is killed early would go on as another one
    try:
        trainer.fit(model, train, val, ckpt_path=str(last) if begun else None)
    except SystemExit as left:  # how Lightning ends after Ctrl-C
        raise Refused(f"interrupted in epoch {trainer.current_epoch + 1}; --resume goes on from {str(last)!r}.") from left
    model.load_state_dict(read(Path(kept.best_model_path), model)["state_dict"])
    return float(timer.time_elapsed("train")) / 60


def read(path: Path, model: L.LightningModule) -> dict[str, Any]:
    """A checkpoint, if it is one of this model."""
    if not path.is_file():
        raise Refused(f"there is no checkpoint {str(path)!r}: train first.")
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        theirs = dict(saved["hyper_parameters"])
    except Exception as error:
        raise Refused(f"{str(path)!r} is no checkpoint of a recipe: {str(error).splitlines()[0]}") from error
    ours = dict(model.hparams)
    if differ := [f"{k} {theirs.get(k)!r}, not {ours.get(k)!r}" for k in {**ours, **theirs} if theirs.get(k) != ours.get(k)]:
        raise Refused(f"{str(path)!r} is a checkpoint of another model: {'; '.join(differ)}.")
    return saved
