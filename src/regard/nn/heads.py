"""What stands on a body: a class for each token, or one for the sequence.

A body is any module from inputs to embeddings, (batch, n, dim): `TextEncoder`, `ImageEncoder`, `AudioEncoder`, `Bert`, or
one of PyTorch's. It is given `mask` and `return_attention` where the head was, and whatever else the head does not know.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

import regard
from regard.masks import Mask
from regard.nn import checks
from regard.nn.block import parted
from regard.nn.pooling import AttentionPooling, FirstToken, Mean

Pool = Literal["first", "mean", "attention", "body"]
POOLS = ("first", "mean", "attention", "body")


class ClassifierAttention(NamedTuple):
    """The matrices of a classifier: those that its body hands out, and that of its pooling, (batch, heads, 1, n), or None.

    >>> model = SequenceClassifier(regard.nn.TextEncoder(100, 16, heads=2, layers=3), 16, classes=5, pool="attention")
    >>> logits, attentions = model(torch.randint(100, (2, 7)), return_attention=True)
    >>> len(attentions.body), attentions.pool.topk(2).indices.shape  # the tokens that decide
    (3, torch.Size([2, 1, 1, 2]))
    """

    body: Any
    pool: regard.Attention | None


class TokenClassifier(nn.Module):
    """A class for each token, such as a part of speech or a named entity: logits_i = W dropout(body(x)_i) + b.

    Args:
        body: a module (batch, n) → (batch, n, dim). dim: the size of its embeddings.
        classes: how many there are. dropout: the probability with which numbers of an embedding are dropped in training.

    Raises:
        ShapeError: a body whose embeddings are not (batch, n, dim). ValueError: sizes below 1, dropout outside [0, 1).

    Source: Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", section 5.3.

    >>> model = TokenClassifier(regard.nn.TextEncoder(100, 16, heads=2, layers=1), 16, classes=9)
    >>> model(torch.randint(100, (2, 7)), mask=regard.masks.padding([7, 4])).shape
    torch.Size([2, 7, 9])
    """

    def __init__(
        self,
        body: nn.Module,
        dim: int,
        classes: int,
        dropout: float = 0.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.sizes("TokenClassifier", dim=dim, classes=classes)
        self.body = body
        self.dropout = nn.Dropout(checks.dropout("TokenClassifier", dropout))
        self.output = nn.Linear(dim, classes, device=device, dtype=dtype)

    def forward(self, x: Tensor, *, mask: Mask | None = None, return_attention: bool = False, **inputs: Any) -> Any:
        """Logits, (batch, n, classes); with return_attention also what the body hands out.

        Args:
            x: what the body takes, such as tokens (batch, n). mask: which of them there are, such as padding(lengths).
            inputs: what else the body takes.
        """
        y, attentions = embedded(self, x, mask, return_attention, inputs)
        logits = self.output(self.dropout(y))
        return (logits, attentions) if return_attention else logits


class SequenceClassifier(nn.Module):
    """A class for a whole sequence, such as the intent of a sentence or what a picture shows: W dropout(pool(body(x))) + b.

    Args:
        body: a module (batch, n) → (batch, n, dim). dim: the size of its embeddings. classes: how many there are.
        pool: "first", the first token's embedding; "mean", that of the tokens there are; "attention", their average by a
            learned query; "body", what the body's own `pool` makes of them, such as the layer that BERT was trained with;
            or a module (batch, n, dim), mask=… → (batch, dim).
        dropout: the probability with which numbers of the pooled embedding are dropped in training.

    Raises:
        ShapeError: a body whose embeddings are not (batch, n, dim). ValueError: sizes below 1, dropout outside [0, 1), an
            unknown pool. Unsupported: pool="body" for a body that has none.

    Source: Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", section 4.1.

    >>> model = SequenceClassifier(regard.nn.TextEncoder(100, 16, heads=2, layers=1), 16, classes=3, pool="attention")
    >>> tokens, mask = torch.randint(100, (2, 7)), regard.masks.padding([7, 4])
    >>> logits, attentions = model(tokens, mask=mask, return_attention=True)
    >>> logits.shape, attentions.body[0].shape, attentions.pool.shape
    (torch.Size([2, 3]), torch.Size([2, 2, 7, 7]), torch.Size([2, 1, 1, 7]))
    """

    def __init__(
        self,
        body: nn.Module,
        dim: int,
        classes: int,
        pool: Pool | nn.Module = "first",
        dropout: float = 0.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.sizes("SequenceClassifier", dim=dim, classes=classes)
        self.body = body
        self.pool = self._pooling(pool, dim, device, dtype)
        self.dropout = nn.Dropout(checks.dropout("SequenceClassifier", dropout))
        self.output = nn.Linear(dim, classes, device=device, dtype=dtype)

    def forward(self, x: Tensor, *, mask: Mask | None = None, return_attention: bool = False, **inputs: Any) -> Any:
        """Logits, (batch, classes); with return_attention also a `ClassifierAttention`.

        Args:
            x: what the body takes, such as tokens (batch, n). mask: which of them there are, such as padding(lengths).
            inputs: what else the body takes.
        """
        y, attentions = embedded(self, x, mask, return_attention, inputs)
        body: Any = self.body
        if hasattr(body, "mask_of_outputs"):  # it makes fewer embeddings than it was given
            mask = body.mask_of_outputs(x, mask)
        A = None
        if self.pool is None:
            y = body.pool(y)
        elif return_attention and isinstance(self.pool, AttentionPooling):
            y, A = self.pool(y, mask=mask, return_attention=True)
        else:
            y = self.pool(y, mask=mask)
        logits = self.output(self.dropout(y))
        return (logits, ClassifierAttention(attentions, A)) if return_attention else logits

    def _pooling(
        self, pool: Pool | nn.Module, dim: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> nn.Module | None:
        """From many embeddings to one; None = the body's own way."""
        if isinstance(pool, nn.Module):
            return pool
        checks.choice("SequenceClassifier", "pool", pool, POOLS)
        if pool == "body":
            checks.pools("SequenceClassifier", self.body)
            return None
        if pool == "attention":
            return AttentionPooling(dim, device=device, dtype=dtype)
        return FirstToken() if pool == "first" else Mean()


def embedded(
    head: TokenClassifier | SequenceClassifier, x: Tensor, mask: Mask | None, return_attention: bool, inputs: dict[str, Any]
) -> tuple[Tensor, Any]:
    """What the head's body makes of x, (batch, n, dim), and what it hands out."""
    given = dict(inputs)
    if mask is not None:
        given["mask"] = mask
    if return_attention:
        given["return_attention"] = True
    y, attentions = parted(head.body(x, **given))
    made = f"what its body {type(head.body).__name__} makes"
    checks.embeddings(type(head).__name__, made, y, head.output.in_features, least=3)
    return y, attentions
