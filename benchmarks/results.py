"""One CSV for every measurement: a row names commit, machine, versions and what was measured beside what."""

from __future__ import annotations

import csv
import platform
import subprocess
from datetime import date
from pathlib import Path

import torch

FILE = Path(__file__).with_name("results.csv")
COLUMNS = (
    "date",
    "commit",
    "machine",
    "threads",
    "torch",
    "benchmark",
    "case",
    "measure",
    "regard",
    "peer",
    "peer_value",
)


def append(benchmark: str, case: str, measure: str, value: float, peer: str = "", peer_value: float | str = "") -> None:
    """Adds a row, and prints it."""
    row = (
        date.today().isoformat(),
        _commit(),
        _machine(),
        torch.get_num_threads(),
        torch.__version__,
        benchmark,
        case,
        measure,
        f"{value:.4g}",
        peer,
        peer_value if isinstance(peer_value, str) else f"{peer_value:.4g}",
    )
    new = not FILE.exists()
    with FILE.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(COLUMNS)
        writer.writerow(row)
    print(f"{benchmark} [{case}] {measure}: {row[8]}" + (f", {peer}: {row[10]}" if peer else ""))


def _commit() -> str:
    """The commit, with + where files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(("git", *words), capture_output=True, text=True, cwd=FILE.parent, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--", "../src")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if changed else "")


def _machine() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return name
