"""The head table in a terminal, or in whatever the output is piped to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from regard.record.shapes import HEAD_TABLE
from regard.record.values import Record
from regard.view.terminal import SHOWN, safe

if TYPE_CHECKING:
    import polars

UNITS = "Means over all tokens. Entropy in nats, distance in tokens, the others are weights."


def show(console: Console, record: Record, frame: polars.DataFrame) -> None:
    """Print a table per text, with as many columns as the terminal has room for."""
    shown = _fitting(console.width)
    for number, text in enumerate(record.texts):
        excerpt = safe(text.text[:SHOWN]) + ("…" if len(text.text) > SHOWN else "")
        table = Table(
            title=Text(excerpt),
            title_justify="left",
            title_style="",
            box=box.SIMPLE,
            safe_box=True,
            pad_edge=False,
            collapse_padding=True,
        )
        for name in ("layer", "head", *shown):
            table.add_column(name, justify="right", no_wrap=True)
        rows = frame.filter(frame["text"] == number).select("layer", "head", *shown)
        for layer, head, *numbers in rows.iter_rows():
            table.add_row(str(layer), str(head), *(f"{value:.2f}" for value in numbers))
        console.print(table)
    counts = " and ".join(str(len(text.ids)) for text in record.texts)
    heads = record.layers[0].heads
    console.print(f"{safe(record.model)}: {len(record.layers)} layers of {heads} heads, counted from 0; {counts} tokens.")
    console.print(UNITS)
    if left := HEAD_TABLE[len(shown) :]:
        console.print(f"No room for {', '.join(left)}: use a wider terminal, or --csv.")


def _fitting(width: int) -> tuple[str, ...]:
    """As many columns of the head table as a terminal has room for, at least one."""
    used, shown = len("  layer  head"), list[str]()
    for name in HEAD_TABLE:
        used += len("  " + name)
        if shown and used > width:
            break
        shown.append(name)
    return tuple(shown)
