"""One memory of keys for all steps of a layer: what a cache was given, of which the matrix of each step is a stretch.

A cache hands a layer all of its keys at every step: a new tensor each time, or the same one, which the next step changes. A
matrix that kept it would make n · t keys of n tokens and t steps, or would be lost. So matrices share a `Keys`, which
is given the new keys of each step, and is freed with the last matrix. What is shared is what the caches of transformers tell:
that a cache was only appended to. After anything else (beams change rows, a cache is cropped or reset) a new one begins.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import cache_utils
from transformers.utils import output_capturing

from regard import checks
from regard.attention import Attention
from regard.call import NOTHING, counted
from regard.masks.algebra import version


class Keys:
    """The keys of tokens start … stop - 1, as they came: (batch, kv_heads, tokens, dim)."""

    def __init__(self, start: int, first: Tensor) -> None:
        self.start = start
        self.stop = start + first.shape[-2]
        self.parts = [first]  # the first one may still be the cache's own, the others are copies
        self.changes = version(first)

    def append(self, more: Tensor) -> None:
        self.parts.append(more)
        self.stop += more.shape[-2]

    def between(self, start: int, stop: int) -> Tensor:
        """Those of tokens start … stop - 1. What came in parts is joined, once."""
        if (now := version(self.parts[0])) != self.changes:
            checks.changed(self.parts[0], self.changes, now)
        if len(self.parts) > 1:
            self.parts = [torch.cat(self.parts, -2)]
            self.changes = version(self.parts[0])
        return self.parts[0][..., start - self.start : stop - self.start, :]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy counts the changes of its own tensors."""
        self.__dict__.update(state, changes=version(state["parts"][0]))


@dataclass(frozen=True)
class Stretch:
    """The keys of a step: tokens start … stop - 1, and zeros behind them where a static cache is still empty."""

    keys: Keys
    start: int
    stop: int
    size: int

    def tensor(self) -> Tensor:
        found = self.keys.between(self.start, self.stop)
        empty = self.size - found.shape[-2]
        return torch.nn.functional.pad(found, (0, 0, 0, empty)) if empty else found


class _Joined:
    """A call that has no keys of its own gets them when it is looked at."""

    def __get__(self, step: Any, owner: Any = None) -> Any:
        if step is None:
            return self
        call, stretch = step.__dict__["call"], step.__dict__.get("stretch")
        return call if stretch is None else call._but(key=stretch.tensor().to(call.query.dtype))

    def __set__(self, step: Any, call: Any) -> None:
        step.__dict__["call"] = call


class Step(Attention):
    """The matrix of a step: a `regard.Attention` that holds its queries, and shares its keys with those of other steps.

    What is made of it, parts and copies with dropout, has a call with keys and no stretch, as any other matrix.
    """

    call = _Joined()

    @classmethod
    def of(cls, A: Attention, stretch: Stretch) -> Step:
        query, _, *others = (tensor for tensor, _ in A.call.watched)  # the second one is the key
        watched = counted(query, *others)
        step = cls(A.call._but(key=NOTHING, watched=watched), A.layout, A.backend, A.drop)
        step.__dict__["stretch"] = stretch
        step._memo.extend(A._memo)
        return step

    @property
    def shape(self) -> torch.Size:
        stretch = self.__dict__.get("stretch")
        if stretch is None:
            return super().shape
        return torch.Size((*self.layout.leading, self.__dict__["call"].query.shape[-2], stretch.size))


@dataclass
class _Layer:
    """What is known of a layer of a cache after an update."""

    given: ReferenceType[Tensor]  # the keys that it handed out
    held: ReferenceType[Tensor]  # the keys that it keeps
    changes: int
    keys: ReferenceType[Keys] | None = field(default=None)


# Caches whose keys are what was appended: not quantised ones, whose keys change.
_APPEND = tuple(
    kind.update
    for kind in (
        cache_utils.DynamicLayer,
        cache_utils.DynamicSlidingWindowLayer,
        cache_utils.StaticLayer,
        cache_utils.StaticSlidingWindowLayer,
    )
)
_layers: WeakKeyDictionary[Any, _Layer] = WeakKeyDictionary()
_layer_of: Any = WeakTensorKeyDictionary()


