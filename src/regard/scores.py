"""How query and key are compared, before scale and softmax: frozen values.

f(q_i, k_j) for head h meets key head h // (heads // kv_heads). Where algebra allows, a score is the dot product of
something made of the query and something made of the key (`reduced`), so that every kernel for dot products has it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regard import checks
from regard.masks.algebra import Held

__all__ = ["Score", "additive", "bilinear", "cosine", "distance", "dot"]


class Score(ABC):
    """A comparison of a query and a key.

    >>> scores.dot(), scores.cosine(0.1)
    (dot(), cosine(0.1))
    """

    @abstractmethod
    def reduced(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Tensors whose dot product along the last dimension is f; given float32 or float64, differentiable, also twice.

        query (batch, heads, queries, dim), key (batch, kv_heads, keys, key_dim); the new key may have `heads` heads.

        >>> query, key = scores.distance().reduced(q, k)
        >>> query.shape, key.shape
        (torch.Size([2, 4, 6, 10]), torch.Size([2, 2, 6, 10]))
        """

    @abstractmethod
    def between(self, query: Tensor, key: Tensor) -> Tensor:
        """f(q_i, k_j) as it is defined, dense, shape (batch, heads, queries, keys).

        >>> scores.dot().between(q, k).shape
        torch.Size([2, 4, 6, 6])
        """

    @property
    @abstractmethod
    def expression(self) -> str:
        """The score as one would write it.

        >>> scores.cosine(0.1).expression
        'cosine(0.1)'
        """

    def scale(self, dim: int) -> float:
        """What f is multiplied by where nothing else is said; dim is the key's.

        >>> scores.dot().scale(64), scores.cosine().scale(64)
        (0.125, 1.0)
        """
        return 1.0

    @property
    def combine(self) -> Tensor | None:
        """v, (heads or 1, hidden), of a score that is Σ_m v_m tanh(q'_m + k'_m) of the reduced pair, no dot product.

        >>> w, v = torch.ones(8, 16), torch.ones(16)
        >>> scores.dot().combine, scores.additive(w, w, v).combine.shape
        (None, torch.Size([1, 16]))
        """
        return None

    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor inside, always in the same order.

        >>> scores.dot().tensors(), scores.cosine(torch.tensor(0.5)).tensors()
        ((), (tensor(0.5000),))
        """
        return ()

    def with_tensors(self, *tensors: Tensor) -> Score:
        """The same score with other tensors in the place of its own; they are not checked.

        >>> scores.bilinear(torch.eye(8)).with_tensors(torch.ones(8, 3))
        bilinear(8×3)
        """
        return self

    def misfits(self, heads: int, kv_heads: int, dim: int, key_dim: int) -> list[str]:
        """Why it cannot compare queries and keys of that size.

        >>> scores.dot().misfits(heads=4, kv_heads=4, dim=8, key_dim=6)
        ['dot() needs query and key of the same dim; got 8 and 6']
        """
        if dim == key_dim:
            return []
        return [f"{self.expression} needs query and key of the same dim; got {dim} and {key_dim}"]

    def to(self, device: torch.device | str) -> Score:
        """The same score with its tensors on that device.

        >>> scores.bilinear(torch.eye(8)).to("cpu")
        bilinear(8×8)
        """
        return self.with_tensors(*(t.to(device) for t in self.tensors()))

    def __str__(self) -> str:
        return self.expression

    def __repr__(self) -> str:
        return self.expression


def _each_head(key: Tensor, heads: int) -> Tensor:
    """The key heads, one for each query head."""
    return key.repeat_interleave(heads // max(key.shape[1], 1), 1)


def _sizes(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape))


@dataclass(frozen=True, repr=False)
class Dot(Score):
    """q · k."""

    def reduced(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return query, key

    def between(self, query: Tensor, key: Tensor) -> Tensor:
        return torch.einsum("bhid,bhjd->bhij", query, _each_head(key, query.shape[1]))

    def scale(self, dim: int) -> float:
        return 1 / math.sqrt(dim)

    @property
    def expression(self) -> str:
        return "dot()"


@dataclass(frozen=True, repr=False)
class Cosine(Score):
    """q · k / (|q| |k| temperature)."""

    temperature: float | Held

    def _temperature(self, query: Tensor) -> Tensor | float:
        """A number, or one for each head."""
        if isinstance(self.temperature, Held):
            return self.temperature.tensor.to(query.dtype).reshape(-1, 1, 1)
        return self.temperature

    def reduced(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return _unit(query) / self._temperature(query), _unit(key)

    def between(self, query: Tensor, key: Tensor) -> Tensor:
        key = _each_head(key, query.shape[1])
        squares = query.square().sum(-1)[..., :, None] * key.square().sum(-1)[..., None, :]  # |q|² |k|²
        zero = squares == 0
        products = torch.einsum("bhid,bhjd->bhij", query, key).masked_fill(zero, 0)
        return products / squares.masked_fill(zero, 1).sqrt() / self._temperature(query)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.temperature.tensor,) if isinstance(self.temperature, Held) else ()

    def with_tensors(self, *tensors: Tensor) -> Score:
        return replace(self, temperature=Held(tensors[0])) if tensors else self

    def misfits(self, heads: int, kv_heads: int, dim: int, key_dim: int) -> list[str]:
        found = super().misfits(heads, kv_heads, dim, key_dim)
        for given in self.tensors():
            if given.ndim and len(given) != heads:
                found.append(f"cosine has {len(given)} temperatures and the matrix {heads} heads")
        return found

    @property
    def expression(self) -> str:
        if isinstance(self.temperature, Held):
            return f"cosine(temperature of shape {tuple(self.temperature.tensor.shape)})"
        return f"cosine({self.temperature:g})"


def _unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1; a zero vector stays one, without a gradient.

    Divided by their largest number first, whose gradient is none: squares would leave float32 from 1e-23 and 1e19 on.
    """
    peak = vectors.detach().abs().amax(-1, keepdim=True)
    zero = peak == 0
    level = vectors / peak.masked_fill(zero, 1)
    squares = level.square().sum(-1, keepdim=True).masked_fill(zero, 1)
    return (level * squares.rsqrt()).masked_fill(zero, 0)


