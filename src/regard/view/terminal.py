"""Looks as tables in a terminal, or in whatever the output is piped to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from regard import Attention
from regard.pretrained import Pretrained, Tokens, attentions
from regard.view.looks import Look, looks, occurrences, shared_heads, strongest

HEADS = 8  # how many heads of a token are shown
CELLS = 12  # the length of a bar that stands for a weight of 1, half of it where the terminal is narrow
WIDE = 64  # the columns that everything needs
NOTHING = Text("nothing else in sight", style="dim")
SHOWN = 70  # how many characters of a text stand above its table


def show(console: Console, pretrained: Pretrained, texts: Sequence[Tokens], token: str | None = None) -> None:
    """Print where one token of the texts looks, head by head, or where each token looks the most."""
    places = None if token is None else occurrences(texts, token)  # before the model runs: it may not be there
    matrices = [attentions(pretrained, tokens) for tokens in texts]
    if places is None:
        for tokens, layers in zip(texts, matrices, strict=True):
            console.print(_strongest_table(tokens, strongest(layers, tokens), console))
    else:
        asked = [
            (tokens, query, looks(layers, tokens, query))
            for tokens, layers, queries in zip(texts, matrices, places, strict=True)
            for query in queries
        ]
        heads = shared_heads((row for _, _, row in asked), HEADS)
        for tokens, query, row in asked:
            by_head = {(look.layer, look.head): look for look in row}
            console.print(_token_table(tokens, query, [by_head[head] for head in heads], console))
    for line in _caption(pretrained, texts, matrices, places, console):
        console.print(line)


def _token_table(tokens: Tokens, query: int, row: Sequence[Look], console: Console) -> Table:
    table = _table(Text.assemble((_name(tokens, query), "bold"), "  in  ", _excerpt(tokens, query)))
    _columns(table, console)
    for look in row:
        table.add_row(str(look.layer), str(look.head), *_cells(tokens, look, console))
    return table


def _strongest_table(tokens: Tokens, rows: Sequence[Look], console: Console) -> Table:
    table = _table(_excerpt(tokens, None))
    table.add_column("token", overflow="fold")
    _columns(table, console)
    for look in rows:
        name = Text(_name(tokens, look.query))
        if look.key is None:
            table.add_row(name, "", "", NOTHING)  # in no head at all
        else:
            table.add_row(name, str(look.layer), str(look.head), *_cells(tokens, look, console))
    return table


def _table(title: Text) -> Table:
    return Table(title=title, title_justify="left", title_style="", box=box.SIMPLE, safe_box=True, pad_edge=False)


def _columns(table: Table, console: Console) -> None:
    table.add_column("layer", justify="right", min_width=5)
    table.add_column("head", justify="right", min_width=4)
    table.add_column("strongest key", overflow="fold", min_width=6)
    table.add_column("weight", no_wrap=True)
    if console.width >= WIDE:
        table.add_column("separators", justify="right")
        table.add_column("itself", justify="right")


def _cells(tokens: Tokens, look: Look, console: Console) -> tuple[Text, ...]:
    key = NOTHING if look.key is None else Text(_name(tokens, look.key))
    wide = console.width >= WIDE
    weight = (
        f"{look.weight:.2f} ",
        (bar(look.weight, CELLS if wide else CELLS // 2, console.options.ascii_only), "cyan"),
    )
    aside = [Text(f"{mass:.2f}", style="dim") for mass in (look.special, look.itself)] if wide else []
    return key, Text.assemble(*weight), *aside


def _caption(
    pretrained: Pretrained,
    texts: Sequence[Tokens],
    matrices: Sequence[Sequence[Attention]],
    places: Sequence[Sequence[int]] | None,
    console: Console,
) -> Iterator[str]:
    heads = {layer.shape[-3] for layer in matrices[0]}
    per_layer = str(heads.pop()) if len(heads) == 1 else "several"
    counts = " and ".join(str(len(tokens.ids)) for tokens in texts)
    yield f"{safe(pretrained.name)}: {len(matrices[0])} layers of {per_layer} heads, counted from 0; {counts} tokens."
    aside = ", whose shares are the last two columns" if console.width >= WIDE else ""
    yield f"The strongest key is the one beyond separators and the token itself{aside}; #n is token n, counted from 0."
    if places is not None and sum(map(len, places)) > 1:
        yield "Every table shows the same heads: those with the largest weights in any of them."


def _name(tokens: Tokens, place: int) -> str:
    """A token as a person finds it again: with its place where the same one stands more than once."""
    piece = tokens.pieces[place].casefold()
    twice = any(i != place and other.casefold() == piece for i, other in enumerate(tokens.pieces))
    return safe(tokens.pieces[place]) + (f" #{place}" if twice else "")


def _excerpt(tokens: Tokens, query: int | None) -> Text:
    """The text, or what stands around one of its tokens, which is underlined."""
    start, end = (0, 0) if query is None else tokens.spans[query]
    left = max(0, min(start - SHOWN // 2, len(tokens.text) - SHOWN))
    right = max(end, left + SHOWN)
    before, there, after = tokens.text[left:start], tokens.text[start:end], tokens.text[end:right]
    return Text.assemble(
        "…" if left else "",
        safe(before),
        (safe(there), "underline"),
        safe(after),
        "…" if right < len(tokens.text) else "",
    )


def bar(weight: float, cells: int, ascii_only: bool = False) -> str:
    """A weight from 0 to 1 as a bar, to the eighth of a cell."""
    if ascii_only:
        return "#" * round(weight * cells)
    eighths = round(weight * cells * 8)
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]


def safe(text: str) -> str:
    """Text from elsewhere with everything that a terminal would obey, rather than show, written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
