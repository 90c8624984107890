"""What runs found, one JSON file each, and the table of recipes/README.md that is made of them.

python -m recipes.results
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import lightning
import torch

import regard
from recipes.command import HERE, Run
from regard.record.files import write_whole

BEGIN, END = "<!-- results: python -m recipes.results -->\n", "<!-- end of results -->\n"


def write(run: Run, name: str, scores: dict[str, float], minutes: float, **more: Any) -> None:
    """Writes NAME.json and says what stands in it."""
    found = {
        "recipe": name,
        "scores": scores,
        "minutes": round(minutes, 1),
        "machine": machine(),
        "commit": commit(),
        "seed": run.seed,
        "versions": {"torch": torch.__version__, "lightning": lightning.__version__},
        **more,
    }
    place = run.results(name) / f"{name}.json"
    write_whole(place, (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())
    print(
        f"{name}: " + ", ".join(f"{score} {value:g}" for score, value in scores.items()) + f" ({minutes:.1f} minutes; {place})"
    )


def machine() -> str:
    """The processors that the run had, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = [
        line.split(":")[1].strip() for line in (info.read_text().splitlines() if info.is_file() else ()) if "model name" in line
    ]
    cores = len(os.sched_getaffinity(0))
    return f"{cores} core{'s' * (cores > 1)}, {names[0] if names else platform.processor()}"


def commit() -> str:
    """The commit of this tree; with a plus where files were changed since."""
    said = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=HERE, capture_output=True, text=True, check=False)
    return said.stdout.strip() or f"regard {regard.__version__}"


def table() -> str:
    """The table of all result files, with published figures beside them, and below it their pictures."""
    folder = HERE / "results"
    published: dict[str, dict[str, str]] = json.loads((HERE / "published.json").read_text())
    rows = ["| recipe | score | ours | published | minutes | machine | commit, seed |", "|---|---|---:|---|---:|---|---|"]
    for name, figures in published.items():
        file = folder / f"{name}.json"
        if not file.is_file():
            continue
        found = json.loads(file.read_text())
        for n, (score, value) in enumerate(found["scores"].items()):
            of_run = [str(found["minutes"]), found["machine"], f"{found['commit']}, {found['seed']}"] if n == 0 else [""] * 3
            cells = [name if n == 0 else "", score, f"{value:.2f}", figures.get(score, ""), *of_run]
            rows.append("| " + " | ".join(cells) + " |")
    pictures = [f"![{file.stem}](results/{file.name})" for file in sorted(folder.glob("*.png"))]
    return "\n".join([*rows, "", *pictures]).rstrip() + "\n"


def main() -> None:
    """Puts the table into the README."""
    place = HERE / "README.md"
    before, rest = place.read_text().split(BEGIN)
    write_whole(place, f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}".encode())


if __name__ == "__main__":
    main()
