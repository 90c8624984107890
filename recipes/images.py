"""Which of ten kinds of clothes does a picture show? A small Vision Transformer on Fashion-MNIST.

    python -m recipes.images [--data DIR] [--smoke] [--resume]

Three convolutions make a grid of 7 × 7 patches (Xiao et al. 2021, "Early Convolutions Help Transformers See Better"), of
96 dims, then 4 layers of 4 heads; pictures are mirrored and moved by up to a pixel in training.
Hardware: 2 cores. Minutes: 22. To expect: accuracy 91.6.
Published: small Vision Transformers 91.2 to 93.0 (github.com/s-chh/PyTorch-Scratch-Vision-Transformer-ViT), HOG and SVM 92.6.
"""

from __future__ import annotations

import gzip
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipes import results
from recipes.classifier import Classifier, shape
from recipes.command import Run, command
from recipes.data import Set, find
from recipes.pictures import overlays
from recipes.training import Batches, fit, in_order, loader, trainer
from regard.nn import ImageEncoder, SequenceClassifier
from regard.pretrained import Refused

KINDS = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
MEAN, DEVIATION = 0.2860, 0.3530


class Images(Classifier):
    """Convolutions and a Vision Transformer, whose class token decides."""

    def __init__(self, dim: int, layers: int, rate: float) -> None:
        encoder = ImageEncoder(7, 1, dim, dim, 4, layers, **shape(dim))
        super().__init__(SequenceClassifier(encoder, dim, len(KINDS)), len(KINDS), rate, decay=0.05)
        self.save_hyperparameters()
        one, two = dim // 3, 2 * dim // 3
        self.stem = nn.Sequential(convolution(1, one, 2), convolution(one, two, 1), convolution(two, dim, 2))

    def forward(self, pictures: Tensor, **asked: Any) -> Any:
        return self.model(self.stem(pictures), **asked)


def convolution(channels: int, dim: int, step: int) -> nn.Sequential:
    """3 × 3, with every step-th row and column, of dim channels."""
    return nn.Sequential(nn.Conv2d(channels, dim, 3, step, 1), nn.BatchNorm2d(dim), nn.GELU())


class Pictures:
    """Pictures (batch, 1, 28, 28) and kinds of a batch; `moved` by chance, where they are for training."""

    def __init__(self, pictures: Tensor, kinds: Tensor, moved: bool = False) -> None:
        self.pictures, self.kinds, self.moved = pictures, kinds, moved

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, picked: list[int]) -> tuple[Tensor, Tensor]:
        x = (self.pictures[picked][:, None].float() / 255 - MEAN) / DEVIATION
        if self.moved:
            chance = torch.Generator().manual_seed(sum(picked))  # that of the batch, which seed and epoch have drawn
            mirrored = torch.rand(len(x), 1, 1, 1, generator=chance) < 0.5
            down, right = torch.randint(0, 3, (2, len(x), 1), generator=chance)
            x = F.pad(torch.where(mirrored, x.flip(-1), x), (1, 1, 1, 1), value=-MEAN / DEVIATION)
            rows, columns = down + torch.arange(28), right + torch.arange(28)
            x = x[torch.arange(len(x))[:, None, None], 0, rows[:, :, None], columns[:, None]][:, None]
        return x, self.kinds[picked]


def idx(files: Set, name: str) -> Tensor:
    """The bytes of an IDX file: two zeros, their type (8), how many axes, the size of each, and what they hold."""
    path = files.file(name)
    try:
        content = gzip.decompress(path.read_bytes())
    except (EOFError, gzip.BadGzipFile) as error:
        raise Refused(f"{str(path)!r} is no whole gzip file ({error}): download it again.") from error
    axes = content[3] if content[:3] == b"\0\0\x08" and len(content) > 4 else 0
    shape = [int.from_bytes(content[4 * n : 4 * n + 4], "big") for n in range(1, axes + 1)]
    if not axes or not (count := math.prod(shape)) or len(content) != 4 + 4 * axes + count:
        raise Refused(f"{str(path)!r} is no IDX file of bytes, or not a whole one: download it again.")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=4 + 4 * axes).view(shape)


def read(files: Set, part: str) -> tuple[Tensor, Tensor]:
    """Pictures and kinds of a part."""
    pictures, kinds = idx(files, f"{part}-images-idx3-ubyte.gz"), idx(files, f"{part}-labels-idx1-ubyte.gz").long()
    if pictures.shape != (len(kinds), 28, 28) or kinds.ndim != 1 or int(kinds.max()) >= len(KINDS):
        place = str(files.file(f"{part}-images-idx3-ubyte.gz"))
        raise Refused(f"{place!r} and the labels beside it are no pictures of 28 × 28 and as many numbers below {len(KINDS)}.")
    return pictures, kinds


def main(run: Run) -> None:
    name, files = "images", find(run, "fashion_mnist")
    (pictures, kinds), test = read(files, "train"), read(files, "t10k")
    if run.smoke:
        pictures, kinds, test = pictures[:400], kinds[:400], (test[0][:100], test[1][:100])
    held = len(pictures) // 12
    known, held_out = Pictures(pictures[held:], kinds[held:], moved=True), Pictures(pictures[:held], kinds[:held])
    asked = Pictures(*test)

    epochs, batch = (2, 40) if run.smoke else (12, 128)
    lightning = trainer(run, name, epochs, "val/accuracy", "max", gradient_clip_val=1.0)
    module = Images(**({"dim": 32, "layers": 2} if run.smoke else {"dim": 96, "layers": 4}), rate=2e-3)
    batches = loader(known, Batches(known, batch, run.seed))
    minutes = fit(run, lightning, module, batches, in_order(held_out))
    if not lightning.is_global_zero:
        return

    found = torch.tensor(module.answers(in_order(asked)))
    results.write(run, name, {"accuracy": 100 * (found == asked.kinds).float().mean().item()}, minutes)
    shown = [int((asked.kinds == kind).nonzero()[0]) for kind in range(len(KINDS)) if (asked.kinds == kind).any()]
    x, _ = asked[shown]
    encoder: Any = module.model.body
    weights = encoder.on_grid(module(x, return_attention=True)[1].body[-1][:, :, 0].mean(1))  # of the class token, all heads
    over = F.interpolate(weights[:, None], x.shape[-2:], mode="bilinear")[:, 0]
    titles = [KINDS[n] + ("" if n == kind else " ✗") for n, kind in zip(found[shown], asked.kinds[shown], strict=True)]
    overlays(run.results(name) / f"{name}.png", asked.pictures[shown], over, titles)


if __name__ == "__main__":
    command(main)