@dataclass(frozen=True, repr=False)
class Bilinear(Score):
    """qᵀ W k."""

    weight: Held

    def reduced(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return query @ self.weight.tensor.to(query.dtype), key

    def between(self, query: Tensor, key: Tensor) -> Tensor:
        weight = self.weight.tensor.to(query.dtype).expand(query.shape[1], -1, -1)
        return torch.einsum("bhid,hde,bhje->bhij", query, weight, _each_head(key, query.shape[1]))

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.weight.tensor,)

    def with_tensors(self, *tensors: Tensor) -> Score:
        return replace(self, weight=Held(tensors[0]))

    def misfits(self, heads: int, kv_heads: int, dim: int, key_dim: int) -> list[str]:
        return _weight_misfits("weight", self.weight.tensor, (heads,), {"dim": dim, "key_dim": key_dim})

    @property
    def expression(self) -> str:
        return f"bilinear({_sizes(self.weight.tensor)})"


@dataclass(frozen=True, repr=False)
class Distance(Score):
    """-|q - k|² / 2."""

    def reduced(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        ones = (query.new_ones(*query.shape[:-1], 1), key.new_ones(*key.shape[:-1], 1))
        half = (query.square().sum(-1, keepdim=True) / -2, key.square().sum(-1, keepdim=True) / -2)
        return torch.cat((query, half[0], ones[0]), -1), torch.cat((key, ones[1], half[1]), -1)

    def between(self, query: Tensor, key: Tensor) -> Tensor:
        apart = query[..., :, None, :] - _each_head(key, query.shape[1])[..., None, :, :]
        return -apart.square().sum(-1) / 2

    def scale(self, dim: int) -> float:
        return 1 / math.sqrt(dim)

    @property
    def expression(self) -> str:
        return "distance()"


@dataclass(frozen=True, repr=False)
class Additive(Score):
    """v · tanh(W_q q + W_k k); without W, what is given is projected already."""

    w_query: Held | None
    w_key: Held | None
    v: Held

    def reduced(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        if self.w_key is not None:
            weight = self.w_key.tensor.to(key.dtype)
            if weight.ndim == 3 and len(weight) != key.shape[1]:
                key = _each_head(key, query.shape[1])
            key = key @ weight
        return query if self.w_query is None else query @ self.w_query.tensor.to(query.dtype), key

    @property
    def combine(self) -> Tensor:
        return self.v.tensor if self.v.tensor.ndim == 2 else self.v.tensor[None]

    def between(self, query: Tensor, key: Tensor) -> Tensor:
        heads = query.shape[1]
        key = _each_head(key, heads)
        if self.w_query is not None:
            weight = self.w_query.tensor.to(query.dtype)
            query = torch.einsum("bhid,hdm->bhim", query, weight.expand(heads, -1, -1))
        if self.w_key is not None:
            weight = self.w_key.tensor.to(key.dtype)
            weight = weight.expand(heads, -1, -1) if weight.ndim == 2 else _each_head(weight[None], heads)[0]
            key = torch.einsum("bhjd,hdm->bhjm", key, weight)
        v = self.v.tensor.to(query.dtype).expand(heads, -1)
        return torch.einsum("bhijm,hm->bhij", torch.tanh(query[:, :, :, None] + key[:, :, None]), v)

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(held.tensor for held in (self.w_query, self.w_key, self.v) if held is not None)

    def with_tensors(self, *tensors: Tensor) -> Score:
        given = iter(map(Held, tensors))
        w_query, w_key = (None if held is None else next(given) for held in (self.w_query, self.w_key))
        return replace(self, w_query=w_query, w_key=w_key, v=next(given))

    def misfits(self, heads: int, kv_heads: int, dim: int, key_dim: int) -> list[str]:
        hidden = self.v.tensor.shape[-1]
        return [
            *([] if hidden else ["additive needs at least one hidden unit; got none"]),
            *_projection_misfits("w_query", self.w_query, (heads,), {"dim": dim, "hidden": hidden}),
            *_projection_misfits("w_key", self.w_key, (heads, kv_heads), {"key_dim": key_dim, "hidden": hidden}),
            *_weight_misfits("v", self.v.tensor, (heads,), {"hidden": hidden}),
        ]

    @property
    def expression(self) -> str:
        held = (self.w_query, self.w_key, self.v)
        return f"additive({', '.join('None' if h is None else _sizes(h.tensor) for h in held)})"


def _weight_misfits(name: str, weight: Tensor, heads: tuple[int, ...], rest: dict[str, int]) -> list[str]:
    """Why a weight, with or without heads in front, does not have that shape."""
    shape = tuple(weight.shape)
    own = shape[-len(rest) :]
    if own == tuple(rest.values()) and (len(shape) == len(rest) or checks.one_of(shape[0], *heads)):
        return []
    wanted = ", ".join(f"{axis} {size}" for axis, size in rest.items())
    in_front = " or ".join(map(str, sorted({*heads})))
    return [f"{name} of shape {checks.listed(shape)} must be ({wanted}), alone or with {in_front} heads in front"]


def _projection_misfits(name: str, held: Held | None, heads: tuple[int, ...], sizes: dict[str, int]) -> list[str]:
    """Why that weight does not fit; without it, why what is projected already has not the size of the hidden units."""
    if held is not None:
        return _weight_misfits(name, held.tensor, heads, sizes)
    (axis, size), (_, hidden) = sizes.items()
    return [] if size == hidden else [f"without {name}, {axis} must be v's hidden {hidden}; got {axis} {size}"]


# -- what a user writes -----------------------------------------------------------------------------------------------


def dot() -> Score:
    """The dot product, q · k; default scale 1/√dim.

    Vaswani et al. 2017, "Attention Is All You Need".

    >>> regard.attention(q, k, score=scores.dot()).to_dense().equal(A.to_dense())
    True
    """
    return Dot()


def cosine(temperature: float | Tensor = 1.0) -> Score:
    """The cosine of the angle between query and key, q · k / (|q| |k|) / temperature; default scale 1.

    temperature is a number above 0, or a tensor () or (heads,), which can be learned. The cosine of a zero vector is 0, and
    so is its gradient.

    Graves, Wayne and Danihelka 2014, "Neural Turing Machines".

    >>> query, keys = torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[7.0, 0.0], [0.0, 9.0]]]])
    >>> scores.cosine().between(query, keys)
    tensor([[[[0.6000, 0.8000]]]])
    >>> regard.attention(q, k, score=scores.cosine(0.1)).shape
    torch.Size([2, 4, 6, 6])
    """
    if isinstance(temperature, Tensor):
        given = checks.weights("cosine", "temperature", temperature, {0: "()", 1: "(heads,)"})
        return Cosine(Held(checks.temperatures(given)))
    return Cosine(checks.temperature(temperature))


def bilinear(weight: Tensor) -> Score:
    """A learned product, qᵀ W k; weight (dim, key_dim) or (heads, dim, key_dim); default scale 1. The dims may differ.

    nn.Linear's weight is (out, in): a layer that maps keys to queries' dim gives ``layer.weight``, one that maps queries to
    the keys' gives ``layer.weight.T``. ShapeError if the weight does not fit the query and the key.

    Luong, Pham and Manning 2015, "Effective Approaches to Attention-based Neural Machine Translation" ("general").

    >>> regard.attention(torch.zeros(5, 8), torch.zeros(6, 3), score=scores.bilinear(torch.zeros(8, 3))).shape
    torch.Size([5, 6])
    """
    shapes = {2: "(dim, key_dim)", 3: "(heads, dim, key_dim)"}
    return Bilinear(Held(checks.weights("bilinear", "weight", weight, shapes)))


def distance() -> Score:
    """Nearness, -|q - k|² / 2; default scale 1/√dim.

    Keys of one length get the weights of scaled dot-product attention: |q|² and |k|² are the same throughout a row. It is
    computed as q · k - |q|²/2 - |k|²/2, never below float32: its error is a rounding of the lengths, not of the distance.

    Tsai et al. 2019, "Transformer Dissection: A Unified Understanding of Transformer's Attention via the Lens of Kernel".

    >>> query, keys = torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[0.0, 0.0], [3.0, 2.0]]]])
    >>> scores.distance().between(query, keys)
    tensor([[[[-12.5000,  -2.0000]]]])
    """
    return Distance()


def additive(w_query: Tensor | None, w_key: Tensor | None, v: Tensor) -> Score:
    """A network with one hidden layer, v · tanh(W_q q + W_k k); default scale 1. The dims may differ.

    w_query (dim, hidden) or (heads, dim, hidden); w_key (key_dim, hidden) or (heads or kv_heads, key_dim, hidden);
    v (hidden,) or (heads, hidden). nn.Linear's weight is (out, in): pass ``layer.weight.T``. None in the place of w_query or
    w_key says that queries or keys are projected already, so that keys which meet many queries, one after the other, are
    projected once. ShapeError if they do not fit the query and the key, or one another.

    Bahdanau, Cho and Bengio 2015, "Neural Machine Translation by Jointly Learning to Align and Translate".

    >>> score = scores.additive(w_query=torch.ones(8, 16), w_key=torch.ones(3, 16), v=torch.ones(16))
    >>> regard.attention(torch.zeros(5, 8), torch.zeros(6, 3), score=score).shape
    torch.Size([5, 6])
    """
    return Additive(
        _projection("w_query", w_query, {2: "(dim, hidden)", 3: "(heads, dim, hidden)"}),
        _projection("w_key", w_key, {2: "(key_dim, hidden)", 3: "(heads or kv_heads, key_dim, hidden)"}),
        Held(checks.weights("additive", "v", v, {1: "(hidden,)", 2: "(heads, hidden)"})),
    )


def _projection(name: str, weight: Tensor | None, shapes: dict[int, str]) -> Held | None:
    return None if weight is None else Held(checks.weights("additive", name, weight, shapes))
