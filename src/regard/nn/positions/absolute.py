"""Positions that are added to embeddings, once, at the entry."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.nn import checks
from regard.nn.positions.base import Position


def waves(positions: Tensor, dim: int, base: float) -> Tensor:
    """(n, dim) in float32: sines in the even columns, cosines in the odd ones, of position / base^(column / dim)."""
    rates = base ** (-torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim)
    angles = positions.float()[:, None] * rates
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(1)


class Sinusoidal(Position):
    """Made by `sinusoidal`."""

    def __init__(self, base: float = 10_000.0, grid: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.base, self.grid = checks.base("sinusoidal", base), checks.grid("sinusoidal", grid)

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        n, dim = x.shape[-2:]
        checks.waves("sinusoidal", dim, self.grid)
        places = torch.arange(offset, offset + n, device=x.device)
        if self.grid is None:
            added = waves(places, dim, self.base)
        else:
            checks.on_grid("sinusoidal", offset, n, self.grid)
            down, across = places // self.grid[1], places % self.grid[1]
            added = torch.cat((waves(down, dim // 2, self.base), waves(across, dim // 2, self.base)), -1)
        return x + added.to(x.dtype)

    def extra_repr(self) -> str:
        return f"base={self.base:g}" + ("" if self.grid is None else f", grid={self.grid}")


class Learned(Position):
    """Made by `learned`."""

    def __init__(
        self, length: int, dim: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        length = checks.whole_number("learned", "length", length, least=1)
        dim = checks.whole_number("learned", "dim", dim, least=1)
        self.table = nn.Parameter(torch.empty(length, dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gaussian numbers of deviation 0.02, as in BERT and GPT-2."""
        nn.init.normal_(self.table, std=0.02)

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        checks.in_table(offset, *x.shape[-2:], *self.table.shape)
        return x + self.table[offset : offset + x.shape[-2]].to(x.dtype)

    def extra_repr(self) -> str:
        return f"length={self.table.shape[0]}, dim={self.table.shape[1]}"


def sinusoidal(base: float = 10_000.0, *, grid: tuple[int, int] | None = None) -> Sinusoidal:
    """Waves added to the embeddings: sin(p / base^(2c/dim)) in column 2c, cos of the same in column 2c + 1, p = 0, 1, …

    Args:
        base: how slow the slowest wave is. grid: (rows, columns) of an image whose patches come row by row: the first half of
            the columns tells the row, the second half the column.

    Raises:
        ShapeError: an odd dim (with a grid: no multiple of 4), or more tokens than the grid has places.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.5.

    >>> sinusoidal()(torch.zeros(1, 2, 4))[0, 1]
    tensor([0.8415, 0.5403, 0.0100, 0.9999])
    """
    return Sinusoidal(base, grid)


def learned(length: int, dim: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Learned:
    """A learned embedding of each position, added to the tokens': x_p + table_p, table (length, dim).

    For images it is one table of all patches. ShapeError beyond the table.

    Source: Gehring et al. 2017, "Convolutional Sequence to Sequence Learning".

    >>> learned(512, 8)(torch.zeros(2, 5, 8)).shape
    torch.Size([2, 5, 8])
    """
    return Learned(length, dim, device, dtype)
