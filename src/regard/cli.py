"""The command ``regard``. Whatever a user got wrong is one sentence on stderr and exit code 2."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

# transformers takes seconds to import, so each command imports what it needs, and --help does without.

main = typer.Typer(
    name="regard",
    help="Self-attention you can look at.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Texts = Annotated[list[str] | None, typer.Argument(metavar="TEXT...", help="One text, or several to compare.")]
Files = Annotated[list[Path] | None, typer.Option(help="A text file in UTF-8, read as one more text; may be repeated.")]
Model = Annotated[
    str | None,
    typer.Option(help="A name on the Hugging Face Hub, or a directory. Without it, the small packaged model."),
]


@main.command()
def view(
    texts: Texts = None,
    file: Files = None,
    model: Model = None,
    token: Annotated[
        str | None,
        typer.Option(help="The token to follow, a piece or a whole word. Without it, each token's strongest look."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="PAGE", help="The page to write: one file, which needs no network.")] = Path(
        "regard.html"
    ),
    show_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Show where the tokens of a text look, here and on a page."""
    from rich.console import Console

    with _one_sentence(), Console(stderr=True).status("loading PyTorch and the model"):
        from regard.pretrained import load, tokenize
        from regard.view.terminal import safe, show

        given = _given(texts, file)
        pretrained = load(model)
        tokens = [tokenize(pretrained, text) for text in given]
    with _one_sentence():
        show(_console(), pretrained, tokens, token)
        from regard.record import record
        from regard.view.page import write

        write(record(pretrained, given), out, token)
    _console().print(f"The page: {safe(str(out))}", soft_wrap=True)
    if show_page:
        import webbrowser

        if not webbrowser.open(out.resolve().as_uri()):
            _stop("no browser could be opened; open the page yourself.")


@main.command()
def heads(
    texts: Texts = None,
    file: Files = None,
    model: Model = None,
    csv: Annotated[str | None, typer.Option(metavar="FILE", help="Write the table as CSV as well.")] = None,
    parquet: Annotated[str | None, typer.Option(metavar="FILE", help="Write the table as Parquet as well.")] = None,
) -> None:
    """Show what each head does: entropy, distance, and the mass on first, special, neighbouring and own tokens."""
    from rich.console import Console

    with _one_sentence(), Console(stderr=True).status("loading PyTorch and the model"):
        from regard.pretrained import load
        from regard.record import record
        from regard.record.heads import write_csv, write_parquet
        from regard.record.shapes import HEAD_TABLE
        from regard.view.heads import show

        given = _given(texts, file)
        read = record(load(model), given, readouts=HEAD_TABLE)
        frame = read.heads()
    with _one_sentence():
        if csv is not None:
            write_csv(frame, csv)
        if parquet is not None:
            write_parquet(frame, parquet)
        show(_console(), read, frame)


@main.command("record")
def write_record(
    out: Annotated[str, typer.Option(metavar="FILE", help="The file to write, such as my.regard.safetensors.")],
    texts: Texts = None,
    file: Files = None,
    model: Model = None,
    top: Annotated[int, typer.Option(min=8, help="How many keys of each token are kept in texts of more than 64.")] = 8,
) -> None:
    """Write what a model attends to in some texts, and the texts, to a file for regard.load."""
    from rich.console import Console

    with _one_sentence(), Console(stderr=True).status("loading PyTorch and the model"):
        from regard.pretrained import load
        from regard.record import record

        given = _given(texts, file)
        record(load(model), given, top).save(out)


@main.command()
def doctor() -> None:
    """Say what is installed, which backends can be used, and why the others cannot."""
    from regard.doctor import examine

    report = examine()
    console = _console()
    for heading in ("versions", "devices", "backends", "extras"):
        console.print(heading, style="bold")
        for name, what in getattr(report, heading):
            console.print(f"  {name:<14}{what}", soft_wrap=True)


def _given(texts: list[str] | None, files: list[Path] | None) -> list[str]:
    """The texts of the command line, then those of the files."""
    from regard.pretrained import Refused

    found = list(texts or ())
    for path in files or ():
        try:
            found.append(path.read_bytes().decode("utf-8").rstrip("\r\n"))
        except OSError as error:
            raise Refused(f"the text file {str(path)!r} cannot be read: {error.strerror or error}.") from error
        except UnicodeDecodeError as error:
            raise Refused(
                f"the text file {str(path)!r} is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}; "
                "convert it, for instance with iconv."
            ) from error
    if not found:
        raise Refused("there is no text: give one or several, or name text files with --file.")
    return found


def _console() -> Console:
    from rich.console import Console

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # an encoding without a letter is no reason to stop
    return Console(markup=False, highlight=False, emoji=False)


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Turn the errors that are meant for the user into their sentence, and leave every other one as it is."""
    try:
        yield
    except Exception as error:
        from regard.checks import Unsupported
        from regard.pretrained import Refused
        from regard.record import BadRecord, NotWritten

        if not isinstance(error, Refused | Unsupported | BadRecord | NotWritten):
            raise
        _stop(str(error))


def _stop(sentence: str) -> NoReturn:
    from regard.view.terminal import safe

    print(f"regard: {safe(sentence)}", file=sys.stderr)
    raise typer.Exit(2)
