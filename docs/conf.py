"""Sphinx: the pages are Markdown, the reference is read from the docstrings, and nothing is fetched."""

from __future__ import annotations

import re
from typing import Any

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
MADE_BY_OTHERS = ("regard.Attention", "regard.Reading")  # nobody calls these


def plain(app: Any, what: Any, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with formulas, `code`, examples and sections: Σ_{j: …} and |i - j| are no markup."""
    for n, line in enumerate(lines):
        if line.lstrip().startswith((">>>", "...")):
            continue
        parts = CODE.split(line)
        parts[::2] = [MARKUP.sub(r"\\\1", part) for part in parts[::2]]
        parts[1::2] = [code(part.strip("`")) for part in parts[1::2]]
        lines[n] = "".join(parts)
    if what not in ("data", "attribute", "property"):  # there, a colon would end the name of a type
        lines[:] = GoogleDocstring(lines, None, None, what, name, obj, options).lines()


def code(text: str) -> str:
    """What stands in backticks: a link where it is a name of the reference."""
    name = LINKED.fullmatch(text)
    return f":py:obj:`{text} <regard.{name[1]}>`" if name else f"``{text}``"


def signature(app: Any, what: str, name: str, obj: object, options: Any, given: str | None, returned: str | None) -> Any:
    return ("", None) if name in MADE_BY_OTHERS else None


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", plain)
    app.connect("autodoc-process-signature", signature)
