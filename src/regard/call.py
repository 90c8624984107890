"""The frozen problem that every backend, error text and benchmark receives: checked once, at the public border."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.autograd.forward_ad as forward_ad
from jaxtyping import Bool, Float
from torch import Tensor

from regard import checks
from regard.masks import Mask
from regard.masks.algebra import grid, version
from regard.plan import Axes
from regard.scores import dot

if TYPE_CHECKING:
    from regard.biases import Bias
    from regard.scores import Score


NOTHING = torch.empty(0, device="meta")


@dataclass(frozen=True, eq=False)
class Call:
    """Scores softcap(scale · query · keyᵀ) + bias under a mask. Head h meets key head h // (heads // kv_heads).

    Other score functions come reduced to the dot product; with `combine` it is Bahdanau's, scale · Σ_m combine_m
    tanh(query_m + key_m). What the user gave to compare is said in `compared`.
    """

    query: Float[Tensor, "batch heads queries dim"]
    key: Float[Tensor, "batch kv_heads keys dim"]
    mask: Mask
    scale: float
    offset: int | tuple[int, ...]  # in a graph that is being traced, perhaps a tensor
    axes: Axes
    bias: Bias | None = None
    softcap: float | None = None
    sinks: Float[Tensor, " heads"] | None = None  # one more logit per row, whose weight goes to no key
    combine: Float[Tensor, "heads_or_1 dim"] | None = None
    compared: str | None = None
    stated: torch.dtype | None = None  # the dtype of the user's query, where the reduced one has another
    whole: Call | None = None  # set on a part of the keys: the call over all of them, whose log-sum-exp normalises both
    watched: tuple[tuple[Tensor, int], ...] = field(default=(), repr=False)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(batch, heads, queries, keys)."""
        batch, heads, queries, _ = self.query.shape
        return batch, heads, queries, self.key.shape[-2]

    @property
    def dtype(self) -> torch.dtype:
        """What scores, sums and readouts are computed in: float32, or float64 for float64."""
        return torch.promote_types(self.query.dtype, torch.float32)

    @property
    def device(self) -> torch.device:
        return self.query.device

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """What answers may be differentiated by, beside query and key."""
        if self.bias is None and self.sinks is None and self.combine is None:
            return ()
        own = tuple(t for t in (self.sinks, self.combine) if t is not None)
        return own if self.bias is None else (*own, *self.bias.tensors())

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Query, key and parameters."""
        return (self.query, self.key, *self.parameters)

    def with_tensors(self, *tensors: Tensor, **also: Any) -> Call:
        """The same call with other tensors in the place of its own, and other fields."""
        query, key, *rest = tensors
        sinks = None if self.sinks is None else rest.pop(0)
        combine = None if self.combine is None else rest.pop(0)
        bias = None if self.bias is None else self.bias.with_tensors(*rest)
        return self._but(query=query, key=key, sinks=sinks, combine=combine, bias=bias, **also)

    def _but(self, **changes: Any) -> Call:
        """dataclasses.replace, which takes several times as long, and every small product waits for it."""
        if torch.compiler.is_compiling():
            return replace(self, **changes)
        copy = object.__new__(Call)
        copy.__dict__.update(self.__dict__, **changes)
        return copy

    def constant(self) -> Call:
        """The same call without a graph."""
        if self.whole is None and not any(t.requires_grad for t in self.tensors):
            return self
        whole = None if self.whole is None else self.whole.constant()
        watched = tuple((t.detach(), then) for t, then in self.watched)  # they count together, and keep no graph
        return self.with_tensors(*(t.detach() for t in self.tensors), whole=whole, watched=watched)

    @property
    def differentiable(self) -> bool:
        """Whether an answer about it belongs to a graph."""
        if not torch.is_grad_enabled():
            return False
        for tensor in self.tensors:
            if tensor.requires_grad:
                return True
        return self.whole is not None and self.whole.differentiable

    @property
    def rows_sum_to_one(self) -> bool:
        """Whether the weights of a row that sees something sum to 1: no sink, and no key cut away."""
        return self.sinks is None and self.whole is None

    @property
    def reach(self) -> tuple[int, int] | None:
        """The least and the greatest position of a query; None in a graph whose offsets are a tensor."""
        return reach(self.offset, self.query.shape[2])

    def extras(self) -> dict[str, Any]:
        """What a sentence says about the matrix beside its mask."""
        sinks = None if self.sinks is None else "learned" if self.sinks.requires_grad else "given"
        said = {"score": self.compared, "bias": self.bias, "softcap": self.softcap, "sinks": sinks}
        return {name: value for name, value in said.items() if value is not None}

    def watching(self, *tensors: Tensor) -> Call:
        """The same call, which refuses to answer once one of the tensors, or of the mask's, was changed in place."""
        return self._but(watched=counted(*tensors, *self.mask.tensors()))

    @property
    def steady(self) -> bool:
        """Whether an answer may be kept for later: every change is noticed, and no transform looks through the tensors."""
        return (
            all(then >= 0 for _, then in self.watched)
            and forward_ad._current_level < 0
            and not transformed(*self.tensors)
            and not torch.compiler.is_compiling()
        )

    def without_tensors(self) -> Call:
        """The same call with nothing in the place of its tensors, watching its mask: what a graph may keep."""
        rest = [NOTHING] * len(self.parameters)
        bare = self.with_tensors(NOTHING, NOTHING, *rest) if rest else self
        whole = None if self.whole is None else self.whole.without_tensors()
        return bare._but(query=NOTHING, key=NOTHING, whole=whole, watched=counted(*self.mask.tensors()))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy counts the changes of its own tensors."""
        state["watched"] = tuple((t, version(t)) for t, _ in state["watched"])
        self.__dict__.update(state)

    def check_unchanged(self) -> None:
        """Raises Changed if a tensor was changed in place since the matrix was built."""
        if torch.compiler.is_compiling():
            return
        for held, then in self.watched:
            if (now := version(held)) != then:
                checks.changed(held, then, now)

    def allowed(
        self, batch: slice = slice(None), rows: slice = slice(None), columns: slice = slice(None)
    ) -> Bool[Tensor, "b h r c"]:
        """Which pairs of a tile may meet; axes on which the mask does not depend have size 1."""
        seen = self.mask._allows(*self.pairs(batch, rows, columns))
        return seen.reshape((1,) * (4 - seen.ndim) + seen.shape)

    def pairs(
        self, batch: slice = slice(None), rows: slice = slice(None), columns: slice = slice(None)
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The original batch row, head, query and key of each pair of a tile, and the query's position: they broadcast."""
        axes = self.axes
        b, h, i, j = grid(axes.batch[batch], axes.heads, axes.queries[rows], axes.keys[columns], device=self.query.device)
        return b, h, i, j, i + self.shift(b)

    def shift(self, batch: Tensor) -> Tensor | int:
        """The offset of each batch row."""
        return self.offset if isinstance(self.offset, int) else torch.tensor(self.offset, device=batch.device)[batch]

    def positions(self, batch: slice = slice(None), rows: slice = slice(None)) -> Tensor:
        """The position among the original keys of each query, shape (batch or 1, 1, rows)."""
        b, _, i, _ = grid(self.axes.batch[batch], (0,), self.axes.queries[rows], (0,), device=self.query.device)
        return (i + self.shift(b)).expand(b.shape[0] if not isinstance(self.offset, int) else 1, 1, -1, 1)[..., 0]

    def columns(self, columns: slice = slice(None)) -> Tensor:
        """The original index of each key, shape (columns,)."""
        return grid((0,), (0,), (0,), self.axes.keys[columns], device=self.query.device)[3]


