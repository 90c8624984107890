"""Draws the pictures of docs/ideas through the library: python docs/pictures.py. Everything in them is computed here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from regard import masks, picture, pretrained
from regard.masks import Mask, causal, documents, prefix, window
from regard.plan import Axes, lay

IMAGES = Path(__file__).with_name("images")
TOUR = Path(__file__).with_name("tour.md")
SENTENCE = "The animal didn't cross the street because it was too tired."
SIDE, TILE, CELL = 512, 32, 18  # positions, positions per tile, pixels per tile
SHADES = {"empty": "#f4f4f2", "mixed": "#f0b429", "full": "#2f6f9f"}


def head() -> None:
    """Layer 3, head 1 of the packaged MiniLM on the sentence: a square per weight, as dark as its root; from 0.1 numbered."""
    model = pretrained.load()
    tokens = pretrained.tokenize(model, SENTENCE)
    with torch.no_grad():
        weights = pretrained.attentions(model, tokens)[3][0, 1].to_dense()
    (IMAGES / "minilm-layer-3-head-1.svg").write_text(picture.svg(weights, tokens.pieces, tokens.pieces))
    it, animal = (tokens.pieces.index(word) for word in ("it", "animal"))
    print(f"it -> animal: {float(weights[it, animal]):.2f}; received by [CLS]: {float(weights[:, 0].sum()):.1f}")


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
    _write(name, tiles * CELL, "text{font:7px sans-serif;text-anchor:middle}", drawn, zoom=2)
    flat = [kind for line in kinds for kind in line]
    print(name, {kind: flat.count(kind) for kind in SHADES})


def reversal() -> None:
    """The alignment of the model that the tour trains: its own blocks are run."""
    names: dict[str, Any] = {}
    torch.set_num_threads(1)
    torch.manual_seed(0)
    text = TOUR.read_text()
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        exec(block, names)
        if "logits, A = bahdanau" in block:
            break
    digits = [str(n) for n in range(10)]
    (IMAGES / "reversal.svg").write_text(picture.svg(names["A"][0, 0], [f"word {n}" for n in digits], digits))
    print("reversal: right digits", {name: names["right"](names[name]) for name in ("bottleneck", "bahdanau")})


def _write(name: str, size: int, style: str, drawn: list[str], zoom: int = 1) -> None:
    """A square picture on white, which pages in the dark show as it is."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}" width="{zoom * size}" height="{zoom * size}">'
    ground = f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>'
    (IMAGES / f"{name}.svg").write_text("\n".join([head + ground, *drawn, "</svg>", ""]))


if __name__ == "__main__":
    head()
    plan("sweep", causal, numbered=True)
    packed = documents(torch.arange(SIDE) // 200)
    plan("plan", (window(96) | prefix(4)) & packed & masks.causal, numbered=False)
    reversal()
