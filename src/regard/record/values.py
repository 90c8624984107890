"""A record in memory: frozen values, and nothing that needs more than NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from regard.checks import Unsupported
from regard.record.shapes import READOUTS

if TYPE_CHECKING:
    import polars


@dataclass(frozen=True)
class Layer:
    """One attention layer: who attends to whom, and how scores are made.

    >>> made.layers[0].kind, made.layers[0].heads, made.layers[0].mask
    ('self', 12, 'full')
    """

    kind: str  #: "self": queries and keys are the tokens of one text
    heads: int
    kv_heads: int
    scale: float  #: what the dot products are multiplied with
    mask: str  #: the expression of the mask; where texts have different ones, each of them, joined by " or "
    offset: int  #: the position of query 0 among the keys


@dataclass(frozen=True, eq=False)
class Text:
    """One text as the model read it, and what was read out: one entry per token in each tuple.

    >>> made.texts[0].pieces
    ('[CLS]', 'The', 'cat', 'sat', '.', '[SEP]')
    """

    text: str
    ids: tuple[int, ...]
    pieces: tuple[str, ...]  #: as they stand in the text, without the tokenizer's own marks
    spans: tuple[tuple[int, int], ...]  #: characters of the text; (n, n) where a token stands for none
    special: tuple[bool, ...]  #: separators and the like
    arrays: Mapping[str, NDArray[Any]]  #: by name, see docs/record-format.md; read-only

    def __post_init__(self) -> None:
        views = {name: array.view() for name, array in self.arrays.items()}
        for view in views.values():
            view.flags.writeable = False
        object.__setattr__(self, "arrays", MappingProxyType(views))


@dataclass(frozen=True, eq=False)
class Record:
    """What was read out of a model for some texts: which readouts, per layer and head, with everything that they mean.

    Made by `regard.record.record(pretrained, texts)` or read from a file by `regard.load(path)`. It contains the texts.

    >>> made = regard.record.record(regard.pretrained.load(), "The cat sat.")
    >>> made.readouts
    ('topk', 'entropy', 'logsumexp', 'distance', 'maximum', 'self', 'previous', 'next', 'first', 'special', 'received', 'pool')
    """

    model: str
    revision: str | None
    texts: tuple[Text, ...]
    layers: tuple[Layer, ...]
    readouts: tuple[str, ...]
    versions: Mapping[str, str]  #: of the libraries that read it

    def __post_init__(self) -> None:
        object.__setattr__(self, "versions", MappingProxyType(dict(sorted(self.versions.items()))))

    def __repr__(self) -> str:
        counts = " and ".join(str(len(text.ids)) for text in self.texts)
        return f"Record({self.model!r}, {len(self.layers)} layers of {self.layers[0].heads} heads, {counts} tokens)"

    def save(self, path: str | Path) -> None:
        """Write the record as one safetensors file, whole or not at all; the format is in docs/record-format.md.

        >>> made.save(folder / "cat.regard.safetensors")
        >>> regard.load(folder / "cat.regard.safetensors")
        Record('all-MiniLM-L6-v2', 6 layers of 12 heads, 6 tokens)
        """
        from regard.record.files import write_whole
        from regard.record.format import encode

        write_whole(path, encode(self))

    def page(self, path: str | Path, token: str | None = None) -> None:
        """Write the record as one HTML file that works from disk without network, opened at a token if one is named.

        >>> made.page(folder / "cat.html", token="cat")
        >>> (folder / "cat.html").read_text()[:15]
        '<!doctype html>'
        """
        from regard.view.page import write

        write(self, path, token)

    def show(self) -> None:
        """Open the page in a browser, from a temporary file.

        >>> made.show()
        """
        import tempfile
        import webbrowser

        path = Path(tempfile.mkdtemp(prefix="regard-")) / "regard.html"
        self.page(path)
        if not webbrowser.open(path.as_uri()):
            raise Unsupported(f"show: no browser could be opened; the page is {path}.")

    def heads(self) -> polars.DataFrame:
        """The head table: one row per text, layer and head, with the means of the readouts over the queries.

        >>> made.heads().select("layer", "head").shape
        (72, 2)
        """
        from regard.record.heads import table

        return table(self)

    def require(self, operation: str, readouts: Sequence[str]) -> None:
        """Raise `regard.checks.Unsupported`, naming what is missing and the call that adds it, unless all are there.

        >>> made.require("my plot", ["entropy"])
        >>> few = regard.record.record(regard.pretrained.load(), "The cat sat.", readouts=["entropy"])
        >>> few.require("my plot", ["received"])
        Traceback (most recent call last):
            ...
        regard.checks.Unsupported: my plot: the record lacks received; read them with regard.record.record(...
        """
        missing = [name for name in readouts if name not in self.readouts]
        if missing:
            wanted = tuple(name for name in READOUTS if name in {*self.readouts, *missing})
            raise Unsupported(
                f"{operation}: the record lacks {', '.join(missing)}; read them with regard.record.record(pretrained, "
                f"texts, readouts={wanted!r}), or without readouts= for all of them."
            )
