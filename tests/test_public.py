"""Every public name is listed, has a heading in docs/reference, a docstring, and an example that runs."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import regard

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"
PAGES = {  # module → page
    "regard": "regard",
    "regard.masks": "masks",
    "regard.biases": "biases",
    "regard.scores": "scores",
    "regard.readouts": "readouts",
    "regard.nn": "nn",
    "regard.picture": "picture",
    "regard.backends": "backends",
    "regard.transformers": "transformers",
    "regard.pretrained": "pretrained",
    "regard.record": "record",
    "regard.testing": "testing",
}
NEEDS = {"regard.transformers": "transformers", "regard.record": "safetensors", "regard.testing": "hypothesis"}
# the classes whose methods have headings of their own; those of the other ones are listed with their class
IN_FULL = {
    "regard": ("Attention", "Reading"),
    "regard.masks": ("Mask",),
    "regard.biases": ("Bias",),
    "regard.scores": ("Score",),
    "regard.record": ("Record",),
}
INTERNAL = {  # what other modules of the package use
    "regard.backends": {"assign", "choose", "cost", "named"},
    "regard.picture": {"draw_mask", "html_of", "png"},
    "regard.pretrained": {"positions"},
    "regard.scores": {"Additive", "Bilinear", "Cosine", "Distance", "Dot"},
}
OPERATORS = {"Attention": ("__matmul__", "__getitem__")}


def module(name: str) -> ModuleType:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    return importlib.import_module(name)


@cache
def sections(page: str) -> dict[str, str]:
    """What stands below each heading that is a name, `in backticks`, of a page."""
    parts = re.split(r"^#+ (.+)$", (REFERENCE / f"{page}.md").read_text(), flags=re.MULTILINE)[1:]
    return {head.strip("`"): text for head, text in zip(parts[::2], parts[1::2], strict=True) if head.startswith("`")}


def found(within: object, path: str) -> Any:
    for name in path.split("."):
        within = getattr(within, name) if isinstance(within, ModuleType) else inspect.getattr_static(within, name)
    return within


def members(cls: type) -> list[str]:
    """The public methods and properties, inherited ones too; fields, and what Python's own classes give, aside."""
    fields = {field.name for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    ours = {name for base in cls.__mro__ if base.__module__.startswith("regard") for name in vars(base)}
    return sorted(name for name in ours - fields if name[0] != "_")


def names(where: str) -> list[str]:
    """What must have a heading on the page of a module."""
    within = module(where)
    full = [(owner, getattr(within, owner)) for owner in IN_FULL.get(where, ())]
    methods = [f"{owner}.{name}" for owner, cls in full for name in (*members(cls), *OPERATORS.get(owner, ()))]
    return [*within.__all__, *methods]


@pytest.mark.parametrize("name", PAGES)
def test_what_is_public_is_listed_in_order(name):
    listed = module(name).__all__
    assert list(listed) == sorted(listed, key=lambda n: (not n.isupper(), not n[0].isupper(), n))  # as ruff sorts them
    assert not [n for n in listed if n.startswith("_")]
    assert not [n for n in listed if not hasattr(module(name), n)]


@pytest.mark.parametrize("name", PAGES)
def test_a_new_function_is_public_or_said_to_be_internal(name):
    """Functions and classes that are written in the public module itself."""
    own = {n for n, what in vars(module(name)).items() if getattr(what, "__module__", None) == name and n[0] != "_"}
    values = {n for n in own if not inspect.isroutine(found(module(name), n)) and not inspect.isclass(found(module(name), n))}
    assert own - values - {*module(name).__all__} == INTERNAL.get(name, set())


def test_what_the_pages_import_is_public():
    texts = [page.read_text() for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))]
    for text in texts:
        for where, imported in re.findall(r"^from (regard(?:\.\w+)?) import (?:\(\n)?([\w, \n]+)", text, re.MULTILINE):
            if where in PAGES:
                asked = {name for name in re.split(r"[\s,]+", imported.split("\n\n")[0].split("\nfrom")[0]) if name}
                known = {*module(where).__all__, *(other.rpartition(".")[2] for other in PAGES if other != "regard")}
                assert asked <= known, f"{asked - known} of {where}"


