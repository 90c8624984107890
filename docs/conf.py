"""Sphinx: the pages are Markdown, the reference is read from the docstrings, and nothing is fetched."""

from __future__ import annotations

import inspect
import re
from typing import Any

from sphinx.ext.napoleon import Config
from sphinx.ext.napoleon.docstring import GoogleDocstring

import regard

project = "regard"
copyright = "the authors of regard"
version = release = regard.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "regard"
html_show_sphinx = False
html_copy_source = False
html_show_copyright = False

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100
# A name that a docstring or a page refers to must be there. What other projects own, and what is inside, has no page.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(torch|numpy|collections|pathlib|jaxtyping|polars|hypothesis|transformers)\..*"),
    ("py:.*", r"regard\.(nn\.\w+|attention|biases|call|dropout|explain|masks\.algebra|pretrained|testing\.strategies)\..*"),
    ("py:class", "Tensor|Size|Path|Pretrained|Sizes|Options|Norm|nn.Module"),
    ("py:exc", "Refused"),
]
toc_object_entries = False  # the headings are the contents

CODE = re.compile(r"(``.+?``|`[^`]+`)")
MARKUP = re.compile(r"([\\*_|])")
LINKED = re.compile(r"(?:regard\.)?((?:readouts|masks|biases|scores|record)\.[A-Za-z]\w*)")
SECTION = re.compile(r"(Args|Raises):")
GOOGLE = Config(napoleon_use_param=False)  # "begin, end:" stays one entry
UNBUILT = re.compile(r"^> On GitHub .*\n\n", re.MULTILINE)  # how to get what is being built
MADE_BY_OTHERS = ("regard.Attention", "regard.Reading")  # nobody calls these


def plain(app: Any, what: Any, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with formulas, `code`, examples and sections: Σ_{j: …} and |i - j| are no markup."""
    marked = [""]
    section, literal = None, False  # within Args or Raises; within an example or a formula
    for line in lines:
        if line and line[0] != " ":
            section = SECTION.fullmatch(line)
        begins = line != "" and marked[-1] == ""
        literal = line != "" and (literal or line.startswith(">>> "))
        if begins and line[0] == " " and not section:
            marked += [".. code-block:: text", ""]
            literal = True
        if literal:
            marked.append(line)
        else:
            marked += [escaped(part) for part in (entries(line, section[1], obj) if section else [line])]
    lines[:] = marked[1:]
    if what not in ("data", "attribute", "property"):  # there, a colon would end the name of a type
        lines[:] = GoogleDocstring(lines, GOOGLE, None, what, name, obj, options).lines()


def entries(line: str, section: str, obj: object) -> list[str]:
    """A line of a section with an entry on each: "dim: of x. heads: how many." are two, if these are names of arguments."""
    named = r"[A-Z]\w+" if section == "Raises" else "|".join(arguments(obj))
    if not named:
        return [line]
    *others, last = re.split(rf"[.;] (?=(?:{named})(?:, (?:{named}))*: )", line)
    indent = line[: len(line) - len(line.lstrip())]
    found = [part if n == 0 else f"    {part}" for n, part in enumerate([*(f"{part}." for part in others), last])]
    if section == "Args" or indent != "    ":
        return found
    if ": " not in line:  # "Also whatever … raises."
        return [f"    {line}"]
    each = [part.strip().partition(": ") for part in found]  # "TypeError, ValueError: …" are two links
    return [f"    {one}: {why}" for names, _, why in each for one in names.split(", ")]


def arguments(obj: Any) -> list[str]:
    """The names of its arguments."""
    try:
        return list(inspect.signature(obj).parameters)
    except (TypeError, ValueError):
        return []


def escaped(line: str) -> str:
    """A line of text, in which only `code` is markup."""
    parts = CODE.split(line)
    parts[::2] = [MARKUP.sub(r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [code(part.strip("`")) for part in parts[1::2]]
    return "".join(parts)


def code(text: str) -> str:
    """What stands in backticks: a link where it is a name of the reference."""
    name = LINKED.fullmatch(text)
    return f":py:obj:`{text} <regard.{name[1]}>`" if name else f"``{text}``"


def built(app: Any, page: str, source: list[str]) -> None:
    source[0] = UNBUILT.sub("", source[0])


def signature(app: Any, what: str, name: str, obj: object, options: Any, given: str | None, returned: str | None) -> Any:
    return ("", None) if name in MADE_BY_OTHERS else None


def setup(app: Any) -> None:
    app.connect("source-read", built)
    app.connect("autodoc-process-docstring", plain)
    app.connect("autodoc-process-signature", signature)
