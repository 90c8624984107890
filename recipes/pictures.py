"""Pictures of attention, drawn by matplotlib."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

from regard.record.files import write_whole


def heatmaps(
    path: Path, matrices: Sequence[Tensor], titles: Sequence[str], queries: Sequence[str], keys: Sequence[str]
) -> None:
    """A map of weights (queries, keys) for each matrix, two in a row; darker is more, small weights raised by a square root."""
    size = 0.11 * max(len(keys), 20), 0.11 * max(len(queries), 12)
    across = min(2, len(matrices))
    down = -(-len(matrices) // across)
    titles = [textwrap.fill(title, max(20, int(14 * size[0]))) for title in titles]
    around = 0.6 + 0.13 * max(title.count("\n") for title in titles) + 0.06 * max(map(len, keys))
    figure = Figure((size[0] * across + 1, (size[1] + around) * down), layout="constrained")
    for n, (matrix, title) in enumerate(zip(matrices, titles, strict=True)):
        axes = figure.add_subplot(down, across, n + 1)
        axes.imshow(matrix.detach().float().cpu(), cmap="Blues", norm=PowerNorm(0.5, 0), aspect="auto", interpolation="nearest")
        axes.set_title(title, fontsize=8, parse_math=False)
        axes.set_xticks(range(len(keys)), keys, rotation=90, fontsize=6)
        axes.set_yticks(range(len(queries)), queries, fontsize=6)
    save(path, figure)


def curves(path: Path, lines: Mapping[str, Sequence[float]], ticks: Sequence[str], across: str, up: str) -> None:
    """One line for each name, over the same ticks."""
    figure = Figure((5, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for name, numbers in lines.items():
        axes.plot(range(len(numbers)), numbers, marker="o", label=name)
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.legend()
    save(path, figure)


def save(path: Path, figure: Figure) -> None:
    """Writes a PNG, whole or not at all, the same bytes for the same picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    write_whole(path, buffer.getvalue())


def shaded(path: Path, rows: Sequence[tuple[str, Sequence[str], Tensor]]) -> None:
    """Text for each (title, tokens, weights), on as many lines as it needs; the more weight, the darker its ground."""
    wide, letter = 130.0, 0.87  # of a line and of a letter
    left = 3 + 0.9 * max(len(title) for title, _, _ in rows)
    down, placed = 0.8, []
    for title, tokens, weights in rows:
        placed.append((1.0, down, title, None))
        across = left
        for token, weight in zip(tokens, (weights / weights.max()).tolist(), strict=True):
            if left < across > wide - 1.5 - letter * len(token):
                across, down = left, down + 1
            placed.append((across, down, token, weight))
            across += letter * len(token) + 1.1
        down += 1.6
    figure = Figure((9, 0.2 * (down - 0.8)))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, wide), ylim=(down - 0.8, 0))
    axes.axis("off")
    for across, at, text, weight in placed:
        drawn = axes.text(across, at, text, fontsize=7, va="center_baseline", parse_math=False)
        if weight is None:
            drawn.set_fontweight("bold")
        else:
            drawn.set_family("monospace")
            drawn.set_bbox({"facecolor": (0.13, 0.44, 0.71, 0.8 * weight), "edgecolor": "none", "pad": 1.5})
    save(path, figure)


def overlays(path: Path, pictures: Tensor, weights: Tensor, titles: Sequence[str]) -> None:
    """Grey pictures (n, height, width), and below each one the same with weights laid over it, the redder the more."""
    figure = Figure((0.9 * len(pictures) + 0.2, 2.1), layout="constrained")
    axes = figure.subplots(2, len(pictures), squeeze=False)
    for n, title in enumerate(titles):
        for row in axes[:, n]:
            row.imshow(pictures[n].cpu(), cmap="gray_r")
            row.axis("off")
        axes[0, n].set_title(title, fontsize=7)
        shown = weights[n].detach().float().cpu()
        red = (0.65 * shown / shown.max()).numpy()
        axes[1, n].imshow(shown.new_ones(shown.shape), cmap="Reds", vmin=0, vmax=1.3, alpha=red)
    save(path, figure)


def spectra(path: Path, frames: Sequence[Tensor], weights: Sequence[Tensor], titles: Sequence[str]) -> None:
    """Spectra (frames, bands), and below each one how much weight each moment receives."""
    figure = Figure((1.3 * len(frames) + 0.2, 2.2), layout="constrained")
    axes = figure.subplots(2, len(frames), squeeze=False, height_ratios=(3, 1))
    for n, title in enumerate(titles):
        axes[0, n].imshow(frames[n].mT.cpu(), origin="lower", aspect="auto", cmap="magma")
        axes[0, n].set_title(title, fontsize=7)
        axes[1, n].bar(range(len(weights[n])), weights[n].detach().cpu(), width=1.0)
        axes[1, n].set_xlim(-0.5, len(weights[n]) - 0.5)
        for row in axes[:, n]:
            row.set_xticks([])
            row.set_yticks([])
    save(path, figure)
