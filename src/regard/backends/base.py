"""What a backend is: one class with the same few methods. Capabilities are data; a refusal is a list of reasons."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from regard.call import Call
from regard.readouts.base import Parts, Readout


class Backend(ABC):
    """Answers questions about a call, differentiably.

    >>> tiled = regard.backends.BACKENDS["tiled"]()
    >>> isinstance(tiled, regard.backends.Backend), tiled.why_not(A.call)
    (True, [])
    """

    name: ClassVar[str]
    about: ClassVar[str]
    chosen: ClassVar[bool] = True  #: False: only answers when it is named
    first: ClassVar[bool] = False  #: True: whatever it answers, it finds the log-sum-exp in passing, for those who come after
    slowness: ClassVar[float] = 1.0  #: the time of a pair, beside that of PyTorch's fused kernel

    @abstractmethod
    def why_not(self, call: Call, readout: Readout | None = None) -> list[str]:
        """The reasons why it cannot answer; none if it can."""

    def why_not_chosen(self, call: Call, readout: Readout | None = None) -> list[str]:
        """The reasons why it only answers when it is named, though it can answer; none if it may be chosen."""
        return [] if self.chosen else ["it only answers when it is named"]

    @abstractmethod
    def read(
        self, call: Call, readouts: Sequence[Readout], log_sum: Float[Tensor, "batch heads queries"] | None
    ) -> tuple[list[Parts], Float[Tensor, "batch heads queries"] | None]:
        """The parts of each answer, and the log-sum-exp; None where it is too rough to pass on.

        log_sum is given to a part of the keys (`call.whole`): its parent's, an independent variable of the gradient. To any
        other call it is the call's own, if another question found it already; None = not yet.
        """

    def gradients(
        self,
        call: Call,
        readouts: Sequence[Readout],
        log_sum: Tensor | None,
        answers: Sequence[Parts],
        grads: Sequence[tuple[Tensor | None, ...]],
    ) -> tuple[Sequence[Tensor | None], Tensor | None]:
        """The gradients of `call.tensors` and of the operands, and of a log-sum-exp that was given, by its own answers.

        For compiled graphs, where nothing of the forward is left but the answers. Here the questions are asked once more;
        a backend that can do without is faster.
        """
        below = torch._C._dispatch_tls_local_exclude_set().remove(torch._C.DispatchKey.AutogradFunctionality)
        with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), below), torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in call.tensors]
            operands = [[t.detach().requires_grad_() for t in readout.operands] for readout in readouts]
            given = None if call.whole is None or log_sum is None else log_sum.detach().requires_grad_()
            asked = [readout.with_operands(*own) for readout, own in zip(readouts, operands, strict=True)]
            parts, _ = self.read(call.with_tensors(*leaves), asked, given)
            of = [*leaves, *(t for own in operands for t in own), *(() if given is None else (given,))]
            pairs = [(p, g) for ps, gs in zip(parts, grads, strict=True) for p, g in zip(ps, gs, strict=True)]
            pairs = [(p, g) for p, g in pairs if g is not None and p.requires_grad]
            if not pairs:
                return [None] * (len(of) - (given is not None)), None
            found = torch.autograd.grad([p for p, _ in pairs], of, [g for _, g in pairs], allow_unused=True)
        return (found, None) if given is None else (found[:-1], found[-1])

    def pairs(self, call: Call) -> int:
        """How many pairs it computes in a walk."""
        return math.prod(call.shape)