def watch() -> None:
    """Lets caches tell what they hand out."""
    update = cache_utils.Cache.update

    @functools.wraps(update)
    def told(self: Any, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or not wanted():
            return update(self, key_states, value_states, layer_idx, *args, **kwargs)
        before = getattr(self.layers[layer_idx], "keys", None) if layer_idx < len(self.layers) else None
        changes = None if before is None else version(before)
        keys, values = update(self, key_states, value_states, layer_idx, *args, **kwargs)
        if type(self.layers[layer_idx]).update in _APPEND and not keys.requires_grad:
            _tell(self.layers[layer_idx], before, changes, keys)
        return keys, values

    cache_utils.Cache.update = told


def _tell(layer: Any, before: Tensor | None, changes: int | None, keys: Tensor) -> None:
    known = _layers.get(layer)
    goes_on = known is not None and before is not None and known.held() is before and known.changes == changes
    held: Tensor = layer.keys
    if held is before and version(held) < 0:  # changed in place, and nobody counts
        goes_on = False
    _layers[layer] = _Layer(ref(keys), ref(held), version(held), known.keys if known is not None and goes_on else None)
    _layer_of[keys] = ref(layer)


def stretch(key: Tensor) -> Stretch | None:
    """The keys that a layer is given, as part of what its cache was given; None if they are no cache's."""
    reference = _layer_of.get(key)
    layer: Any = None if reference is None else reference()
    known = None if layer is None else _layers.get(layer)
    if known is None or known.given() is not key:
        return None
    held = known.held()
    if held is None or version(held) != known.changes:
        return None
    stop, size = int(layer.get_seq_length()), key.shape[-2]
    seen = min(stop, size)
    keys = None if known.keys is None else known.keys()
    if keys is None or stop - keys.stop > seen or keys.start > stop - seen:
        whole = key[..., :seen, :]
        keys = Keys(stop - seen, whole.clone() if isinstance(layer, cache_utils.StaticLayer) else whole)
        known.keys = ref(keys)
    elif keys.stop < stop:
        keys.append(key[..., seen - (stop - keys.stop) : seen, :].clone())
    return Stretch(keys, stop - seen, stop, size)


def wanted() -> bool:
    """Whether somebody may keep the weights: not in a forward that transformers runs without asking for them."""
    collector = getattr(output_capturing, "_active_collector", None)
    collected = None if collector is None or torch.compiler.is_compiling() else collector.get()
    return collected is None or any("attention" in key for key in collected)


def shared(A: Attention, key: Tensor, first: int) -> Attention:
    """The matrix, with its keys shared with those of other steps where a cache says that they may be."""
    if not A.call.differentiable and not torch.compiler.is_compiling():
        if (part := stretch(key)) is not None:
            A = Step.of(A, part)
        elif version(key) > 0:  # somebody writes to it, and will again
            A = Attention(A.call._but(key=key.clone()).watching(), A.layout, A.backend, A.drop)
    A.__dict__["first_key"] = first
    return A


def first_key(A: Attention) -> int:
    """The token, counted from 0, that is key 0 of a matrix from a model: more than 0 where a sliding cache dropped some.

    A matrix as the model returned it, or a copy; a part is refused, because its key 0 may be another one.

    >>> from regard.testing.architectures import inputs, named, twins
    >>> _, model = twins(named("mistral"))
    >>> model.config.sliding_window
    5
    >>> found = model.generate(
    ...     **inputs(named("mistral")), max_new_tokens=3, output_attentions=True, return_dict_in_generate=True
    ... )
    >>> [regard.transformers.first_key(matrices[0]) for matrices in found.attentions]
    [0, 5, 6]
    """
    first: int | None = A.__dict__.get("first_key")
    if first is None:
        raise checks.Unsupported(
            f"first_key: only a matrix that a model returned knows which token its key 0 is; got {A!r}, which is a part of "
            "one or was made by regard.attention. Ask before you cut."
        )
    return first
