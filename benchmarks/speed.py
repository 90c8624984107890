"""How fast a matrix is beside PyTorch, in one run: its fused attention (output only) and eager attention with weights.

    python benchmarks/speed.py [--rounds 7]

A round times regard and the peer one after the other; a row is the median of the rounds' ratios, regard / peer. "All" is
output, entropy, top-8 and received; eager computes the same from stored weights. Measured on 2 cores: about two minutes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import regard
from regard.masks import causal
from regard.readouts import Entropy, Received, TopK
from results import append

SHAPES = ((8, 12, 128, 64), (1, 12, 2048, 64), (1, 1, 8192, 64))  # batch, heads, tokens, dim


def eager(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    """The same answers from a stored matrix."""
    n = q.shape[-2]
    scores = q @ k.mT / q.shape[-1] ** 0.5
    weights = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), float("-inf")).softmax(-1)
    entropy = torch.special.entr(weights).sum(-1)
    return [weights @ v, entropy, weights.topk(8).values, weights.sum(-2)]


def ratio(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> float:
    """The median over rounds of (time of ours / time of theirs), after one round that is not counted."""
    found = []
    for _ in range(rounds + 1):
        times = []
        for run in (ours, theirs):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        found.append(times[0] / times[1])
    return statistics.median(found[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    for shape in SHAPES:
        q, k, v = (torch.randn(shape) for _ in range(3))

        def matrix(q: Tensor = q, k: Tensor = k) -> regard.Attention:
            return regard.attention(q, k, mask=causal)

        def everything(v: Tensor = v) -> object:
            return matrix().read(TopK(8), Entropy(), Received(), value=v)

        def fused(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

        case = "batch {}, {} heads, {} tokens, dim {}, float32, causal".format(*shape)
        with torch.no_grad():
            append("speed", case, "output: time / peer's", ratio(lambda: matrix() @ v, fused, rounds), "PyTorch SDPA, output")  # noqa: B023
            append("speed", case, "all: time / peer's", ratio(everything, fused, rounds), "PyTorch SDPA, output")
            append("speed", case, "all: time / peer's", ratio(everything, lambda: eager(q, k, v), rounds), "eager, all")  # noqa: B023


if __name__ == "__main__":
    main()
