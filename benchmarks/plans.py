"""How long laying a mask over tiles takes, and how much memory, at a million tokens; the preparation of documents included.

    python benchmarks/plans.py [--tokens 1048576] [--tile 64] [--case NAME] [--append]

Each mask is laid in a process of its own: with the clock and the process's memory watched, again once it is prepared, and
with Python's own count of memory. Exits with 1 if one takes half a second then, or ever 64 MiB beyond its inputs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from memory import MIB, current, peak
from regard.masks import Mask, causal, documents, padding, prefix, window
from regard.plan import Axes, Plan, _plans, lay
from results import append

SECONDS, LIMIT = 0.5, 64  # MiB


def drawn(tokens: int) -> Tensor:
    """Document ids of 4,000 documents (fewer in a short text), cut at drawn places."""
    cuts = torch.randperm(tokens - 1)[: min(4000, tokens // 64) - 1].sort().values + 1
    places = torch.zeros(tokens, dtype=torch.int64)
    places[cuts] = 1
    return places.cumsum(0)


def single(tokens: int) -> Tensor:
    """100 keys at drawn places."""
    return torch.zeros(tokens, dtype=torch.bool).index_fill_(0, torch.randperm(tokens)[:100], True)


# The inputs of a mask, and the mask, which is built anew for each measurement.
CASES: dict[str, tuple[Callable[[int], Tensor | None], Callable[[Tensor | None], Mask]]] = {
    "causal": (lambda n: None, lambda _: causal),
    "window(4096)": (lambda n: None, lambda _: window(4096)),
    "4,000 documents": (drawn, lambda ids: documents(_given(ids))),
    "(window(4096) | prefix(4)) & documents & causal": (
        drawn,
        lambda ids: (window(4096) | prefix(4)) & documents(_given(ids)) & causal,
    ),
    "padding(keep=random)": (lambda n: torch.rand(n) < 0.5, lambda keep: padding(keep=_given(keep))),
    "three interleaved documents": (lambda n: torch.arange(n) % 3, lambda ids: documents(_given(ids))),
    "checkerboard of 1,024 tokens": (lambda n: torch.arange(n) // 1024 % 2, lambda ids: documents(_given(ids))),
    "checkerboard of 512 tokens": (lambda n: torch.arange(n) // 512 % 2, lambda ids: documents(_given(ids))),
    "window(4096) | padding(keep=100 single keys)": (single, lambda keep: window(4096) | padding(keep=_given(keep))),
}


def _given(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def plan(mask: Mask, tokens: int, tile: int) -> Plan:
    return lay(mask, Axes((0,), (0,), range(tokens), range(tokens)), 0, tile, tile)


def measure(case: str, tokens: int, tile: int) -> dict[str, float]:
    """One mask, in this process."""
    torch.manual_seed(0)
    make, mask = CASES[case]
    plan(mask(make(4096)), 4096, tile)  # loads what loads once
    given = make(tokens)
    with suppress(OSError):  # elsewhere the inputs' own peak counts too
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins here
    before, start = current(), time.perf_counter()
    built = mask(given)
    laid = plan(built, tokens, tile)
    seconds, resident = time.perf_counter() - start, peak() - before
    _plans.clear()
    start = time.perf_counter()
    plan(built, tokens, tile)
    prepared = time.perf_counter() - start
    again = make(tokens)  # of another tensor, for equal masks share what was prepared
    _plans.clear()
    tracemalloc.start()
    plan(mask(again), tokens, tile)
    return {
        "seconds": seconds,
        "seconds once the mask is prepared": prepared,
        "MiB of the process beyond the inputs": max(resident, 0.0),
        "MiB counted by Python": tracemalloc.get_traced_memory()[1] / MIB,
        "runs": len(laid.begin),
        "visible share": laid.visible / tokens**2,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tokens", type=int, default=1 << 20)
    parser.add_argument("--tile", type=int, default=64)
    parser.add_argument("--case", choices=tuple(CASES), help="measure this one here and print it as JSON")
    parser.add_argument("--append", action="store_true", help="add rows to results.csv")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case, options.tokens, options.tile)))
        return 0
    slow = []
    for case in CASES:
        words = (sys.executable, __file__, "--case", case, "--tokens", str(options.tokens), "--tile", str(options.tile))
        # Freed memory goes back to the system at once, so that what the inputs left behind does not hide what a plan takes.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        found = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout)
        name = f"{case}, {options.tokens} tokens, tile {options.tile} × {options.tile}"
        for quantity, value in found.items():
            append("plans", name, quantity, value) if options.append else print(f"[{name}] {quantity}: {value:.4g}")
        memory = max(value for quantity, value in found.items() if quantity.startswith("MiB"))
        if found["seconds once the mask is prepared"] > SECONDS or memory > LIMIT:
            slow.append(case)
    print(f"beyond {SECONDS} s or {LIMIT} MiB: {', '.join(slow)}" if slow else f"within {SECONDS} s and {LIMIT} MiB")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
