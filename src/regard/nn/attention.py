"""Self-attention and cross-attention as layers.

    A_h = softmax(score(q_h, k_h) + bias_h) over the visible keys,    y = concat(A_1 v_1, …, A_heads v_heads) W_Oᵀ + b_O
    q = x W_Qᵀ + b_Q,    k = m W_Kᵀ + b_K,    v = m W_Vᵀ + b_V,       m = x, or another sequence in cross-attention

Parameters are named as those of torch.nn.MultiheadAttention, whose state dict fits where the sizes are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import regard
from regard.masks import Mask
from regard.nn import checks
from regard.nn.cache import Cache
from regard.scores import Score

if TYPE_CHECKING:
    from regard.nn.positions import Position

Norm = Literal["layer", "rms"]
NORMS: dict[str, Callable[..., nn.Module]] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


class AttentionLayer(nn.Module):
    """What self-attention and cross-attention share: the parameters, and the way from queries, keys and values to outputs."""

    in_proj_weight: nn.Parameter | None
    in_proj_bias: nn.Parameter | None

    def __init__(
        self,
        dim: int | None,
        heads: int,
        memory_dim: int | None,
        kv_heads: int | None,
        bias: bool,
        output: bool,
        score: Score | nn.Module | None,
        norm: Norm | None,
        dropout: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        layer = type(self).__name__
        checks.heads_fit(layer, dim, heads, kv_heads)
        self.dim, self.heads, self.kv_heads = dim, heads, heads if kv_heads is None else kv_heads
        self.dropout = checks.dropout(layer, dropout)
        self.score = score
        self.out_proj = self.query_norm = self.key_norm = None
        self.register_parameter("in_proj_weight", None)
        self.register_parameter("in_proj_bias", None)
        if dim is None:
            checks.without_weights(layer, norm)
            return
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        width, memory = dim // heads, dim if memory_dim is None else memory_dim
        self.sizes = (dim, width * self.kv_heads, width * self.kv_heads)
        if memory == dim:
            self.in_proj_weight = nn.Parameter(torch.empty(sum(self.sizes), dim, **made))
        else:
            for name, size, given in zip("qkv", self.sizes, (dim, memory, memory), strict=True):
                self.register_parameter(f"{name}_proj_weight", nn.Parameter(torch.empty(size, given, **made)))
        if bias:
            self.in_proj_bias = nn.Parameter(torch.empty(sum(self.sizes), **made))
        if output:
            self.out_proj = nn.Linear(dim, dim, bias, **made)
        if norm is not None:
            checks.choice(layer, "norm", norm, tuple(NORMS))
            self.query_norm, self.key_norm = NORMS[norm](width, **made), NORMS[norm](width, **made)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot and Bengio's uniform numbers for what is projected, 0 for biases."""
        for name, parameter in self.named_parameters(recurse=False):
            if name.endswith("weight"):
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)
        if self.out_proj is not None:
            self.out_proj.reset_parameters()
            if self.out_proj.bias is not None:
                nn.init.zeros_(self.out_proj.bias)

    def _weights(self) -> tuple[Tensor, ...]:
        """W_Q, W_K, W_V, each (out, in)."""
        if self.in_proj_weight is not None:
            return self.in_proj_weight.split(self.sizes)
        return tuple([getattr(self, f"{name}_proj_weight") for name in "qkv"])  # functional_call gives plain tensors

    def _biases(self) -> tuple[Tensor | None, ...]:
        return (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.split(self.sizes)

    def _by_heads(self, x: Tensor, heads: int) -> Tensor:
        """(…, n, heads · dim) → (…, heads, n, dim)."""
        return x.unflatten(-1, (heads, x.shape[-1] // heads)).transpose(-3, -2)

    def _normed(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        if self.query_norm is None or self.key_norm is None:
            return query, key
        return self.query_norm(query), self.key_norm(key)

    def _attended(self, query: Tensor, key: Tensor, value: Tensor, mask: Mask | None, bias: Any, return_attention: bool) -> Any:
        """The output, alone or with the matrix that made it."""
        score = self.score() if isinstance(self.score, nn.Module) else self.score
        A = dropped(regard.attention(query, key, mask=mask, bias=bias, score=score), self.dropout, self.training)
        y: Tensor = torch.matmul(A, value)  # type: ignore[arg-type]
        y = y.transpose(-3, -2).flatten(-2)
        y = y if self.out_proj is None else self.out_proj(y)
        return (y, A) if return_attention else y

    def extra_repr(self) -> str:
        said = [f"{name}={getattr(self, name)}" for name in ("dim", "memory_dim") if getattr(self, name, None) is not None]
        said.append(f"heads={self.heads}")
        said += [f"kv_heads={self.kv_heads}"] if self.kv_heads != self.heads else []
        said += ["bias=False"] if self.dim is not None and self.in_proj_bias is None else []
        said += [f"score={self.score}"] if isinstance(self.score, Score) else []
        said += [f"dropout={self.dropout:g}"] if self.dropout else []
        said += ["output=False"] if self.dim is not None and self.out_proj is None else []
        return ", ".join(said)


class SelfAttention(AttentionLayer):
    """Every token becomes a weighted average of all tokens: y = A v, without weights, with one head or with several.

        SelfAttention()                    y = softmax(x xᵀ / √dim) x: no weights at all
        SelfAttention(512)                 queries, keys and values of one head
        SelfAttention(512, 8)              eight heads, as in the Transformer
        SelfAttention(512, 8, kv_heads=2)  grouped queries: four query heads for each key and value head

    Args:
        dim: the size of an embedding; heads divides it. None = x is query, key and value itself.
        heads: how many matrices of weights there are.
        kv_heads: how many heads keys and values have; None = as many.
        bias: whether the projections add a bias.
        output: whether there is an output projection.
        score: a value of `regard.scores`, or a module that makes one (`Bilinear`, `Additive`); None = the dot product.
        norm: "layer" or "rms": queries and keys are normalised, each head for itself.
        position: where tokens stand, by a `Position` that turns queries and keys or adds to the scores.
        dropout: the probability with which a weight is dropped in training.

    Raises:
        ShapeError: sizes that cannot be divided. ValueError: dropout outside [0, 1).

    Sources: Vaswani et al. 2017, "Attention Is All You Need"; Ainslie et al. 2023, "GQA: Training Generalized Multi-Query
    Transformer Models"; Henry et al. 2020, "Query-Key Normalization for Transformers".

    >>> layer = SelfAttention(16, heads=4)
    >>> y, A = layer(torch.randn(2, 5, 16), mask=regard.masks.causal, return_attention=True)
    >>> y.shape, A.shape, A.entropy().shape
    (torch.Size([2, 5, 16]), torch.Size([2, 4, 5, 5]), torch.Size([2, 4, 5]))
    """

    def __init__(
        self,
        dim: int | None = None,
        heads: int = 1,
        *,
        kv_heads: int | None = None,
        bias: bool = True,
        output: bool = True,
        score: Score | nn.Module | None = None,
        norm: Norm | None = None,
        position: Position | None = None,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, heads, None, kv_heads, bias, output, score, norm, dropout, device, dtype)
        checks.position(type(self).__name__, position)
        self.position = position

    def forward(
        self,
        x: Tensor,
        *,
        mask: Mask | None = None,
        position: Position | None = None,
        cache: Cache | None = None,
        return_attention: bool = False,
    ) -> Any:
        """The new embeddings, (batch, n, dim); with return_attention also A, a `regard.Attention` that nobody has computed.

        Args:
            x: (batch, n, dim), or (n, dim).
            mask: who may meet, one of `regard.masks`; None = everyone.
            position: that of the stack in which the layer stands; None = its own.
            cache: what it saw before; x goes on from there, and the cache holds x afterwards.
        """
        layer = type(self).__name__
        checks.embeddings(layer, "x", x, self.dim)
        checks.mask(layer, "mask", mask)
        checks.position(layer, position)
        position = self.position if position is None else position
        query, key, value = self._projected(x, position, 0 if cache is None else cache.length)
        if cache is not None:
            key, value = cache.append(key, value)
        bias = None if position is None else position.bias()
        return self._attended(query, key, value, mask, bias, return_attention)

    def _projected(self, x: Tensor, position: Position | None, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (batch, heads, n, dim), of tokens that stand at start, start + 1, …"""
        if self.in_proj_weight is None:
            checks.divides(type(self).__name__, x.shape[-1], self.heads)
            x = self._by_heads(x, self.heads)
            query = x if position is None else position.turn(x, start)
            return query, query, x
        made = self._by_heads(F.linear(x, self.in_proj_weight, self.in_proj_bias), self.heads + 2 * self.kv_heads)
        both, value = made.split((self.heads + self.kv_heads, self.kv_heads), -3)
        together = position is not None and position.together and self.query_norm is None
        if position is not None and together:
            both = position.turn(both, start)
        query, key = self._normed(*both.split((self.heads, self.kv_heads), -3))
        if position is not None and not together:
            query, key = position.turn(query, start), position.turn(key, start)
        return query, key, value


class CrossAttention(AttentionLayer):
    """Every token becomes a weighted average of the tokens of another sequence: y = A v, v made of the memory.

    Args:
        dim: the size of an embedding; heads divides it.
        memory_dim: the size of the memory's embeddings; None = dim.
        heads, kv_heads, bias, output, score, norm, dropout: as in `SelfAttention`.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2.3.

    >>> layer = CrossAttention(16, heads=4, memory_dim=8)
    >>> y, A = layer(torch.randn(2, 5, 16), torch.randn(2, 7, 8), return_attention=True)
    >>> y.shape, A.shape
    (torch.Size([2, 5, 16]), torch.Size([2, 4, 5, 7]))
    """

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        *,
        memory_dim: int | None = None,
        kv_heads: int | None = None,
        bias: bool = True,
        output: bool = True,
        score: Score | nn.Module | None = None,
        norm: Norm | None = None,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, heads, memory_dim, kv_heads, bias, output, score, norm, dropout, device, dtype)
        self.memory_dim = dim if memory_dim is None else memory_dim

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        *,
        mask: Mask | None = None,
        cache: Cache | None = None,
        return_attention: bool = False,
    ) -> Any:
        """The new embeddings, (batch, n, dim); with return_attention also A, (batch, heads, n, keys of the memory).

        Args:
            x: (batch, n, dim). memory: (batch, keys, memory_dim).
            mask: who may meet, one of `regard.masks`, such as padding(lengths of the memory); None = everyone.
            cache: holds the memory's keys and values after the first step, which are not computed again; another memory needs
                an empty one.
        """
        layer = type(self).__name__
        checks.embeddings(layer, "x", x, self.dim)
        checks.embeddings(layer, "memory", memory, self.memory_dim)
        checks.mask(layer, "mask", mask)
        w_query, w_key, w_value = self._weights()
        b_query, b_key, b_value = self._biases()
        query = self._by_heads(F.linear(x, w_query, b_query), self.heads)
        if cache is not None and cache.key is not None and cache.value is not None:
            checks.of_memory(layer, cache.key, query, memory)
            key, value = cache.key, cache.value
            query = query if self.query_norm is None else self.query_norm(query)
        else:
            key = self._by_heads(F.linear(memory, w_key, b_key), self.kv_heads)
            value = self._by_heads(F.linear(memory, w_value, b_value), self.kv_heads)
            query, key = self._normed(query, key)
            if cache is not None:
                cache.append(key, value)
        return self._attended(query, key, value, mask, None, return_attention)


def dropped(A: regard.Attention, p: float, training: bool) -> regard.Attention:
    """The matrix with dropout in its products, by a seed of PyTorch's CPU generator; itself outside of training."""
    if not training or not p:
        return A
    return A.dropout(p, torch.randint(2**60, (), device="cpu"))