@pytest.mark.parametrize("name", PAGES)
def test_every_public_name_has_a_heading(name):
    assert not [n for n in names(name) if n not in sections(PAGES[name])]


@pytest.mark.parametrize("name", PAGES)
def test_every_heading_names_what_exists(name):
    within = module(name)
    for head, text in sections(PAGES[name]).items():
        if head == name:
            continue
        found(within, head)
        directives = re.findall(r"^\.\. [\w:]+:: (\S+)$", text, re.MULTILINE)
        assert directives == [f"{name}.{head}"] or "](" in text, head


@pytest.mark.parametrize("name", PAGES)
def test_every_public_name_has_a_docstring(name):
    for path in names(name):
        what = found(module(name), path)
        if isinstance(what, (tuple, dict, str)):
            assert re.search(r"^\.\. py:data:: \S+\n\n   \w.*\.$", sections(PAGES[name])[path], re.MULTILINE), path
        else:
            doc = what.__doc__ or inspect.getdoc(getattr(found(module(name), path.rpartition(".")[0]), path.rpartition(".")[2]))
            assert doc, path
            assert not doc.startswith(f"{path}("), f"{path} has only the docstring that dataclass gives"
            assert doc.split(">>> ")[0].strip()[-1] in ".:)", path


@pytest.mark.parametrize("name", PAGES)
def test_every_public_name_has_an_example(name):
    """In its docstring, or on its page if it is a value. It runs: tests/test_docs.py runs the docstrings and the pages."""
    for path in names(name):
        what = found(module(name), path)
        if inspect.isroutine(what) or inspect.isclass(what) or isinstance(what, (property, classmethod, staticmethod)):
            owner, _, leaf = path.rpartition(".")
            documented = getattr(found(module(name), owner), leaf) if owner else what
            assert ">>> " in (inspect.getdoc(documented) or ""), path
        else:
            assert "```python\n" in sections(PAGES[name])[path] or "](" in sections(PAGES[name])[path], path
        leaf = path.rpartition(".")[2]
        if "```python\n" in sections(PAGES[name])[path] and not leaf.startswith("__"):
            blocks = re.findall(r"^```python\n(.*?)^```", sections(PAGES[name])[path], re.DOTALL | re.MULTILINE)
            assert any(re.search(rf"\b{leaf}\b", block) for block in blocks), f"the example of {path} does not use it"


def test_every_command_and_every_option_is_on_its_page():
    typer = pytest.importorskip("typer")
    from regard.cli import main

    app = typer.main.get_command(main)
    text = sections("command-line")
    assert {head.removeprefix("regard ") for head in text} == {*app.commands}
    for name, command in app.commands.items():
        own = text[f"regard {name}"]
        options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        said = {*re.findall(r"^\| `(--[\w-]+)", own, re.MULTILINE)}
        shared = {"--file", "--model"} & options
        assert said == options - shared - {"--help"}, name
        assert f"$ regard {name}" in own
    assert all(f"| `{option} " in (REFERENCE / "command-line.md").read_text() for option in ("--file", "--model"))


def test_the_reference_has_no_other_pages():
    assert set(PAGES.values()) | {"command-line"} == {page.stem for page in REFERENCE.glob("*.md")}


def test_the_contents_name_every_page():
    index = (ROOT / "docs" / "index.md").read_text()
    for page in sorted((ROOT / "docs").rglob("*.md")):
        path = page.relative_to(ROOT / "docs").with_suffix("").as_posix()
        assert path == "index" or path in index or path.startswith("ideas/"), path


def test_the_version_is_one():
    assert f'version = "{regard.__version__}"' in (ROOT / "pyproject.toml").read_text()
