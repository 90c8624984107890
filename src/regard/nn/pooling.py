"""From the embeddings of many tokens to one: the first token's, their mean, or their average by learned weights.

A mask says which tokens there are: a token counts if it may attend to itself, so padding(lengths) and
causal & padding(lengths) leave out the same ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import regard
from regard.masks import Mask, padding
from regard.nn import checks


def counted(layer: str, mask: Mask | None, x: Tensor) -> Tensor | None:
    """Which tokens of x, (batch, n, …), may attend to themselves, (batch, n); None = all."""
    if mask is None:
        return None
    batch, n = x.shape[:2]
    mask = checks.counting_mask(layer, mask, batch, n)
    rows, tokens = torch.arange(batch, device=x.device)[:, None], torch.arange(n, device=x.device)
    return mask.allows(rows, 0, tokens, tokens)


def there(layer: str, mask: Mask | None, x: Tensor) -> Tensor | None:
    """Which tokens of x there are, (batch, n), where a mask that says more would be lost; None = all."""
    keep = counted(layer, mask, x)
    if mask is not None:
        checks.only_keys(layer, mask)
    return keep


class FirstToken(nn.Module):
    """The first token's embedding, such as BERT's [CLS] or a class token: y = x_0.

    Raises:
        ShapeError: x that is not (batch, n, dim), or has no tokens. TypeError: a mask that is none of `regard.masks`.

    Source: Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding".

    >>> FirstToken()(torch.randn(2, 5, 8)).shape
    torch.Size([2, 8])
    """

    def forward(self, x: Tensor, *, mask: Mask | None = None) -> Tensor:
        """(batch, n, dim) → (batch, dim), whatever the mask."""
        checks.embeddings("FirstToken", "x", x, None, least=3)
        checks.mask("FirstToken", "mask", mask)
        checks.has_token("FirstToken", x)
        return x[:, 0]


class Mean(nn.Module):
    """The mean of the tokens that there are: y = Σ_j x_j / count. Padding counts nowhere; where there are no tokens it is 0.

    Raises:
        ShapeError: x that is not (batch, n, dim), or a mask that does not lie on it. TypeError: a mask that is none of
            `regard.masks`.

    Source: Reimers and Gurevych 2019, "Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks".

    >>> x = torch.tensor([[[1.0], [3.0], [100.0]]])
    >>> Mean()(x, mask=regard.masks.padding([2]))
    tensor([[2.]])
    """

    def forward(self, x: Tensor, *, mask: Mask | None = None) -> Tensor:
        """(batch, n, dim) → (batch, dim), over the tokens that the mask leaves."""
        checks.embeddings("Mean", "x", x, None, least=3)
        keep = counted("Mean", mask, x)
        if keep is None:
            return x.mean(1) if x.shape[1] else x.sum(1)
        wide = torch.promote_types(x.dtype, torch.float32)  # a sum of many tokens may be beyond the range of 16 bits
        total = x.masked_fill(~keep[..., None], 0).sum(1, dtype=wide)
        return (total / keep.sum(1, keepdim=True).clamp(min=1)).to(x.dtype)


class AttentionPooling(nn.Module):
    """A weighted average by a learned query: y_h = A_h x_h, A_h = softmax(q_h · x_h / √(dim/heads)) over the tokens there are.

    The queries begin at 0, and so the pooling as the mean. Each head averages its own share of the dim.

    Args:
        dim: the size of an embedding; heads divides it. heads: how many queries there are.

    Raises:
        ShapeError: heads that do not divide dim, x that is not (batch, n, dim), or a mask that does not lie on it.

    Sources: Yang et al. 2016, "Hierarchical Attention Networks for Document Classification"; Lee et al. 2019, "Set
    Transformer" (whose pooling also projects).

    >>> y, A = AttentionPooling(8, heads=2)(torch.randn(3, 5, 8), return_attention=True)
    >>> y.shape, A.shape
    (torch.Size([3, 8]), torch.Size([3, 2, 1, 5]))
    """

    def __init__(
        self, dim: int, heads: int = 1, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        checks.heads_fit("AttentionPooling", dim, heads, None)
        self.dim, self.heads = dim, heads
        self.query = nn.Parameter(torch.zeros(heads, 1, dim // heads, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Queries of 0."""
        nn.init.zeros_(self.query)

    def forward(self, x: Tensor, *, mask: Mask | None = None, return_attention: bool = False) -> Any:
        """(batch, n, dim) → (batch, dim); with return_attention also A, (batch, heads, 1, n)."""
        checks.embeddings("AttentionPooling", "x", x, self.dim, least=3)
        keep = counted("AttentionPooling", mask, x)
        tokens = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (batch, heads, n, dim / heads)
        query = self.query.expand(len(x), -1, -1, -1)
        A = regard.attention(query, tokens, mask=None if keep is None else padding(keep=keep))
        y: Tensor = torch.matmul(A, tokens)  # type: ignore[arg-type]
        y = y.flatten(1)
        return (y, A) if return_attention else y

    def extra_repr(self) -> str:
        return f"dim={self.dim}, heads={self.heads}"
