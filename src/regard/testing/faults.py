"""Backends that are wrong on purpose: the suite must catch every one, so that it is known to bite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.backends.base import Backend
from regard.backends.tiled import Tiled
from regard.biases import Bias
from regard.call import Call
from regard.dropout import Dropout
from regard.masks import Mask
from regard.masks.intervals import Causal, CausalFrom
from regard.readouts.base import Parts, Readout
from regard.readouts.output import Output
from regard.readouts.transposed import Transposed


@dataclass(frozen=True)
class Faulty(Backend):
    """The tiled backend, asked another question than the one that was put."""

    fault: str
    twist: Callable[[Call], Call] = lambda call: call
    turn: Callable[[Readout], Readout] = lambda readout: readout

    name: ClassVar[str] = "faulty"
    about: ClassVar[str] = "wrong on purpose"

    def why_not(self, call: Call, readout: Readout | None = None) -> list[str]:
        return []

    def read(self, call: Call, readouts: Sequence[Readout], log_sum: Tensor | None) -> tuple[list[Parts], Tensor]:
        asked = [self.turn(readout) for readout in readouts]
        return Tiled().read(self.twist(call), asked, log_sum)


def _later(mask: Mask) -> Mask:
    """Every causal end moved by one key."""
    if isinstance(mask, Causal):
        return _CausalByOne()
    if isinstance(mask, CausalFrom):
        return CausalFrom(mask.start + 1)
    parts = [_later(part) for part in mask.parts()]
    if not parts:
        return mask
    return replace(mask, masks=tuple(parts)) if hasattr(mask, "masks") else replace(mask, mask=parts[0])  # type: ignore[type-var]


@dataclass(frozen=True, repr=False)
class _CausalByOne(Causal):
    def bounds(self, batch: Any, query: Any, position: Any) -> tuple[Any, Any]:
        return None, position + 1


class _GroupMean(torch.autograd.Function):
    """The key as it is, with a gradient that is the mean over its group of heads where the sum is due."""

    @staticmethod
    def forward(ctx: Any, key: Tensor, group: int) -> Tensor:
        ctx.group = group
        return key.view_as(key)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] / ctx.group, None


def _group_mean(call: Call) -> Call:
    group = call.query.shape[1] // max(call.key.shape[1], 1)
    return replace(call, key=_GroupMean.apply(call.key, max(group, 1)))


def _interleaved(call: Call) -> Call:
    """Head h meets key head h % kv_heads instead of h // group."""
    batch, heads, queries, dim = call.query.shape
    kv = call.key.shape[1]
    query = call.query.reshape(batch, heads // kv, kv, queries, dim).transpose(1, 2).reshape(call.query.shape)
    return replace(call, query=query)


@dataclass(frozen=True, repr=False)
class _Unshifted(Bias):
    """A bias by the number of the query instead of its position."""

    bias: Bias
    expression = "unshifted"

    def adds(self, batch: Tensor, head: Tensor, query: Tensor, key: Tensor, position: Tensor) -> Tensor:
        return self.bias.adds(batch, head, query, key, query)

    def pull(self, *pairs: Any) -> None:
        batch, head, query, key, _, grad, gradients = pairs
        self.bias.pull(batch, head, query, key, query, grad, gradients)

    def misfits(self, *sizes: Any) -> list[str]:
        return []

    def tensors(self) -> tuple[Tensor, ...]:
        return self.bias.tensors()

    def with_tensors(self, *tensors: Tensor) -> Bias:
        return _Unshifted(self.bias.with_tensors(*tensors))


class _Unscaled(Dropout):
    """Dropout that forgets 1 / (1 - p)."""

    @property
    def rescale(self) -> float:
        return 1.0


def _undropped(readout: Readout) -> Readout:
    return replace(readout, drop=None) if isinstance(readout, Output | Transposed) else readout


def _unscaled(readout: Readout) -> Readout:
    if not isinstance(readout, Output | Transposed) or readout.drop is None:
        return readout
    return replace(readout, drop=_Unscaled(readout.drop.p, readout.drop.seed))


FAULTS: tuple[Faulty, ...] = (
    Faulty("causal off by one", lambda call: replace(call, mask=_later(call.mask))),
    Faulty("scale missing", lambda call: replace(call, scale=1.0)),
    Faulty("heads swapped", lambda call: replace(call, query=call.query.flip(1))),
    Faulty("key heads interleaved", _interleaved),
    Faulty("mask polarity", lambda call: replace(call, mask=~call.mask)),
    Faulty("mean over the group", _group_mean),
    Faulty("causal from the top left", lambda call: replace(call, offset=0)),
    Faulty("bias missing", lambda call: replace(call, bias=None)),
    Faulty("bias by row", lambda call: replace(call, bias=None if call.bias is None else _Unshifted(call.bias))),
    Faulty("softcap missing", lambda call: replace(call, softcap=None)),
    Faulty("sinks missing", lambda call: replace(call, sinks=None)),
    Faulty("dropout missing", turn=_undropped),
    Faulty("dropout unscaled", turn=_unscaled),
)
