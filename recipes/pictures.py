"""Pictures of attention, drawn by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from regard.record.files import write_whole


def heatmaps(
    path: Path, matrices: Sequence[Tensor], titles: Sequence[str], queries: Sequence[str], keys: Sequence[str]
) -> None:
    """A map of weights (queries, keys) for each matrix, two in a row; darker is more."""
    size = 0.11 * max(len(keys), 20), 0.11 * max(len(queries), 12)
    across = min(2, len(matrices))
    down = -(-len(matrices) // across)
    figure = Figure((size[0] * across + 1, (size[1] + 0.7) * down), layout="constrained")
    for n, (matrix, title) in enumerate(zip(matrices, titles, strict=True)):
        axes = figure.add_subplot(down, across, n + 1)
        axes.imshow(matrix.detach().float().cpu(), cmap="Blues", vmin=0, aspect="auto", interpolation="nearest")
        axes.set_title(title, fontsize=8)
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
    """A line of text for each (title, tokens, weights); the more weight, the darker its ground."""
    figure = Figure((9, 0.32 * len(rows) + 0.4))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 130), ylim=(len(rows), 0))
    axes.axis("off")
    for n, (title, tokens, weights) in enumerate(rows):
        axes.text(1, n + 0.5, title, fontsize=7, va="center", fontweight="bold")
        across = 34.0
        for token, weight in zip(tokens, (weights / weights.max()).tolist(), strict=True):
            box = {"facecolor": (0.13, 0.44, 0.71, 0.8 * weight), "edgecolor": "none", "pad": 1.5}
            axes.text(across, n + 0.5, token, fontsize=7, va="center", family="monospace", bbox=box)
            across += 0.85 * len(token) + 1.1
    save(path, figure)


def overlays(path: Path, pictures: Tensor, weights: Tensor, titles: Sequence[str]) -> None:
    """Grey pictures (n, height, width), and below each one the same with weights laid over it."""
    figure = Figure((0.9 * len(pictures) + 0.2, 2.1), layout="constrained")
    axes = figure.subplots(2, len(pictures), squeeze=False)
    for n, title in enumerate(titles):
        for row in axes[:, n]:
            row.imshow(pictures[n].cpu(), cmap="gray_r")
            row.axis("off")
        axes[0, n].set_title(title, fontsize=7)
        axes[1, n].imshow(weights[n].detach().float().cpu(), cmap="Reds", vmin=0, alpha=0.6)
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
