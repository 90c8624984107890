"""Draws the pictures of docs/ideas through the library: python docs/pictures.py. Everything in them is computed here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from regard import masks, pretrained
from regard.masks import Mask, causal, documents, prefix, window
from regard.picture import png
from regard.plan import Axes, lay

IMAGES = Path(__file__).with_name("images")
SENTENCE = "The animal didn't cross the street because it was too tired."
SIDE, TILE, CELL = 512, 32, 18  # positions, positions per tile, pixels per tile
SHADES = {"empty": "#f4f4f2", "mixed": "#f0b429", "full": "#2f6f9f"}


def head() -> None:
    """Layer 3, head 1 of the packaged MiniLM on the sentence: one square per weight, as dark as its square root."""
    model = pretrained.load()
    tokens = pretrained.tokenize(model, SENTENCE)
    with torch.no_grad():
        weights = pretrained.attentions(model, tokens)[3][0, 1].to_dense()
    dark = np.round(255 * (1 - weights.sqrt().clamp(0, 1).numpy())).astype(np.uint8)
    (IMAGES / "minilm-layer-3-head-1.png").write_bytes(png(dark.repeat(20, 0).repeat(20, 1)))
    words = [piece.lower() for piece in tokens.pieces]
    print(f"it -> animal: {float(weights[words.index('it'), words.index('animal')]):.2f}")


def plan(name: str, mask: Mask, numbered: bool) -> None:
    """The tiles of a plan: not there, looked at, wholly seen; numbered in the order of the row sweep."""
    axes = Axes(range(1), range(1), range(SIDE), range(SIDE))
    laid = lay(mask, axes, 0, TILE, TILE)
    tiles = SIDE // TILE
    kinds = [["empty"] * tiles for _ in range(tiles)]
    for row in range(tiles):
        for step in laid.steps(row, TILE):
            kinds[row][step.begin // TILE] = "mixed" if step.mixed else "full"
    drawn, number = [], 0
    for row in range(tiles):
        for column in range(tiles):
            kind = kinds[row][column]
            x, y = column * CELL, row * CELL
            drawn.append(f'<rect x="{x}" y="{y}" width="{CELL - 1}" height="{CELL - 1}" fill="{SHADES[kind]}"/>')
            if numbered and kind != "empty":
                number += 1
                shade = "#fff" if kind == "full" else "#222"
                drawn.append(f'<text x="{x + CELL / 2}" y="{y + 12}" fill="{shade}">{number}</text>')
    size = tiles * CELL
    style = '<style>text{font:7px sans-serif;text-anchor:middle}</style><rect width="100%" height="100%" fill="#fff"/>'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}" width="{2 * size}" height="{2 * size}">'
    (IMAGES / f"{name}.svg").write_text(svg + style + "".join(drawn) + "</svg>\n")
    flat = [kind for line in kinds for kind in line]
    print(name, {kind: flat.count(kind) for kind in SHADES})


if __name__ == "__main__":
    head()
    plan("sweep", causal, numbered=True)
    packed = documents(torch.arange(SIDE) // 200)
    plan("plan", (window(96) | prefix(4)) & packed & masks.causal, numbered=False)
