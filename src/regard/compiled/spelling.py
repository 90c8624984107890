"""A question to a matrix as a text, numbers and tensors: what an operator of a graph can be given.

The text says which of regard's values there are and how they are nested; whole numbers and tensors are referred to by their
place in two lists, so that lengths may be symbols and tensors keep their gradients. It is written while a graph is traced and
read inside the operator. Only what is listed here can be named in it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import lru_cache
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor

from regard import checks
from regard.call import Call
from regard.compiled.spans import Span
from regard.masks import Mask
from regard.masks.algebra import Box, Held
from regard.masks.contents import Where

MODULES = (
    *("masks.algebra", "masks.contents", "masks.documents", "masks.intervals", "dropout", "plan"),
    *("biases.algebra", "biases.contents", "biases.distances"),
    *("readouts.columns", "readouts.diagonal", "readouts.distance", "readouts.divergence", "readouts.entropy"),
    *("readouts.logsumexp", "readouts.mass", "readouts.maximum", "readouts.output", "readouts.pool", "readouts.received"),
    *("readouts.rows", "readouts.topk", "readouts.total", "readouts.transposed"),
)


def _values() -> dict[type, tuple[str, tuple[str, ...]]]:
    """The name of every value that can be written, and what it is made of."""
    found: dict[type, tuple[str, tuple[str, ...]]] = {}
    for module in MODULES:
        for name, kind in vars(import_module(f"regard.{module}")).items():
            if is_dataclass(kind) and isinstance(kind, type) and kind not in (Where, Box):
                found[kind] = f"{module}.{name}", ("tensor",) if kind is Held else tuple(f.name for f in fields(kind))
    return found


VALUES = _values()
CLASSES = {name: (kind, parts) for kind, (name, parts) in VALUES.items()}
CALL = tuple(f.name for f in fields(Call) if f.name not in ("offset", "whole", "watched", "compared"))


# -- written while a graph is traced ----------------------------------------------------------------------------------


def written(value: Any, tensors: list[Tensor], numbers: list[int], kept: bool = False) -> str:
    """The text of a value. kept: its tensors have no gradient, and stay the same objects."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, Tensor):
        tensors.append(value)
        return f'{{"{"kept" if kept else "tensor"}": {len(tensors) - 1}}}'
    if isinstance(value, torch.dtype):
        return f'{{"dtype": "{value}"}}'
    if isinstance(value, float):
        return f'{{"float": "{value.hex()}"}}'
    if isinstance(value, int | torch.SymInt):
        numbers.append(cast(int, value))
        return f'{{"int": {len(numbers) - 1}}}'
    if isinstance(value, range | Span):
        numbers.extend([value.start, value.stop, value.step])
        return f'{{"range": {len(numbers) - 3}}}'
    if isinstance(value, tuple):
        return "[" + ", ".join([written(part, tensors, numbers, kept) for part in value]) + "]"
    if isinstance(value, Call):
        return _written_call(value, tensors, numbers)
    kind = type(value)
    if kind not in VALUES:
        raise checks.Unsupported(checks.NOT_IN_A_GRAPH.format(name=kind.__name__))
    name, parts = VALUES[kind]
    kept = kept or isinstance(value, Mask)
    return f'{{"{name}": [{", ".join([written(getattr(value, part), tensors, numbers, kept) for part in parts])}]}}'


def _written_call(call: Call, tensors: list[Tensor], numbers: list[int]) -> str:
    parts = [written(getattr(call, name), tensors, numbers) for name in CALL]
    offset = written(call.offset, tensors, numbers, kept=True)
    part = "false" if call.whole is None else "true"
    return f'{{"Call": [{part}, {offset}, {", ".join(parts)}]}}'


# -- read inside the operator -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """Makes the values of a text again, of these tensors and numbers."""

    tensors: Sequence[Tensor]
    kept: Sequence[Tensor]
    numbers: Sequence[int]

    def of(self, tree: Any) -> Any:
        if isinstance(tree, list):
            return tuple(map(self.of, tree))
        if not isinstance(tree, dict):
            return tree
        ((name, rest),) = tree.items()
        if name in ("tensor", "kept"):
            return (self.tensors if name == "tensor" else self.kept)[rest]
        if name == "int":
            return self.numbers[rest]
        if name == "float":
            return float.fromhex(rest)
        if name == "dtype":
            return getattr(torch, rest.removeprefix("torch."))
        if name == "range":
            return _range(*self.numbers[rest : rest + 3])
        if name == "Call":
            return self._call(*rest)
        return self._value(name, rest)

    def _call(self, part: bool, offset: Any, *rest: Any) -> Call:
        given = dict(zip(CALL, map(self.of, rest), strict=True))
        shift = self.of(offset)
        if isinstance(shift, Tensor):
            shift = tuple(_listed(shift))
        call = Call(**given, offset=shift)
        return replace(call, whole=call) if part else call  # of the whole nothing is asked but whether there is one

    def _value(self, name: str, rest: Sequence[Any]) -> Any:
        kind, parts = CLASSES[name]
        if kind is Held:
            return Held(self.of(rest[0]))
        made: Any = object.__new__(kind)  # checked when it was first made
        for part, tree in zip(parts, rest, strict=True):
            object.__setattr__(made, part, self.of(tree))
        return alive(made) if isinstance(made, Mask) and self.known and not made.tensors() else made

    @property
    def known(self) -> bool:
        """Whether all numbers are numbers: in a graph that is being traced they may be symbols."""
        return not any(isinstance(n, torch.SymInt) for n in self.numbers)


@lru_cache(256)
def alive(mask: Mask) -> Mask:
    """The same mask for equal ones, so that its plans outlive a call."""
    return mask


@lru_cache(1024)
def tree_of(text: str) -> Any:
    return json.loads(text)


def _range(start: int, stop: int, step: int) -> Any:
    if all(isinstance(n, int) for n in (start, stop, step)):
        return range(start, stop, step)
    return Span(start, stop, step)


def _listed(shift: Tensor) -> list[int]:
    """The numbers of a tensor; zeros where it has none yet."""
    from torch._subclasses.fake_tensor import FakeTensor

    return [0] if isinstance(shift, FakeTensor) else shift.tolist()
