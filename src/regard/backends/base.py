"""What a backend is: one class with the same few methods. Capabilities are data; a refusal is a list of reasons."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from regard.call import Call
from regard.readouts.base import Parts, Readout


class Backend(ABC):
    """Answers questions about a call, differentiably."""

    name: ClassVar[str]
    about: ClassVar[str]
    chosen: ClassVar[bool] = True  # False: only answers when it is named

    @abstractmethod
    def why_not(self, call: Call, readout: Readout | None = None) -> list[str]:
        """The reasons why it cannot answer; none if it can."""

    @abstractmethod
    def read(
        self, call: Call, readouts: Sequence[Readout], log_sum: Float[Tensor, "batch heads queries"] | None
    ) -> tuple[list[Parts], Float[Tensor, "batch heads queries"]]:
        """The parts of each answer, and the log-sum-exp.

        A log_sum that is given normalises the rows as it is, an independent variable of the gradient (a part of the keys
        passes its parent's); None = the call's own.
        """
