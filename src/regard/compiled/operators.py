"""The two operators that stand for a reading in a graph: the answers, and their gradients.

A compiler sees shapes and nothing else: masks, plans and the choice of a backend stay inside. Shapes come from the readouts
themselves, by asking them for the answer about a matrix of which no tile was seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from regard import backends, checks
from regard.backends.base import Backend
from regard.biases.distances import Relative
from regard.call import Call
from regard.compiled.spelling import Reader, tree_of
from regard.readouts.base import OnlineReadout, Parts, Place, Readout, Swept
from regard.readouts.logsumexp import LogSumExp
from regard.readouts.mass import Mass

library = torch.library.Library("regard", "DEF")
library.define("read(Tensor[] tensors, SymInt[] numbers, str question) -> Tensor[]")
library.define(
    "pull(Tensor[] tensors, SymInt[] numbers, str question, Tensor[] answers, Tensor?[] grads, int[] wanted) -> Tensor[]"
)


class Question:
    """What was asked: a call, readouts, perhaps the log-sum-exp of its whole, and who was told to answer."""

    def __init__(self, tensors: Sequence[Tensor], numbers: Sequence[int], text: str) -> None:
        self.tensors = [t.detach() for t in tensors]  # objects of their own: one tensor may have been given twice
        made = Reader(self.tensors, tensors, numbers).of(tree_of(text))
        self.call: Call = made[0]
        self.readouts: tuple[Readout, ...] = made[1]
        self.log_sum: Tensor | None = made[2]
        self.demanded: str | None = made[3]
        self.differentiable: bool = made[4]

    def assigned(self) -> list[tuple[Backend, list[int]]]:
        """Which readouts each backend answers, in order: the same in forward and backward."""
        for tensor in (*self.call.tensors, *(t for readout in self.readouts for t in readout.operands)):
            tensor.requires_grad_(self.differentiable)
        with torch.set_grad_enabled(self.differentiable):
            return backends.assign(self.call, self.readouts, self.demanded, self.log_sum is not None)

    @property
    def finds(self) -> bool:
        """Whether the log-sum-exp is one of the results."""
        return self.differentiable and self.log_sum is None

    @property
    def counts(self) -> list[int]:
        """How many tensors each answer has."""
        return [len(readout.differentiable) for readout in self.readouts]


def read(tensors: Sequence[Tensor], numbers: Sequence[int], text: str) -> list[Tensor]:
    """The parts of every answer, and the log-sum-exp where a backward will need it."""
    asked = Question(tensors, numbers, text)
    _check_distances(asked.call)
    for readout in asked.readouts:
        if isinstance(readout, Mass):
            checks.segments("mass", readout.segments, readout.count)
    answers: dict[int, Parts] = {}
    log_sum = asked.log_sum
    with torch.no_grad():
        for backend, places in asked.assigned():
            parts, found = backend.read(asked.call, [asked.readouts[n] for n in places], log_sum)
            answers |= dict(zip(places, parts, strict=True))
            log_sum = found if log_sum is None else log_sum
        if asked.finds and log_sum is None:
            ((log_sum,),), _ = backends.named("tiled").read(asked.call, [LogSumExp()], None)
    flat = [part for n in range(len(asked.readouts)) for part in answers[n]]
    if asked.finds and log_sum is not None:
        flat.append(log_sum)
    return _apart(flat, tensors)


def _check_distances(call: Call) -> None:
    """Offsets in a tensor have no numbers before: only now it can be said whether a table covers all distances."""
    if call.bias is None or isinstance(call.offset, int) or not all(call.shape):
        return
    queries, last = call.axes.queries, max(call.axes.keys[0], call.axes.keys[-1])
    positions = min(queries) + min(call.offset), max(queries) + max(call.offset)
    for part in call.bias.parts():
        if isinstance(part, Relative):
            checks.bias_lies_on(part, 1, len(part.table.tensor), len(queries), last + 1, positions)


def _apart(found: list[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    """Contiguous tensors that share no memory, as a compiler takes for granted."""
    taken = {t.untyped_storage().data_ptr() for t in given}
    apart = []
    for tensor in found:
        tensor = tensor.detach().contiguous()
        if tensor.untyped_storage().data_ptr() in taken:
            tensor = tensor.clone()
        taken.add(tensor.untyped_storage().data_ptr())
        apart.append(tensor)
    return apart


def shapes(tensors: Sequence[Tensor], numbers: Sequence[int], text: str) -> list[Tensor]:
    """Tensors like those that `read` gives."""
    asked = Question(tensors, numbers, text)
    call = asked.call
    with torch.no_grad():
        flat = [part for readout in asked.readouts for part in _unseen(readout, call)]
        if asked.finds:
            flat.append(_log_sum(call))
        return [part.new_empty(part.shape) for part in flat]


def _unseen(readout: Readout, call: Call) -> Parts:
    """The answer about a matrix of which no tile was seen."""
    if isinstance(readout, OnlineReadout):
        everything = Place(call, slice(None), slice(None), slice(None), None)
        rows = _log_sum(call)
        return readout.finish(readout.start(everything), Swept(call, rows, rows, rows))
    return readout.finish(readout.start(call), call)  # type: ignore[attr-defined]


def _log_sum(call: Call) -> Tensor:
    return call.query.new_empty(call.shape[:3], dtype=call.dtype)


def pull(
    tensors: Sequence[Tensor],
    numbers: Sequence[int],
    text: str,
    answers: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    wanted: Sequence[int],
) -> list[Tensor]:
    """The gradients of the wanted tensors."""
    asked = Question(tensors, numbers, text)
    place_of = {id(t): n for n, t in enumerate(asked.tensors)}
    sums: dict[int, Tensor] = {}

    def add(tensor: Tensor, grad: Tensor | None) -> None:
        n = place_of[id(tensor)]
        if grad is not None:
            sums[n] = sums[n] + grad if n in sums else grad

    parts, above = _by_readout(answers, asked.counts), _by_readout(grads, asked.counts)
    log_sum = answers[-1] if asked.log_sum is None else asked.log_sum
    with torch.no_grad():
        for backend, places in asked.assigned():
            if all(grad is None for n in places for grad in above[n]):
                continue
            readouts = [asked.readouts[n] for n in places]
            found, own = backend.gradients(
                asked.call, readouts, log_sum, [parts[n] for n in places], [above[n] for n in places]
            )
            of = (*asked.call.tensors, *(t for readout in readouts for t in readout.operands))
            for tensor, grad in zip(of, found, strict=True):
                add(tensor, grad)
            if asked.log_sum is not None:
                add(asked.log_sum, own)
    return [_like(sums.get(n), tensors[n]) for n in wanted]


def _by_readout(flat: Sequence[Any], counts: Sequence[int]) -> list[tuple[Any, ...]]:
    rest = iter(flat)
    return [tuple(next(rest) for _ in range(count)) for count in counts]


def _like(grad: Tensor | None, tensor: Tensor) -> Tensor:
    if grad is None:
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    return grad.to(tensor.dtype).clone(memory_format=torch.contiguous_format)


def _shapes_of_gradients(
    tensors: Sequence[Tensor], numbers: Any, text: str, answers: Any, grads: Any, wanted: Sequence[int]
) -> list[Tensor]:
    return [tensors[n].new_empty(tensors[n].shape) for n in wanted]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    tensors, ctx.numbers, ctx.text = inputs
    ctx.count = len(tensors)
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(*(t for t in output if not t.is_floating_point()))
    ctx.set_materialize_grads(False)  # an answer that nobody differentiates costs nothing


def _backward(ctx: Any, grads: list[Tensor | None]) -> tuple[list[Tensor | None], None, None]:
    saved = ctx.saved_tensors
    tensors, answers = saved[: ctx.count], saved[ctx.count :]
    wanted = [n for n, need in enumerate(ctx.needs_input_grad[0]) if need and tensors[n].is_floating_point()]
    found: list[Tensor | None] = [None] * ctx.count
    if any(grad is not None for grad in grads):
        gave = torch.ops.regard.pull(list(tensors), ctx.numbers, ctx.text, list(answers), list(grads), wanted)
        for n, grad in zip(wanted, gave, strict=True):
            found[n] = grad
    return found, None, None


def _twice(ctx: Any, *grads: Any) -> NoReturn:
    raise checks.Unsupported(checks.ONCE_IN_A_GRAPH)


def _many(info: Any, dims: Any, *args: Any) -> NoReturn:
    raise checks.Unsupported(checks.TRANSFORMED_IN_A_GRAPH)


library.impl("read", read, "CompositeExplicitAutograd")
library.impl("pull", pull, "CompositeExplicitAutograd")
torch.library.register_fake("regard::read", shapes, lib=library)
torch.library.register_fake("regard::pull", _shapes_of_gradients, lib=library)
torch.library.register_autograd("regard::read", _backward, setup_context=_keep, lib=library)
torch.library.register_autograd("regard::pull", _twice, lib=library)
torch.library.register_vmap("regard::read", _many, lib=library)
torch.library.register_vmap("regard::pull", _many, lib=library)
