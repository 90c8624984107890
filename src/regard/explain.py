"""What a matrix will do when it is asked: which backend, at what cost, and why no other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from regard import backends, checks
from regard.backends.base import Backend
from regard.call import Call
from regard.picture import draw_mask
from regard.plan import lay
from regard.readouts import Entropy, LogSumExp, Readout, Received, TopK

USUAL: tuple[Readout, ...] = (LogSumExp(), Entropy(), TopK(8), Received())
TILE = 64  # the grain at which visible pairs are counted


@dataclass(frozen=True)
class Line:
    """One question: the walk it rides, its cost alone, who answers, and why the others do not."""

    question: str
    sweep: str
    flops: int
    answer_bytes: int
    backend: str
    refused: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, repr=False)
class Explanation:
    """The plan of the answers. Printing it shows the mask, what is visible, and a line per question."""

    shape: tuple[int, int, int, int]
    mask: str
    visible: int
    dense_bytes: int
    lines: tuple[Line, ...]

    def __repr__(self) -> str:
        pairs = math.prod(self.shape)
        share = self.visible / pairs if pairs else 0.0
        head = [
            f"attention (batch, heads, queries, keys) = {self.shape}",
            self.mask,
            f"computed: {self.visible:,} of {pairs:,} weights ({share:.1%}); "
            f"stored: none (dense: {checks.human(self.dense_bytes)})",
        ]
        for line in self.lines:
            cost = f"{line.flops / 1e9:,.3g} GFLOP, answer {checks.human(line.answer_bytes)}"
            head.append(f"{line.question}: {line.sweep} sweep by {line.backend}, {cost}")
            head += [f"    not {name}: {'; '.join(reasons)}" for name, reasons in line.refused]
        return "\n".join(head)


def explain(call: Call, questions: Sequence[Readout], demanded: str | Backend | None) -> Explanation:
    """Costs count multiply-adds as two; a sweep costs 2·dim per visible pair, twice that if the log-sum-exp comes first."""
    batch, heads, _, _ = call.shape
    axes = call.axes
    plan = lay(call.mask, axes.batch, axes.heads, axes.queries, axes.keys, call.offset, TILE, TILE)
    visible = batch * heads * plan.visible
    asked = questions or USUAL
    return Explanation(
        call.shape,
        _picture(call),
        visible,
        math.prod(call.shape) * call.dtype.itemsize,
        tuple(_line(call, question, visible, demanded) for question in asked),
    )


def _picture(call: Call) -> str:
    """The mask of the first batch row and head, over the queries and keys that the call has."""
    axes = call.axes
    if not all(call.shape) or not isinstance(axes.queries, range) or not isinstance(axes.keys, range):
        return str(call.mask)
    batch = axes.batch[0]
    offset = call.offset if isinstance(call.offset, int) else call.offset[batch]
    return f"{call.mask}\n{draw_mask(call.mask, axes.queries, axes.keys, offset, batch=batch, head=axes.heads[0])}"


def _line(call: Call, question: Readout, visible: int, demanded: str | Backend | None) -> Line:
    chosen = backends.choose(call, question, demanded)
    refused = []
    for name in backends.BACKENDS:
        other = backends.named(name)
        if other.name != chosen.name:
            reasons = other.why_not(call, question)
            if demanded is not None:
                reasons = [*reasons, f"backend {chosen.name!r} was demanded"]
            elif not other.chosen:
                reasons = [*reasons, "it only answers when it is named"]
            refused.append((name, tuple(reasons or ["another one comes first"])))
    columns = sum(t.shape[-1] for t in question.operands)
    sweeps = 1 if question.sweep == "rows" else 2
    return Line(
        repr(question) if not question.operands else question.name,
        question.sweep,
        2 * visible * (sweeps * call.query.shape[-1] + columns),
        question.size(call) * call.dtype.itemsize,
        chosen.name,
        tuple(refused),
    )
