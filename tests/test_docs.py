"""Every Python block of the README runs, its pictures are what the library draws, and docstring examples hold."""

from __future__ import annotations

import csv
import doctest
import re
import sys
from pathlib import Path

import pytest
import torch

import regard
from regard.readouts import Entropy, Received, TopK

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
ROWS = list(csv.DictReader((ROOT / "benchmarks" / "results.csv").read_text().splitlines()))


def _blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", README, re.DOTALL)


def test_the_readme_runs():
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    names: dict[str, object] = {}
    blocks = _blocks("python")
    assert len(blocks) >= 5
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    dense, lazy = names["W"], names["A"]
    assert lazy.shape == dense.shape
    torch.testing.assert_close(lazy.to_dense(), dense)
    assert names["outputs"].attentions[1].shape == (1, 4, 300, 300)
    assert names["mask"].draw(7, 7) in README


def test_the_first_screen_has_code_and_the_measured_memory():
    lines = README.splitlines()
    assert any(line.startswith("```python") for line in lines[:30])
    claimed = int(re.search(r"\*\*(\d+) MiB\*\* beyond the inputs", README).group(1))
    measured = [float(r["regard"]) for r in ROWS if r["measure"] == "MiB beyond the inputs" and r["case"].startswith("65536 ")]
    assert claimed == round(max(measured)) <= 512


def test_the_ratios_of_speed_are_the_measured_ones():
    last = [f"{float(r['regard']):.2g}" for r in ROWS if r["benchmark"] == "speed"][-9:]
    lines = README[README.index("| time of regard") :].splitlines()[2:5]
    assert [line.split("|")[2:5] for line in lines] == [[f" {last[3 * c + m]} " for c in range(3)] for m in range(3)]


def test_docstring_examples():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 8)
    names = {
        "torch": torch,
        "regard": regard,
        "A": regard.attention(q, k),
        "v": v,
        "TopK": TopK,
        "Entropy": Entropy,
        "Received": Received,
    }
    found = doctest.testmod(sys.modules["regard.attention"], extraglobs=names)
    assert found.attempted >= 5
    assert found.failed == 0
