"""Positions that turn queries and keys, so that their product knows how far they stand apart."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.nn import checks
from regard.nn.positions.base import Position
from regard.nn.positions.scalings import Scaling


class Rotary(Position):
    """Made by `rotary`."""

    together = True

    def __init__(
        self,
        base: float = 10_000.0,
        *,
        dims: int | None = None,
        interleaved: bool = False,
        scaling: Scaling | None = None,
        grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.base, self.grid = checks.base("rotary", base), checks.grid("rotary", grid)
        self.dims = None if dims is None else checks.whole_number("rotary", "dims", dims, least=2)
        self.interleaved, self.scaling = interleaved, scaling
        self._kept: tuple[tuple[object, ...], tuple[Tensor, Tensor]] | None = None

    def turn(self, x: Tensor, offset: int = 0) -> Tensor:
        n, width = x.shape[-2:]
        dims = width if self.dims is None else self.dims
        checks.turned(dims, width, self.grid)
        cos, sin = self._known(x, offset, n, dims)
        part = x[..., :dims]
        if self.interleaved:
            a, b = part[..., 0::2], part[..., 1::2]
            turned = torch.stack(_rotated(a, b, cos, sin), -1).flatten(-2)
        else:
            a, b = part.chunk(2, -1)
            turned = torch.cat(_rotated(a, b, cos, sin), -1)
        return turned if dims == width else torch.cat((turned, x[..., dims:]), -1)

    def _known(self, x: Tensor, offset: int, n: int, dims: int) -> tuple[Tensor, Tensor]:
        """The waves for x; kept until others are asked for, because each layer of a stack asks for the same ones."""
        if torch.compiler.is_compiling() or type(x) is not Tensor:  # what is traced must not be kept
            return self._waves(x, offset, n, dims)
        told = (offset, n, dims, x.device, x.dtype, self.base, self.grid, self.scaling, torch.is_inference_mode_enabled())
        kept = self._kept
        if kept is None or kept[0] != told:
            kept = self._kept = (told, self._waves(x, offset, n, dims))
        return kept[1]

    def _waves(self, x: Tensor, offset: int, n: int, dims: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the angles, (n, dims / 2) in the dtype of x."""
        places = torch.arange(offset, offset + n, device=x.device)
        if self.grid is None:
            angles = self._angles(places, dims, offset + n)
        else:
            checks.on_grid("rotary", offset, n, self.grid)
            half = dims // 2
            axes = places // self.grid[1], places % self.grid[1]
            angles = torch.cat([self._angles(axis, half, offset + n) for axis in axes], -1)
        magnitude = 1.0 if self.scaling is None else self.scaling.magnitude
        return (angles.cos() * magnitude).to(x.dtype), (angles.sin() * magnitude).to(x.dtype)

    def _angles(self, places: Tensor, dims: int, length: int) -> Tensor:
        """(n, dims / 2) in float32, radians."""
        rates = self.base ** (-torch.arange(0, dims, 2, device=places.device, dtype=torch.float32) / dims)
        if self.scaling is not None:
            rates = self.scaling.rates(rates, self.base, dims, length)
        return places.float()[:, None] * rates

    def extra_repr(self) -> str:
        given = {"dims": self.dims, "scaling": self.scaling, "grid": self.grid}
        said = [f"{name}={value}" for name, value in given.items() if value is not None]
        return ", ".join([f"base={self.base:g}", *said, *(["interleaved=True"] if self.interleaved else [])])


def _rotated(a: Tensor, b: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """(a cos - b sin, b cos + a sin)."""
    return torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(b * cos, a, sin)


def rotary(
    base: float = 10_000.0,
    *,
    dims: int | None = None,
    interleaved: bool = False,
    scaling: Scaling | None = None,
    grid: tuple[int, int] | None = None,
) -> Rotary:
    """Queries and keys turned by angles that grow with the position: q_iᵀ R(j - i) k_j knows the distance alone.

    Pair c of the dims is turned by p / base^(2c/dims) radians. In float32 whatever the dtype.

    Args:
        base: how slow the slowest pair is.
        dims: how many of a head's numbers are turned; None = all.
        interleaved: pairs are (0, 1), (2, 3), … as in GPT-J, instead of (c, c + dims/2) as in Llama.
        scaling: one of `linear`, `dynamic`, `yarn`, `llama3`, for more tokens than a model was trained on.
        grid: (rows, columns) of an image whose patches come row by row: half of the pairs are turned by the row, half by the
            column.

    Raises:
        ShapeError: an odd number of dims (with a grid: no multiple of 4), or more than a head has.

    Source: Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding".

    >>> q = torch.randn(1, 1, 3, 8)
    >>> torch.allclose(rotary().turn(q).norm(dim=-1), q.norm(dim=-1))
    True
    """
    return Rotary(base, dims=dims, interleaved=interleaved, scaling=scaling, grid=grid)
