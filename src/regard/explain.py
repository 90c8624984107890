"""What a matrix will do when it is asked: which backend, at what cost, and why no other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from regard import backends, checks
from regard.backends.base import Backend
from regard.call import Call
from regard.dropout import Dropout
from regard.picture import draw_mask
from regard.plan import lay
from regard.readouts import Entropy, LogSumExp, Readout, Received, TopK
from regard.readouts.output import Output

USUAL: tuple[Readout, ...] = (LogSumExp(), Entropy(), TopK(8), Received())
TILE = 64  # the grain at which visible pairs are counted


@dataclass(frozen=True)
class Line:
    """One question: the walk it rides, its cost alone, who answers, and why the others do not."""

    question: str
    sweep: str
    flops: int
    moved_bytes: int  # what it reads and writes at the least: queries, keys, what the question brings along, the answer
    answer_bytes: int
    backend: str
    refused: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, repr=False)
class Explanation:
    """The plan of the answers. Printing it shows the mask, what is visible, and a line per question."""

    shape: tuple[int, int, int, int]
    mask: str
    terms: tuple[str, ...]  # what there is beside the mask and the dot product
    visible: int
    before: int  # pairs of the whole, whose log-sum-exp a part needs first
    dense_bytes: int
    first: str | None  # the backend that finds the log-sum-exp before the others answer, though nobody asks it for it
    lines: tuple[Line, ...]

    def __repr__(self) -> str:
        pairs = math.prod(self.shape)
        share = self.visible / pairs if pairs else 0.0
        said = [
            f"attention (batch, heads, queries, keys) = {self.shape}",
            self.mask,
            *self.terms,
            f"computed: {self.visible:,} of {pairs:,} weights ({share:.1%}); "
            f"stored: none (dense: {checks.human(self.dense_bytes)})",
        ]
        if self.before:
            said.append(f"a part of the keys: the log-sum-exp of the whole comes first, {self.before:,} weights more")
        if self.first:
            said.append(f"the log-sum-exp comes first, by {self.first}: then one walk answers the rest")
        for line in self.lines:
            cost = f"{line.flops / 1e9:,.3g} GFLOP, {checks.human(line.moved_bytes)} moved, answer "
            cost += checks.human(line.answer_bytes)
            said.append(f"{line.question}: {line.sweep} sweep by {line.backend}, {cost}")
        refused = dict.fromkeys(refusal for line in self.lines for refusal in line.refused)
        return "\n".join([*said, *(f"not {name}: {'; '.join(reasons)}" for name, reasons in refused)])


def explain(
    call: Call,
    questions: Sequence[Readout],
    demanded: str | Backend | None,
    drop: Dropout | None = None,
    known: bool = False,
) -> Explanation:
    """What each question costs alone, multiply-adds counted as two; none given = the output and the usual ones.

    A walk over the tiles makes the scores of the visible pairs, see `_score`: time O(n² · dim), memory O(n · dim). A question
    of the second sweep takes two, as the log-sum-exp comes first; on a part of the keys every question takes one, and the
    log-sum-exp of the whole one more. known = another question has found the log-sum-exp already.
    """
    checks.questions("explain", questions)
    visible, before = _visible(call), 0 if call.whole is None else _visible(call.whole)
    batch, _, _, keys = call.shape
    output = Output(call.query.new_zeros(()).expand(batch, call.key.shape[1], keys, call.query.shape[-1]))  # one number
    return Explanation(
        call.shape,
        _picture(call),
        _terms(call, drop),
        visible,
        before,
        math.prod(call.shape) * call.dtype.itemsize,
        _first(call, questions, demanded, known),
        tuple(_line(call, question, visible, before, demanded) for question in questions or (output, *USUAL)),
    )


def _score(call: Call) -> int:
    """Operations for the score of a pair.

    2·dim for a dot product (other scores are reduced to it before, in O(n)); 4·hidden for Bahdanau's: an addition, a tanh and
    a multiply-add for each unit. A softcap is 3, and each part of a bias 1: that it is added, not how it is found.
    """
    dim = call.query.shape[-1]
    compared = 2 * dim if call.combine is None else 4 * dim
    return compared + (0 if call.softcap is None else 3) + (0 if call.bias is None else len(call.bias.parts()))


def _terms(call: Call, drop: Dropout | None) -> tuple[str, ...]:
    """A line for each thing that the matrix has beside its mask."""
    said = {name: str(value) for name, value in call.extras().items()}
    if drop is not None:
        said["dropout"] = f"p = {drop.p:g}, seed = {drop.seed}, in A @ v and A.mT @ r"
    return tuple(f"{name}: {value}" for name, value in said.items())


def _visible(call: Call) -> int:
    """Pairs in the tiles that a walk computes."""
    batch, heads, _, _ = call.shape
    plan = lay(call.mask, call.axes, call.offset, TILE, TILE)
    return batch * heads * plan.visible


def _picture(call: Call) -> str:
    """The mask of the first batch row and head, over the queries and keys that the call has."""
    axes = call.axes
    if not all(call.shape) or not isinstance(axes.queries, range) or not isinstance(axes.keys, range):
        return str(call.mask)
    batch = axes.batch[0]
    offset = call.offset if isinstance(call.offset, int) else call.offset[batch]
    drawn = draw_mask(call.mask, axes.queries, axes.keys, offset, batch=batch, head=axes.heads[0])
    return f"{call.mask}\n{drawn} (batch row {batch}, head {axes.heads[0]})"


def _line(call: Call, question: Readout, visible: int, before: int, demanded: str | Backend | None) -> Line:
    chosen = backends.choose(call, question, demanded)
    refused = []
    for name in backends.BACKENDS:
        other = backends.named(name)
        if other.name != chosen.name:
            reasons = other.why_not(call, question)
            if demanded is not None:
                reasons = [*reasons, f"backend {chosen.name!r} was demanded"]
            else:
                reasons = [*reasons, *other.why_not_chosen(call, question)]
            refused.append((name, tuple(reasons or [_dearer(call, other, chosen)])))
    columns = sum(t.shape[-1] for t in question.operands)
    walks = 1 if question.sweep == "first" or call.whole is not None else 2
    answer = question.size(call) * call.dtype.itemsize
    return Line(
        question.name if question.operands else repr(question),
        question.sweep,
        (visible * walks + before) * _score(call) + 2 * visible * columns,
        sum(t.numel() * t.element_size() for t in (*call.tensors, *question.operands)) + answer,
        answer,
        chosen.name,
        tuple(refused),
    )


def _first(call: Call, questions: Sequence[Readout], demanded: str | Backend | None, known: bool) -> str | None:
    assigned = backends.assign(call, questions, demanded, known or call.whole is not None)
    return assigned[0][0].name if assigned and not assigned[0][1] else None


def _dearer(call: Call, other: Backend, chosen: Backend) -> str:
    if math.prod(call.shape) <= backends.SMALL:
        return f"{chosen.name} comes first, and so small a matrix is not worth a comparison"
    ratio = backends.cost(other, call) / max(backends.cost(chosen, call), 1)
    return f"it is estimated at {ratio:.2g} × the time of {chosen.name}"
