"""Whether time and memory grow with n and not with n²: a long window with sinks, asked everything at once.

    python benchmarks/linear.py [--append]

One head, dim 64, bfloat16, causal & (window(1024, 0) | prefix(4)): output + entropy + top-8 + received + pool((64, 64)), at
65,536 and 131,072 tokens, each in processes of its own, interleaved. Reports the median ratio of the times and the most
memory beyond the inputs; exits with 1 above a ratio of 2.3 or 1 GiB. Measured on 2 cores: about a minute.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch

import regard
from memory import current, peak
from regard.masks import causal, prefix, window
from regard.readouts import Entropy, Pool, Received, TopK
from results import append

SHORT, LONG = 65_536, 131_072
ROUNDS = 3


def measure(tokens: int) -> dict[str, float]:
    """Seconds, and MiB beyond the inputs, of one reading in this process."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(tokens, 64, dtype=torch.bfloat16) for _ in range(3))
    mask = causal & (window(1024, 0) | prefix(4))
    questions = (Entropy(), TopK(8), Received(), Pool((64, 64)))
    small = q[:512]
    regard.attention(small, small, mask=mask, backend="tiled").read(*questions, value=small)  # loads what loads once
    before, start = current(), time.perf_counter()
    regard.attention(q, k, mask=mask, backend="tiled").read(*questions, value=v)
    return {"seconds": time.perf_counter() - start, "MiB": peak() - before}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tokens", type=int, help="measure one length in this process, and print it")
    parser.add_argument("--append", action="store_true", help="write the results to the CSV")
    options = parser.parse_args()
    if options.tokens:
        print(json.dumps(measure(options.tokens)))
        return 0
    found: dict[int, list[dict[str, float]]] = {SHORT: [], LONG: []}
    for _ in range(ROUNDS):
        for tokens, results in found.items():
            command = [sys.executable, __file__, "--tokens", str(tokens)]
            said = subprocess.run(command, capture_output=True, text=True, check=True)
            results.append(json.loads(said.stdout))
            print(tokens, results[-1])
    pairs = zip(found[SHORT], found[LONG], strict=True)
    ratio = statistics.median(long["seconds"] / short["seconds"] for short, long in pairs)
    seconds = statistics.median(r["seconds"] for r in found[LONG])
    most = max(r["MiB"] for r in found[LONG])
    print(f"time {LONG} / {SHORT}: {ratio:.3g}, {seconds:.3g} s, at most {most:.4g} MiB beyond the inputs")
    if options.append:
        case = f"{LONG} tokens, 1 head, dim 64, bfloat16, causal & (window(1024, 0) | prefix(4)): output + entropy + top-8 + "
        case += "received + pool((64, 64))"
        append("linear", case, f"time, of that at {SHORT} tokens", ratio)
        append("linear", case, "seconds", seconds)
        append("linear", case, "MiB beyond the inputs", most)
    return 0 if ratio <= 2.3 and most <= 1024 else 1


if __name__ == "__main__":
    sys.exit(main())
