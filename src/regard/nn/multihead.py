"""torch.nn.MultiheadAttention on a lazy matrix."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

import regard
from regard import biases, masks
from regard.biases import Bias
from regard.masks import Mask
from regard.nn import checks
from regard.nn.attention import dropped


class MultiheadAttention(torch.nn.MultiheadAttention):
    """torch.nn.MultiheadAttention, whose weights can be had without storing them: need_weights="lazy".

        output = concat(head_1, …, head_heads) W_Oᵀ + b_O,    head_h = A_h · (value W_Vhᵀ + b_Vh),
        A_h = softmax((query W_Qhᵀ + b_Qh)(key W_Khᵀ + b_Kh)ᵀ / √(embed_dim / num_heads)) over the visible keys

    Arguments, parameters, their names and their first values are PyTorch's, so that state dicts go both ways. It differs in
    these points:

    - A query that may see no key has weights 0, and its output is the output projection's bias; PyTorch gives NaN with
      need_weights=True and in evaluation without gradients.
    - What `is_causal` asserts is relied on with every need_weights; the keys of add_bias_kv and add_zero_attn are always seen.
    - Weights that are returned are those before dropout. Which ones are dropped is drawn from PyTorch's CPU generator.
    - Nested tensors are refused, as are weights of more than 1 GiB with need_weights=True.

    Inside torch.nn.TransformerEncoderLayer, in evaluation without gradients, PyTorch reads the parameters and does not call the
    layer; torch.backends.mha.set_fastpath_enabled(False) turns that off. torch.nn.TransformerEncoder makes nested tensors in
    that case, so it needs enable_nested_tensor=False wherever its layers are called all the same, as with hooks on them.

    Args:
        embed_dim: the size of queries and outputs; num_heads divides it.
        num_heads: how many heads share it.
        dropout: the probability with which a weight is dropped in training.
        bias: whether the projections add a bias.
        add_bias_kv: whether there is one more key and value, learned.
        add_zero_attn: whether there is one more key and value, of zeros; it comes last.
        kdim, vdim: the sizes of keys and values; None = embed_dim.
        batch_first: (batch, n, dim) instead of (n, batch, dim).

    Raises:
        ShapeError: embed_dim is no multiple of num_heads.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2.2.

    >>> layer = MultiheadAttention(8, 2, batch_first=True)
    >>> x = torch.randn(3, 5, 8)
    >>> y, A = layer(x, x, x, need_weights="lazy")
    >>> y.shape, A.shape, A.topk(2).indices.shape
    (torch.Size([3, 5, 8]), torch.Size([3, 2, 5, 5]), torch.Size([3, 2, 5, 2]))
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        checks.multihead_sizes(embed_dim, num_heads, kdim, vdim, dropout)
        super().__init__(
            embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, dtype
        )

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool | Literal["lazy"] = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Any]:
        """The output, and the weights: a stored tensor, the lazy matrix, or None.

        Args:
            query: (queries, batch, embed_dim), (batch, queries, embed_dim) with batch_first, or (queries, embed_dim).
            key, value: likewise, of kdim and vdim.
            key_padding_mask: (batch, keys), or (keys,) without a batch. Booleans: True = hidden. Floats: added to the scores.
            need_weights: True = a tensor (batch, queries, keys), the mean over heads; False = None; "lazy" = a
                `regard.Attention` of shape (batch, heads, queries, keys), to be asked: A.topk(8), A.entropy(), A.mean(1).
                Without a batch none of them has one.
            attn_mask: (queries, keys), or (batch · heads, queries, keys). Booleans: True = hidden. Floats: added to the scores.
            average_attn_weights: False = need_weights=True returns (batch, heads, queries, keys). No other one heeds it.
            is_causal: attn_mask, which must be given too, hides exactly the keys after each query: it is not looked at.

        Raises:
            ShapeError: shapes that do not fit together. TypeError: dtypes that do not. ValueError: is_causal without attn_mask.
            Unsupported: nested tensors. TooLarge: weights of more than 1 GiB.
        """
        checks.multihead_inputs(query, key, value, self.embed_dim, self.kdim, self.vdim, self.batch_first, self.out_proj.weight)
        q, k, v = map(self._by_heads, self._projected(query, key, value))
        batch, heads, queries, keys = q.shape[0], self.num_heads, q.shape[2], k.shape[2]
        checks.multihead_masks(key_padding_mask, attn_mask, is_causal, query.ndim == 3, (batch, heads, queries, keys))
        k, v = self._extended(k, v)
        extra = k.shape[2] - keys
        checks.multihead_weights(need_weights, average_attn_weights, (batch, heads, queries, keys + extra), q.dtype)
        mask, bias = who_meets(key_padding_mask, attn_mask, is_causal, heads, extra)
        A: Any = dropped(regard.attention(q, k, mask=mask, bias=bias), self.dropout, self.training)
        y = self.out_proj(self._joined(torch.matmul(A, v), query.ndim == 3))
        if not need_weights:
            return y, None
        if query.ndim == 2:
            A = A[0]
        if need_weights == "lazy":
            return y, A
        weights = A.mean(-3) if average_attn_weights else A.to_dense()
        return y, weights.to(y.dtype)

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values of all heads, in one product where they are one tensor."""
        if self.in_proj_weight is not None and query is key and key is value:
            return F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        separate = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        weights = separate if self.in_proj_weight is None else self.in_proj_weight.chunk(3)
        shifts = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return tuple(F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, shifts, strict=True))

    def _by_heads(self, projected: Tensor) -> Tensor:
        """As (batch, heads, n, head_dim)."""
        x = projected.unflatten(-1, (self.num_heads, self.head_dim))
        if x.ndim == 3:
            return x.transpose(0, 1)[None]
        return x.transpose(1, 2) if self.batch_first else x.permute(1, 2, 0, 3)

    def _joined(self, y: Tensor, batched: bool) -> Tensor:
        """As the queries came, the heads side by side."""
        if not batched:
            return y[0].transpose(0, 1).flatten(-2)
        return (y.transpose(1, 2) if self.batch_first else y.permute(2, 0, 1, 3)).flatten(-2)

    def _extended(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """With the learned key and value and those of zeros, if there are any."""
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (
                torch.cat([x, one.view(1, self.num_heads, 1, self.head_dim).expand(len(x), -1, -1, -1)], 2)
                for x, one in ((k, self.bias_k), (v, self.bias_v))
            )
        if self.add_zero_attn:
            k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
        return k, v

    def extra_repr(self) -> str:
        said = {"embed_dim": self.embed_dim, "num_heads": self.num_heads}
        optional = {
            "dropout": (self.dropout, 0),
            "bias": (self.in_proj_bias is not None, True),
            "add_bias_kv": (self.bias_k is not None, False),
            "add_zero_attn": (self.add_zero_attn, False),
            "kdim": (self.kdim, self.embed_dim),
            "vdim": (self.vdim, self.embed_dim),
            "batch_first": (self.batch_first, False),
        }
        said |= {name: value for name, (value, default) in optional.items() if value != default}
        return ", ".join(f"{name}={value}" for name, value in said.items())


def who_meets(
    key_padding_mask: Tensor | None, attn_mask: Tensor | None, is_causal: bool, heads: int, extra: int
) -> tuple[Mask, Bias | None]:
    """PyTorch's two masks as a mask and a bias; the last `extra` keys are seen by all."""
    hidden: dict[str, Tensor] = {}
    bias: Bias | None = None
    if is_causal and not extra:
        attn_mask = None
    for name, given in (("key_padding_mask", key_padding_mask), ("attn_mask", attn_mask)):
        if given is None:
            continue
        padded = F.pad(given, (0, extra)) if extra else given
        found = _hidden(padded)
        if found is not None:
            hidden[name] = found
            continue
        if name == "key_padding_mask":
            added = biases.dense(padded[..., None, None, :])
        else:
            added = biases.dense(padded if padded.ndim == 2 else padded.unflatten(0, (-1, heads)))
        bias = added if bias is None else bias + added
    mask = masks.from_torch(**hidden, heads=heads)
    return (masks.causal_from(0) & mask if is_causal and not extra else mask), bias


def _hidden(mask: Tensor) -> Tensor | None:
    """What a mask hides, if it does nothing else: floats that are 0 or -inf, where one can look at them, are a mask too."""
    if mask.dtype == torch.bool:
        return mask
    if mask.requires_grad or mask.device.type == "cuda" or torch.compiler.is_compiling():
        return None
    hidden = mask == -torch.inf
    return hidden if bool((hidden | (mask == 0)).all()) else None
