"""Writes like Shakespeare, character by character: a causal Transformer with rotary positions on one megabyte of his plays.

    python -m recipes.language [--data DIR] [--smoke] [--resume]

nanoGPT's setting for a CPU: 4 layers, 4 heads, 128 dims, 64 characters of context, 2,000 iterations of 12, no dropout.
Hardware: 2 cores. Minutes: 2.2. To expect: validation loss 1.70, time per step 1.04 × a plain PyTorch model's.
Published: 1.88 nats a character (github.com/karpathy/nanoGPT, its README).
"""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipes import results
from recipes.command import Run, command
from recipes.data import find
from recipes.pictures import heatmaps
from recipes.training import Batches, fit, loader, trainer
from regard.masks import causal, window
from regard.nn import LanguageModel, rotary, sample
from regard.pretrained import Refused

CONTEXT, BATCH, EPOCH = 64, 12, 250  # characters, crops of them, iterations between two validations
LINE = "ROMEO:\nBut, soft! what light through yonder window breaks?"


class Language(L.LightningModule):
    """The model and its optimiser: AdamW, 100 iterations of warming up, then a cosine from 1e-3 to 1e-4."""

    def __init__(self, vocabulary: int, iterations: int, dim: int = 128, heads: int = 4, layers: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.iterations = iterations
        self.model = LanguageModel(
            vocabulary, dim, heads, layers, position=rotary(), activation="gelu", norm_first=True, bias=False
        )  # fmt: skip

    def training_step(self, text: Tensor) -> Tensor:
        loss = surprise(self.model, text)
        self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, text: Tensor) -> None:
        self.log("val/loss", surprise(self.model, text), prog_bar=True, batch_size=len(text))

    def configure_optimizers(self) -> Any:
        warming = min(100, self.iterations // 10)

        def rate(n: int) -> float:
            done = min(1.0, max(0.0, (n - warming) / (self.iterations - warming)))
            return min(1.0, (n + 1) / warming) * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))

        optimizer = adamw(self.model)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Crops:
    """Pieces of a text, by where they start: (batch, CONTEXT + 1)."""

    def __init__(self, text: Tensor) -> None:
        self.text = text

    def __len__(self) -> int:
        return max(0, len(self.text) - CONTEXT)

    def __getitem__(self, starts: list[int]) -> Tensor:
        return self.text[torch.tensor(starts)[:, None] + torch.arange(CONTEXT + 1)]


def surprise(model: nn.Module, text: Tensor) -> Tensor:
    """The mean of -ln p of the characters that come next."""
    return F.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())


def adamw(model: nn.Module) -> torch.optim.AdamW:
    """nanoGPT's: matrices decay, norms do not."""
    matrices, others = ([p for p in model.parameters() if (p.ndim > 1) is wide] for wide in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))


class Plain(nn.Module):
    """The same model in plain PyTorch, for the clock: torch.nn and its fused attention, angles known beforehand."""

    def __init__(self, vocabulary: int, dim: int, heads: int, layers: int) -> None:
        super().__init__()
        self.heads = heads
        self.embedding = nn.Embedding(vocabulary, dim)
        self.layers = nn.ModuleList([self.layer(dim) for _ in range(layers)])
        self.norm = nn.LayerNorm(dim, bias=False)
        width = dim // heads
        angles = torch.arange(CONTEXT)[:, None] * 10_000.0 ** (-torch.arange(0, width, 2) / width)
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def layer(self, dim: int) -> nn.ModuleDict:
        into, out, up, down = (nn.Linear(a * dim, b * dim, bias=False) for a, b in ((1, 3), (1, 1), (1, 4), (4, 1)))
        norm1, norm2 = nn.LayerNorm(dim, bias=False), nn.LayerNorm(dim, bias=False)
        return nn.ModuleDict({"norm": norm1, "into": into, "out": out, "mlp": nn.Sequential(norm2, up, nn.GELU(), down)})

    def turned(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat((a * self.cos - b * self.sin, b * self.cos + a * self.sin), -1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        layer: Any
        for layer in self.layers:
            query, key, value = layer["into"](layer["norm"](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(self.turned(query), self.turned(key), value, is_causal=True)
            x = x + layer["out"](y.transpose(1, 2).flatten(2))
            x = x + layer["mlp"](x)
        return F.linear(self.norm(x), self.embedding.weight)


def seconds_per_step(models: list[nn.Module], text: Tensor, rounds: int) -> list[float]:
    """The median time of a training step of each model, one after the other in every round."""
    optimizers = [adamw(model.train()) for model in models]
    times: list[list[float]] = [[] for _ in models]
    for _ in range(rounds):
        for model, optimizer, taken in zip(models, optimizers, times, strict=True):
            begun = time.perf_counter()
            surprise(model, text).backward()
            optimizer.step()
            optimizer.zero_grad()
            taken.append(time.perf_counter() - begun)
    return [statistics.median(taken) for taken in times]


def main(run: Run) -> None:
    name = "language"
    text = "\n".join(find(run, "tinyshakespeare").lines("input.txt")) + "\n"
    characters = sorted(set(text))
    text = text[:20_000] if run.smoke else text
    number = {character: n for n, character in enumerate(characters)}
    tokens = torch.tensor([number[character] for character in text])
    known, held_out = Crops(tokens[: len(tokens) * 9 // 10]), Crops(tokens[len(tokens) * 9 // 10 :])
    if not len(held_out):
        raise Refused(f"a crop has {CONTEXT + 1} characters, and {len(held_out.text)} are held out: too few.")
    epochs, count = (2, 20) if run.smoke else (8, EPOCH)
    starts = torch.arange(0, len(held_out), CONTEXT).split(128)

    lightning = trainer(run, name, epochs, "val/loss", gradient_clip_val=1.0)
    module = Language(len(characters), epochs * count, **({"dim": 32, "layers": 2} if run.smoke else {}))
    train = loader(known, Batches(known, BATCH, run.seed, count=count))
    val = loader(held_out, [part.tolist() for part in starts])
    minutes = fit(run, lightning, module, train, val)
    loss = lightning.validate(module, val, verbose=False)[0]["val/loss"]
    if not lightning.is_global_zero:
        return

    model, dims = module.model, {key: module.hparams[key] for key in ("vocabulary", "dim", "heads", "layers")}
    clocked = [Language(**dims, iterations=1).model, Plain(**dims)]
    ours, plain = seconds_per_step(clocked, known[list(range(BATCH))], 5 if run.smoke else 100)
    scores = {"validation loss": loss, "time per step / plain": ours / plain}
    results.write(run, name, scores, minutes, milliseconds_per_step={"regard": ours * 1e3, "plain": plain * 1e3})
    model.eval().mask = causal & window(CONTEXT - 1, 0)  # beyond its context it goes on with what it was trained on
    line = torch.tensor([[number[character] for character in LINE]])
    written = sample(model, line[:, :6], limit=300, temperature=0.8, generator=torch.Generator().manual_seed(run.seed))
    print("".join(characters[n] for n in written[0].tolist()))
    attention = model(line, return_attention=True)[1][-1].to_dense()[0]
    shown = [repr(character)[1:-1] for character in LINE]
    titles = [f"last layer, head {n}" for n in range(len(attention))]
    heatmaps(run.results(name) / f"{name}.png", attention, titles, shown, shown)


if __name__ == "__main__":
    command(main)
