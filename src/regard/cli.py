"""The command ``regard``. Whatever a user got wrong is one sentence on stderr and exit code 2."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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


@main.command()
def view(
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="One text, or several to compare.")],
    model: Annotated[
        str | None,
        typer.Option(help="A name on the Hugging Face Hub, or a directory. Without it, the small packaged model."),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(help="The token to follow, a piece or a whole word. Without it, each token's strongest look."),
    ] = None,
) -> None:
    """Show where the tokens of a text look."""
    from rich.console import Console

    with _one_sentence(), Console(stderr=True).status("loading PyTorch and the model"):
        from regard.pretrained import load, tokenize
        from regard.view.terminal import show

        pretrained = load(model)
        tokens = [tokenize(pretrained, text) for text in texts]
    with _one_sentence():
        show(_console(), pretrained, tokens, token)


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

        if not isinstance(error, Refused | Unsupported):
            raise
        _stop(str(error))


def _stop(sentence: str) -> NoReturn:
    from regard.view.terminal import safe

    print(f"regard: {safe(sentence)}", file=sys.stderr)
    raise typer.Exit(2)
