"""What a training step of an encoder costs beside torch.nn.TransformerEncoder's, and how much memory long texts take.

    python benchmarks/layers.py [--rounds 7] [--append] [--long] [--small]

6 layers, dim 512, 8 heads, 8 × 512 tokens, bfloat16 autocast, AdamW: a training step of nn.Encoder beside one of
torch.nn.TransformerEncoder with the same weights, without dropout and with 0.1. Times are interleaved; a row is the median of
the rounds' ratios. Exits with 1 above 1.05, or where the two, without dropout, do not learn the same.

--long: one training step at 8,192 tokens with the entropy of all weights in the loss, in a process of its own: the peak memory
beyond the model, its gradients and the optimizer, beside that at 4,096. Linear growth is a ratio of 2, quadratic growth one of
4; more than 2.2 exits with 1.

--small: two layers, dim 64, short texts, to see that it runs. On 2 cores about two minutes, and as many with --long.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from memory import current, peak
from regard.nn import Encoder
from results import append
from speed import ratio

TIME, GROWTH = 1.05, 2.2  # at most


@dataclass(frozen=True)
class Size:
    """Of an encoder, and of what it is trained on."""

    layers: int = 6
    dim: int = 512
    heads: int = 8
    batch: int = 8
    tokens: int = 512
    long: int = 8192

    def __str__(self) -> str:
        return f"{self.layers} layers, dim {self.dim}, {self.heads} heads, bfloat16 autocast"


def ours(size: Size, dropout: float) -> nn.Module:
    return Encoder(size.dim, size.heads, size.layers, dropout=dropout)


def theirs(size: Size, dropout: float) -> nn.Module:
    layer = nn.TransformerEncoderLayer(size.dim, size.heads, 4 * size.dim, dropout, batch_first=True)
    return nn.TransformerEncoder(layer, size.layers, enable_nested_tensor=False)


def trainer(model: nn.Module, **asked: bool) -> Callable[[Tensor], float]:
    """A training step, which returns its loss: to say each next token, and to look at few tokens if attention is asked for."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def step(x: Tensor) -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found: Any = model(x, **asked)
            y, attentions = found if asked else (found, ())
            loss = (y.float() - x.roll(-1, 1)).square().mean() + sum(A.entropy().mean() for A in attentions) * 0.01
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def steps(size: Size, rounds: int, save: bool) -> bool:
    """The ratios of a step's time; whether all are within the limit."""
    x, fine = torch.randn(size.batch, size.tokens, size.dim), True
    for dropout in (0.0, 0.1):
        peer, model = theirs(size, dropout), ours(size, dropout)
        model.load_state_dict(peer.state_dict())
        mine, other = trainer(model), trainer(peer)
        if not dropout:
            learned = [[step(x) for _ in range(3)] for step in (mine, other)]
            same = all(abs(a - b) <= 0.01 * abs(b) for a, b in zip(*learned, strict=True))
            print(f"losses {learned[0]} beside {learned[1]}: {'the same' if same else 'NOT the same'}", flush=True)
            fine &= same
        found = ratio(partial(mine, x), partial(other, x), rounds)
        fine &= found <= TIME
        case = f"{size}, {size.batch} × {size.tokens} tokens, dropout {dropout:g}"
        if save:
            append("layers", case, "training step: time / peer's", found, "torch.nn.TransformerEncoder")
        else:
            print(f"layers [{case}] training step: time / peer's: {found:.3g} (at most {TIME:g})", flush=True)
    return fine


def measured(size: Size, tokens: int) -> None:
    """Prints MiB and seconds of one step at that length, in this process."""
    torch.manual_seed(0)
    model = ours(size, 0.0)
    x = torch.randn(1, tokens, size.dim)
    step = trainer(model, return_attention=True)
    step(x[:, :64])  # loads what loads once, gradients and the optimizer's numbers among it
    before, start = current(), time.perf_counter()
    step(x)
    print(peak() - before, time.perf_counter() - start)


def long(size: Size, small: bool, save: bool) -> bool:
    """Memory at two lengths; whether it grows as the length does."""
    found = []
    for tokens in (size.long // 2, size.long):
        command = [sys.executable, __file__, "--measure", str(tokens), *(["--small"] if small else [])]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        mib, seconds = map(float, said.split())
        found.append(mib)
        case = f"{size}, 1 × {tokens} tokens, the weights' entropy in the loss"
        dense = size.layers * size.heads * tokens**2 * 2 / 2**20
        measure, beside = "training step: MiB beyond the model", "stored weights in bfloat16 (computed)"
        if save:
            append("layers", case, measure, mib, beside, dense)
            append("layers", case, "training step: seconds", seconds)
        else:
            print(f"layers [{case}] {measure}: {mib:.4g} in {seconds:.0f} s; {beside}: {dense:.4g}", flush=True)
    growth = found[1] / found[0]
    print(f"twice the length takes {growth:.3g} times the memory (at most {GROWTH:g})")
    return growth <= GROWTH


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--append", action="store_true", help="write the results to the CSV")
    parser.add_argument("--long", action="store_true", help="measure memory at 8,192 tokens instead")
    parser.add_argument("--small", action="store_true", help="a small encoder, to see that it runs")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = Size(2, 64, 4, 2, 64, 2048) if options.small else Size()
    torch.manual_seed(0)
    if options.measure:
        measured(size, options.measure)
        return 0
    fine = long(size, options.small, options.append) if options.long else steps(size, options.rounds, options.append)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
