"""On a machine with CUDA: first whether the backends are right there, then how fast they are beside PyTorch.

    python benchmarks/gpu.py [--draws 200] [--append]

Draws problems of the conformance suite, puts them on the GPU and compares every answer and gradient with the float64
reference; then output and gradients of the fused backend, which answers there only when it is named. Then times A @ v by
both, and output + entropy + received, at 4,096 and 16,384 tokens, dims 64 and 128, bfloat16, full and causal, against
scaled_dot_product_attention (the kernel that PyTorch picks) and eager attention with weights where these fit. Exits with
2 where there is no CUDA.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from torch import Tensor

import regard
from regard.masks import Mask, causal, full
from regard.readouts import Entropy, Received
from regard.testing import Case, cases, check
from results import append

ROUNDS = 9
HEADS = 16


def right(draws: int) -> None:
    """Raises Mismatch where an answer on the GPU is outside its budget."""

    @settings(max_examples=draws, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(case=cases())
    def compare(case: Case) -> None:
        offset = case.offset.cuda() if isinstance(case.offset, Tensor) else case.offset
        moved = replace(case.with_tensors(*(t.cuda() for t in case.tensors)), mask=case.mask.to("cuda"), offset=offset)
        check(None, moved)

    compare()


SIZES = ((70, 70, 64, causal), (70, 133, 20, causal), (33, 70, 128, full), (64, 64, 320, full))  # queries, keys, dim, mask


def fused_is_right() -> None:
    """Raises AssertionError where the fused backend errs by more than a few roundings of its largest number."""
    for dtype, roundings in ((torch.float32, 64), (torch.bfloat16, 4), (torch.float16, 4)):
        for queries, keys, dim, mask in SIZES:
            shapes = ((4, queries), (2, keys), (2, keys), (4, queries))
            q, k, v, above = (torch.randn(2, heads, n, dim, device="cuda").to(dtype) for heads, n in shapes)
            found = []
            for backend, wide in (("reference", torch.float64), ("fused", dtype)):
                leaves = [t.to(wide).requires_grad_() for t in (q, k, v)]
                output = regard.attention(leaves[0], leaves[1], mask=mask, backend=backend) @ leaves[2]
                found.append([output.detach(), *torch.autograd.grad(output, leaves, above.to(wide))])
            for name, due, got in zip(("output", "query", "key", "value"), *found, strict=True):
                error, allowed = (got - due).abs().max(), roundings * torch.finfo(dtype).eps * due.abs().max()
                said = f"fused, {dtype}, {queries} × {keys}, dim {dim}, {mask}, {name}: {error:.3g}, allowed {allowed:.3g}"
                assert bool(error <= allowed), said


def milliseconds(run: Callable[[], object]) -> float:
    """The time of one run, measured on the GPU."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end))


def ratio(ours: Callable[[], object], theirs: Callable[[], object]) -> float:
    """The median over rounds of the times' ratios; three rounds warm up."""
    found = [milliseconds(ours) / milliseconds(theirs) for _ in range(ROUNDS + 3)]
    return statistics.median(found[3:])


def fast(tokens: int, dim: int, mask: Mask, write: bool) -> None:
    """Prints, and perhaps appends, the ratios of one size."""
    q, k, v = (torch.randn(1, HEADS, tokens, dim, dtype=torch.bfloat16, device="cuda") for _ in range(3))
    case = f"{torch.cuda.get_device_name()}: {HEADS} heads, {tokens} tokens, dim {dim}, bfloat16, {mask}"

    def fused() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=mask is causal)

    def three() -> object:
        return regard.attention(q, k, mask=mask).read(Entropy(), Received(), value=v)

    def eager() -> object:
        scores = (q @ k.mT / dim**0.5).float()
        if mask is causal:
            scores.masked_fill_(torch.ones(tokens, tokens, dtype=torch.bool, device="cuda").triu(1), float("-inf"))
        weights = scores.softmax(-1)
        return weights.to(v.dtype) @ v, torch.special.entr(weights).sum(-1), weights.sum(-2)

    with torch.no_grad():
        found = {
            "output / SDPA": ratio(lambda: regard.attention(q, k, mask=mask) @ v, fused),
            "output by fused, named / SDPA": ratio(lambda: regard.attention(q, k, mask=mask, backend="fused") @ v, fused),
            "output + entropy + received / SDPA's output": ratio(three, fused),
        }
        if HEADS * tokens**2 * 12 < torch.cuda.mem_get_info()[0]:
            found["output + entropy + received / eager's"] = ratio(three, eager)
    for measure, value in found.items():
        print(f"{case}: {measure} {value:.3g}")
        if write:
            append("gpu", case, measure, value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--append", action="store_true", help="write the results to the CSV")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("there is no CUDA on this machine")
        return 2
    right(options.draws)
    fused_is_right()
    for tokens in (4096, 16_384):
        for dim in (64, 128):
            for mask in (full, causal):
                fast(tokens, dim, mask, options.append)
    return 0


if __name__ == "__main__":
    sys.exit(main())
