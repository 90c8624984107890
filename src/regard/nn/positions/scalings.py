"""How rotary positions are stretched beyond the length that a model was trained at.

A scaling changes the rates, radians per token, of the pairs of dimensions: (pairs,) in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from regard.nn import checks


class Scaling(Protocol):
    """What `rotary` can be scaled by."""

    @property
    def magnitude(self) -> float:
        """What queries and keys are multiplied with."""
        ...

    def rates(self, rates: Tensor, base: float, dims: int, length: int) -> Tensor:
        """The new rates, given those of base^(-2c/dims), where length is the number of tokens so far."""
        ...


@dataclass(frozen=True)
class linear:
    """Positions divided by factor. Source: Chen et al. 2023, "Extending Context Window … via Positional Interpolation".

    >>> regard.nn.rotary(scaling=linear(4.0))
    Rotary(base=10000, scaling=linear(factor=4.0))
    """

    factor: float
    magnitude = 1.0

    def __post_init__(self) -> None:
        checks.scaling("linear", self.factor)

    def rates(self, rates: Tensor, base: float, dims: int, length: int) -> Tensor:
        """All rates by the factor."""
        return rates / self.factor


@dataclass(frozen=True)
class dynamic:
    """A base that grows with the length beyond `trained` tokens ("dynamic NTK").

    base · (factor · length / trained - factor + 1)^(dims / (dims - 2)) for length > trained.

    >>> regard.nn.rotary(scaling=dynamic(2.0, trained=2048)).scaling.trained
    2048
    """

    factor: float
    trained: int
    magnitude = 1.0

    def __post_init__(self) -> None:
        checks.scaling("dynamic", self.factor, self.trained)

    def rates(self, rates: Tensor, base: float, dims: int, length: int) -> Tensor:
        """The rates of the larger base."""
        checks.has_pairs("dynamic", dims)
        seen = max(length, self.trained)
        larger = base * (self.factor * seen / self.trained - (self.factor - 1)) ** (dims / (dims - 2))
        return larger ** (-torch.arange(0, dims, 2, device=rates.device, dtype=torch.float32) / dims)


@dataclass(frozen=True)
class yarn:
    """Slow pairs are interpolated, fast ones kept, with a ramp between them. Source: Peng et al. 2023, "YaRN".

    Pairs that turn more than `fast` times in `trained` tokens are kept, those below `slow` times divided by factor; queries
    and keys are multiplied with 0.1 ln(factor) + 1.

    >>> round(yarn(4.0, trained=2048).magnitude, 4)
    1.1386
    """

    factor: float
    trained: int
    fast: float = 32.0
    slow: float = 1.0

    def __post_init__(self) -> None:
        checks.scaling("yarn", self.factor, self.trained, self.slow, self.fast)

    @property
    def magnitude(self) -> float:
        """0.1 ln(factor) + 1."""
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    def rates(self, rates: Tensor, base: float, dims: int, length: int) -> Tensor:
        """Interpolated by the ramp."""

        def pair(turns: float) -> float:
            return dims * math.log(self.trained / (turns * 2 * math.pi)) / (2 * math.log(base))

        low, high = max(math.floor(pair(self.fast)), 0), min(math.ceil(pair(self.slow)), dims - 1)
        places = torch.arange(len(rates), device=rates.device, dtype=torch.float32)
        ramp = ((places - low) / (max(high - low, 0) or 0.001)).clamp(0, 1)
        return rates / self.factor * ramp + rates * (1 - ramp)


@dataclass(frozen=True)
class llama3:
    """Waves longer than trained / slow are divided by factor, those shorter than trained / fast kept, with a ramp between.

    Source: Dubey et al. 2024, "The Llama 3 Herd of Models".

    >>> regard.nn.rotary(500_000.0, scaling=llama3(8.0, trained=8192)).base
    500000.0
    """

    factor: float
    trained: int
    slow: float = 1.0
    fast: float = 4.0
    magnitude = 1.0

    def __post_init__(self) -> None:
        checks.scaling("llama3", self.factor, self.trained, self.slow, self.fast)

    def rates(self, rates: Tensor, base: float, dims: int, length: int) -> Tensor:
        """Interpolated by wavelength."""
        waves = 2 * math.pi / rates
        smooth = (self.trained / waves - self.slow) / (self.fast - self.slow)
        between = (1 - smooth) * rates / self.factor + smooth * rates
        found = torch.where(waves > self.trained / self.slow, rates / self.factor, rates)
        medium = (waves <= self.trained / self.slow) & (waves >= self.trained / self.fast)
        return torch.where(medium, between, found)
