"""What stands on a body: a class for each token, or one for the sequence.

A body is any module from inputs to embeddings, (batch, n, dim): `TextEncoder`, `ImageEncoder`, `AudioEncoder`, `Bert`, or
one of PyTorch's. It is given `mask` and `return_attention` where the head was, and whatever else the head does not know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

import regard
from regard.masks import Mask
from regard.nn import checks
from regard.nn.pooling import AttentionPooling, FirstToken, Mean

Pool = Literal["first", "mean", "attention"]
POOLS: dict[str, Callable[..., nn.Module]] = {
    "first": lambda dim, **made: FirstToken(),
    "mean": lambda dim, **made: Mean(),
    "attention": AttentionPooling,
}


class ClassifierAttention(NamedTuple):
    """The matrices of a classifier: those that its body hands out, and that of its pooling, (batch, heads, 1, n)."""

    body: Any
    pool: regard.Attention | None


class TokenClassifier(nn.Module):
    """A class for each token, such as a part of speech or a named entity: logits_i = W dropout(body(x)_i) + b.

    Args:
        body: a module (batch, n) → (batch, n, dim). dim: the size of its embeddings.
        classes: how many there are. dropout: the probability with which numbers of an embedding are dropped in training.

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
        y, attentions = embedded(self.body, x, self.output.in_features, mask, return_attention, inputs)
        logits = self.output(self.dropout(y))
        return (logits, attentions) if return_attention else logits


class SequenceClassifier(nn.Module):
    """A class for a whole sequence, such as the intent of a sentence or what a picture shows: W dropout(pool(body(x))) + b.

    Args:
        body: a module (batch, n) → (batch, n, dim). dim: the size of its embeddings. classes: how many there are.
        pool: "first", the first token's embedding; "mean", that of the tokens there are; "attention", their average by a
            learned query; or a module (batch, n, dim), mask=… → (batch, dim).
        dropout: the probability with which numbers of the pooled embedding are dropped in training.

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
        if not isinstance(pool, nn.Module):
            checks.choice("SequenceClassifier", "pool", pool, tuple(POOLS))
            pool = POOLS[pool](dim, device=device, dtype=dtype)
        self.pool = pool
        self.dropout = nn.Dropout(checks.dropout("SequenceClassifier", dropout))
        self.output = nn.Linear(dim, classes, device=device, dtype=dtype)

    def forward(self, x: Tensor, *, mask: Mask | None = None, return_attention: bool = False, **inputs: Any) -> Any:
        """Logits, (batch, classes); with return_attention also a `ClassifierAttention`.

        Args:
            x: what the body takes, such as tokens (batch, n). mask: which of them there are, such as padding(lengths).
            inputs: what else the body takes.
        """
        y, attentions = embedded(self.body, x, self.output.in_features, mask, return_attention, inputs)
        if (
            of_outputs := getattr(self.body, "mask_of_outputs", None)
        ) is not None:  # it makes fewer embeddings than it was given
            mask = of_outputs(x, mask)
        A = None
        if isinstance(self.pool, AttentionPooling):
            y, A = self.pool(y, mask=mask, return_attention=True)
        else:
            y = self.pool(y, mask=mask)
        logits = self.output(self.dropout(y))
        return (logits, ClassifierAttention(attentions, A)) if return_attention else logits


def embedded(
    body: nn.Module, x: Tensor, dim: int, mask: Mask | None, return_attention: bool, inputs: dict[str, Any]
) -> tuple[Tensor, Any]:
    """What the body makes of x, (batch, n, dim), and what it hands out."""
    given = dict(inputs)
    if mask is not None:
        given["mask"] = mask
    if return_attention:
        given["return_attention"] = True
    made = body(x, **given)
    y, attentions = made if return_attention else (made, None)
    checks.embeddings(type(body).__name__, "what a head takes", y, dim, least=3)
    return y, attentions