def reach(offset: int | tuple[int, ...], queries: int) -> tuple[int, int] | None:
    """The least and the greatest position of so many queries; None in a graph whose offsets are a tensor."""
    if isinstance(offset, Tensor):
        return None
    if torch.compiler.is_compiling():
        return offset, offset + torch.sym_max(queries - 1, 0)  # type: ignore[return-value]
    offsets = (offset,) if isinstance(offset, int) else offset
    return min(offsets, default=0), max(offsets, default=0) + max(queries - 1, 0)


def counted(*tensors: Tensor) -> tuple[tuple[Tensor, int], ...]:
    """Tensors with how often each was changed in place; none in a graph, which is made of values."""
    return () if torch.compiler.is_compiling() else tuple([(t, version(t)) for t in tensors])


def reduce(call: Call, score: Score) -> Call:
    """The call with its score as a dot product of other queries and keys, in no less than float32."""
    if score == dot():
        return call
    bad = [~torch.isfinite(t).all(-1, keepdim=True) for t in (call.query, call.key)]
    clean = (t.to(call.dtype).masked_fill(b, 0) for t, b in zip((call.query, call.key), bad, strict=True))
    with torch.autocast(call.device.type, enabled=False):
        reduced = score.reduced(*clean)
    # What is not finite becomes NaN as a whole, so that no gradient of a weight meets it where nobody sees it: 0 · NaN.
    query, key = (
        t.masked_fill(b.repeat_interleave(t.shape[1] // max(b.shape[1], 1), 1), torch.nan)
        for t, b in zip(reduced, bad, strict=True)
    )
    said = None if torch.compiler.is_compiling() else str(score)
    return replace(call, query=query, key=key, combine=score.combine, compared=said, stated=call.query.dtype)


def cast(tensor: Any) -> Any:
    """A query, key or value as PyTorch's own attention takes it: under torch.autocast in its dtype, except float64."""
    if not torch._C._is_any_autocast_enabled():
        return tensor
    if not isinstance(tensor, Tensor) or tensor.dtype == torch.float64 or tensor.dtype not in checks.FLOATS:
        return tensor
    kind = tensor.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return tensor
    return tensor.to(torch.get_autocast_dtype(kind))


def transformed(*tensors: Tensor) -> bool:
    """Whether torch.func (vmap, grad, jvp, …) wraps one of the tensors."""
    if not torch._C._are_functorch_transforms_active():
        return False
    return any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in tensors)


def dual(*tensors: Tensor) -> bool:
    """Whether a forward-mode derivative rides on one of the tensors."""
    return forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)
