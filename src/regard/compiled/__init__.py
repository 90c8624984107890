"""Readings inside a graph of torch.compile or torch.export: each one is an operator that a compiler does not look into.

The matrix itself is traced, and gone once the graph is there. What it was asked travels as text, numbers and tensors
(`spelling`), and two operators answer and differentiate it (`operators`), with the backends that answer outside.

Plans of masks without tensors are kept between calls; a mask that holds tensors is laid out anew by each operator. PyTorch
2.13 cannot trace `~mask` itself: make such a mask outside of the compiled function.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regard import checks
from regard.call import Call
from regard.compiled import operators
from regard.compiled.spelling import written
from regard.readouts.base import Readout
from regard.readouts.logsumexp import LogSumExp

__all__ = ["ask", "operators"]


def ask(call: Call, questions: tuple[Readout, ...], backend: Any) -> list[tuple[Tensor, ...]]:
    """The parts of each answer, from one operator; from one more for the log-sum-exp of the whole, on a part of the keys."""
    if torch._C._are_functorch_transforms_active():
        raise checks.Unsupported(checks.TRANSFORMED_IN_A_GRAPH)
    log_sum = None if call.whole is None else ask(call.whole, (LogSumExp(),), backend)[0][0]
    tensors: list[Tensor] = []
    numbers: list[int] = []
    differentiable = call.differentiable or _require_grad(questions)
    text = written((call, questions, log_sum, backend, differentiable), tensors, numbers)
    found = torch.ops.regard.read(tensors, numbers, text)
    answers, at = [], 0
    for question in questions:
        count = len(question.differentiable)
        answers.append(tuple(found[at : at + count]))
        at += count
    return answers


def _require_grad(questions: tuple[Readout, ...]) -> bool:
    if not torch.is_grad_enabled():
        return False
    return any(tensor.requires_grad for question in questions for tensor in question.operands)
