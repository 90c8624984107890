"""What a layer computes when it is told attn_implementation="regard"."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import regard
from regard import biases
from regard.transformers import decoding, sparse
from regard.transformers.lazymask import LazyMask
from regard.transformers.masking import read_mask


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: LazyMask | Tensor | None,
    dropout: float = 0.0,  # stays the sixth: some callers pass it by position
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, regard.Attention]:
    """The layer's output, (batch, queries, heads, value_dim), and its attention matrix.

    query is (batch, heads, queries, dim); key and value have kv_heads heads, which may be fewer.
    """
    mask, bias, offset = read_mask(module, attention_mask, query.shape[-2], is_causal)
    if (chosen := sparse.chosen(module, query.shape[1], kwargs)) is not None:
        mask = chosen if mask is None else mask & chosen
    if (added := kwargs.get("position_bias")) is not None:
        bias = biases.dense(added) if bias is None else bias + biases.dense(added)
    sinks = kwargs.get("s_aux")
    if query.shape[0] == 1 < key.shape[0]:  # learned queries, shared by every row
        query = query.expand(key.shape[0], -1, -1, -1)
    weights = regard.attention(
        query,
        key,
        mask=mask,
        bias=bias,
        scale=scaling,
        softcap=kwargs.get("softcap"),
        sinks=kwargs.get("sinks") if sinks is None else sinks,
        offset=offset,
    )
    if dropout > 0:
        weights = weights.dropout(dropout, torch.randint(2**60, ()) if torch.compiler.is_compiling() else _drawn())
    output: Tensor = torch.matmul(weights, value)  # type: ignore[arg-type]
    if decoding.wanted():
        weights = decoding.shared(weights, key, attention_mask.first_key if isinstance(attention_mask, LazyMask) else 0)
    return output.transpose(1, 2).contiguous(), weights


def _drawn() -> int:
    return int(torch.randint(2**60, ()))
