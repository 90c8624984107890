"""What the choice of backends brings, beside PyTorch's fused attention and eager attention with weights, in one run.

    python benchmarks/choice.py [--rounds 7] [--append]

12 heads × 4,096 tokens × dim 64, float32, full and causal: the output; output, entropy and received; and what a small
matrix costs more than scaled_dot_product_attention, 12 heads × 16 tokens, with and without gradients to come. Times are
interleaved; a row is the median of the rounds' ratios (differences for the small one). Exits with 1 above 1.1, 4, half of
eager, 60 µs or 90 µs. Measured on 2 cores: about three minutes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import regard
from regard.masks import Mask, causal, full
from regard.readouts import Entropy, Received
from results import append
from speed import ratio

CALLS = 500  # of a small matrix in a round


def eager(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None) -> list[Tensor]:
    """Output, entropy and received from a stored matrix."""
    scores = q @ k.mT / q.shape[-1] ** 0.5
    weights = (scores if hidden is None else scores.masked_fill(hidden, float("-inf"))).softmax(-1)
    return [weights @ v, torch.special.entr(weights).sum(-1), weights.sum(-2)]


def large(mask: Mask, rounds: int) -> dict[str, float]:
    """The ratios for 4,096 tokens."""
    q, k, v = (torch.randn(1, 12, 4096, 64) for _ in range(3))
    hidden = torch.ones(4096, 4096, dtype=torch.bool).triu(1) if mask is causal else None

    def fused() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=mask is causal)

    def three() -> regard.Reading:
        return regard.attention(q, k, mask=mask).read(Entropy(), Received(), value=v)

    with torch.no_grad():
        return {
            "output / SDPA": ratio(lambda: regard.attention(q, k, mask=mask) @ v, fused, rounds),
            "output + entropy + received / SDPA's output": ratio(three, fused, rounds),
            "output + entropy + received / eager's": ratio(three, lambda: eager(q, k, v, hidden), max(1, rounds // 2)),
        }


def small(grad: bool, rounds: int) -> float:
    """Microseconds that a product of 12 heads × 16 tokens takes more than SDPA."""
    q, k, v = (torch.randn(1, 12, 16, 64, requires_grad=grad) for _ in range(3))

    def timed(run: Callable[[], Tensor]) -> float:
        start = time.perf_counter()
        for _ in range(CALLS):
            run()
        return (time.perf_counter() - start) / CALLS * 1e6

    more = []
    for _ in range(2 * rounds + 1):
        ours = timed(lambda: regard.attention(q, k, mask=causal) @ v)
        more.append(ours - timed(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)))
    return statistics.median(more[1:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--append", action="store_true", help="write the results to the CSV")
    options = parser.parse_args()
    torch.manual_seed(0)
    fine = True
    limits = (1.1, 4.0, 0.5)
    for mask in (full, causal):
        case = f"12 heads, 4096 tokens, dim 64, float32, {mask}"
        for (measure, found), limit in zip(large(mask, options.rounds).items(), limits, strict=True):
            print(f"{case}: {measure} {found:.3g} (limit {limit})")
            fine &= found <= limit
            if options.append:
                append("choice", case, measure, found)
    for grad, limit in ((False, 60.0), (True, 90.0)):
        found = small(grad, options.rounds)
        case = f"12 heads, 16 tokens, dim 64, float32, causal, {'with' if grad else 'without'} gradients to come"
        print(f"{case}: {found:.3g} µs more than SDPA (limit {limit})")
        fine &= found <= limit
        if options.append:
            append("choice", case, "µs more than SDPA", found)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
