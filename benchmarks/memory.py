"""How much memory a long causal matrix takes: output, entropy, top-8 and received of one head, in one reading.

    python benchmarks/memory.py [--tokens 65536] [--check 16] [--limit 512]

Runs in a process of its own and reports the peak beyond the inputs (the answers are in it), and the largest error of some
rows and columns that are computed again, one by one, in float64. Exits with 1 above the limit or outside the budget.
Measured on 2 cores: about half a minute.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

import torch

import regard
from regard.masks import causal
from regard.readouts import Entropy, Received, TopK
from results import append

MIB = 1 << 20


def peak() -> float:
    """The most memory that the process ever held, MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def current() -> float:
    """The memory that the process holds now, MiB; where the system does not say, the most that it ever held."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))
    except (OSError, StopIteration):
        return peak()


def rows_again(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, chosen: list[int]) -> list[tuple[torch.Tensor, ...]]:
    """Weights, output and entropy of chosen rows, each by itself, in float64."""
    found: list[tuple[torch.Tensor, ...]] = []
    for i in chosen:
        scores = (k[: i + 1].double() @ q[i].double()) / q.shape[-1] ** 0.5
        weights = scores.softmax(0)
        found.append((weights, weights @ v[: i + 1].double(), -(weights * scores.log_softmax(0)).sum()))
    return found


def received_again(q: torch.Tensor, k: torch.Tensor, lse: torch.Tensor, chosen: list[int]) -> torch.Tensor:
    """What chosen keys received, each by itself, in float64, given a float64 log-sum-exp."""
    sums = [(((q[j:].double() @ k[j].double()) / q.shape[-1] ** 0.5) - lse[j:]).exp().sum() for j in chosen]
    return torch.stack(sums)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--check", type=int, default=16, help="rows and columns to compute again")
    parser.add_argument("--limit", type=float, default=512, help="MiB beyond the inputs")
    options = parser.parse_args()
    n, dim = options.tokens, 64
    torch.manual_seed(0)
    q, k, v = (torch.randn(n, dim) for _ in range(3))
    small = torch.randn(64, dim)
    regard.attention(small, small, mask=causal).read(TopK(8), Entropy(), Received(), value=small)  # loads what loads once
    before, start = current(), time.perf_counter()
    A = regard.attention(q, k, mask=causal, backend="tiled")
    reading = A.read(TopK(8), Entropy(), Received(), value=v)
    seconds, beyond = time.perf_counter() - start, peak() - before

    chosen = torch.linspace(0, n - 1, options.check).long().tolist()
    errors = {"output": 0.0, "entropy": 0.0, "top-8": 0.0, "received": 0.0}
    for i, (weights, output, entropy) in zip(chosen, rows_again(q, k, v, chosen), strict=True):
        best = weights.topk(min(8, i + 1)).values
        found = {
            "output": (reading.output[i] - output).abs().max(),
            "entropy": (reading.entropy[i] - entropy).abs(),
            "top-8": (reading.topk.values[i, : len(best)] - best).abs().max(),
        }
        errors |= {name: max(errors[name], float(error)) for name, error in found.items()}
    exact = torch.cat([_lse(part, k, start) for start, part in _blocks(q)])
    received = received_again(q, k, exact, chosen)
    errors["received"] = float(((reading.received[chosen] - received).abs() / received.clamp_min(1)).max())

    case = f"{n} tokens, 1 head, dim {dim}, float32, causal: output + entropy + top-8 + received"
    dense = n * n * 4 / MIB
    append("memory", case, "MiB beyond the inputs", beyond, "dense float32 matrix, computed", dense)
    append("memory", case, "seconds", seconds)
    for name, error in errors.items():
        append("memory", case, f"largest error of {name} against float64", error)
    fine = beyond <= options.limit and all(error < 2e-5 for error in errors.values())
    print("within the limit" if fine else f"NOT within the limit of {options.limit} MiB and an error of 2e-5")
    return 0 if fine else 1


def _blocks(q: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
    return [(start, q[start : start + 256]) for start in range(0, len(q), 256)]


def _lse(part: torch.Tensor, k: torch.Tensor, start: int) -> torch.Tensor:
    """The float64 log-sum-exp of a block of rows, given that row i sees keys 0 … i."""
    stop = start + len(part)
    scores = part.double() @ k[:stop].double().T / part.shape[-1] ** 0.5
    later = torch.arange(stop) > torch.arange(start, stop)[:, None]
    return scores.masked_fill_(later, float("-inf")).logsumexp(-1)


if __name__ == "__main__":
    sys.exit(main())
