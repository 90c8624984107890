"""The head table: what each head does, in a few numbers, as a polars frame."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from regard.checks import Unsupported
from regard.record.files import write_whole
from regard.record.shapes import HEAD_TABLE
from regard.record.values import Record

if TYPE_CHECKING:
    import polars


def table(record: Record) -> polars.DataFrame:
    """One row per text, layer and head, sorted, all counted from 0; the other columns are float32 means over the queries.

    Entropy is in nats, distance in tokens; first, special, previous, next and self are the mass on the first key, on the
    special tokens and on the neighbours (0 where there is none); maximum is the largest weight. Every token of the text is
    a query that counts, special ones too. A padded query would weigh 0: texts are recorded one by one, without padding.
    """
    record.require("heads", HEAD_TABLE)
    try:
        import polars as pl
    except ImportError as error:
        raise Unsupported("heads: a head table is a polars frame: pip install 'regard[record]'.") from error
    size = (len(record.texts), len(record.layers), record.layers[0].heads)
    columns = {
        name: pl.Series(axis.ravel(), dtype=pl.Int32)
        for name, axis in zip(("text", "layer", "head"), np.indices(size, dtype=np.int32), strict=True)
    }
    for name in HEAD_TABLE:
        means = [text.arrays[name].mean(-1, dtype=np.float64) for text in record.texts]  # each (layers, heads)
        columns[name] = pl.Series(np.stack(means).ravel().astype(np.float32), dtype=pl.Float32)
    return pl.DataFrame(columns)


def write_csv(frame: polars.DataFrame, path: str | Path) -> None:
    """Write a head table as CSV, whole or not at all."""
    write_whole(path, frame.write_csv().encode())


def write_parquet(frame: polars.DataFrame, path: str | Path) -> None:
    """Write a head table as Parquet, whole or not at all."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    write_whole(path, buffer.getvalue())
