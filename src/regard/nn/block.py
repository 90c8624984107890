"""What the layers of a Transformer are made of beside attention: normalisation, feed-forward, dropout, and the way around them.

pre:   x + dropout(f(norm(x)))          Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture"
post:  norm(x + dropout(f(x)))          Vaswani et al. 2017, "Attention Is All You Need"

feed-forward:  f(x) = W_2 dropout(activation(W_1 x + b_1)) + b_2
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regard.nn import checks
from regard.nn.attention import NORMS, Norm

if TYPE_CHECKING:
    from typing_extensions import TypedDict

    class Options(TypedDict, total=False):
        """What every layer of a Transformer can be told."""

        kv_heads: int | None
        hidden: int | None
        activation: Activation
        norm: Norm
        norm_first: bool
        query_norm: Norm | None
        dropout: float
        bias: bool
        eps: float
        device: torch.device | str | None
        dtype: torch.dtype | None


Function = Literal["relu", "gelu", "gelu_tanh", "silu", "sigmoid"]
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
}


@dataclass(frozen=True)
class gated:
    """A gated activation: activation(a) · b, where W_1 x + b_1 = (a, b) has twice the hidden size.

    gated("silu") is SwiGLU, gated("gelu") GEGLU, gated("sigmoid") the first of them. Source: Shazeer 2020, "GLU Variants
    Improve Transformer".

    >>> regard.nn.EncoderLayer(8, 2, hidden=16, activation=gated("silu")).linear1.out_features
    32
    """

    activation: Function = "silu"

    def __post_init__(self) -> None:
        checks.choice("gated", "activation", self.activation, tuple(FUNCTIONS))

    def __call__(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return FUNCTIONS[self.activation](a) * b


Activation = Function | gated


def looked_up(model: str, name: str, table: nn.Embedding | Tensor, numbers: Tensor) -> Tensor:
    """Rows of a table; numbers beyond it are named."""
    try:
        rows: Tensor = F.embedding(numbers, table) if isinstance(table, Tensor) else table(numbers)
    except IndexError:
        checks.beyond(model, name, numbers, len(table if isinstance(table, Tensor) else table.weight))
    return rows


def parted(found: Any) -> tuple[Tensor, Any]:
    """What a layer found, and its matrix: None where nobody asked, because a matrix keeps its queries and keys alive."""
    return found if isinstance(found, tuple) else (found, None)


class Block(nn.Module):
    """The feed-forward half of a Transformer's layer, and what all halves share. Made by `EncoderLayer` and `DecoderLayer`."""

    linear1: nn.Linear
    linear2: nn.Linear

    def __init__(
        self,
        dim: int,
        attentions: dict[str, nn.Module],
        *,
        hidden: int | None = None,
        activation: Activation = "relu",
        norm: Norm = "layer",
        norm_first: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        layer = type(self).__name__
        checks.choice(layer, "norm", norm, tuple(NORMS))
        if not isinstance(activation, gated):
            checks.choice(layer, "activation", activation, tuple(FUNCTIONS))
        hidden = 4 * dim if hidden is None else checks.whole_number(layer, "hidden", hidden, least=1)
        self.activation, self.norm_first = activation, norm_first
        for name, attention in attentions.items():  # in torch.nn's order, by which the state of an optimizer goes
            self.add_module(name, attention)
        self.dropout = nn.Dropout(checks.dropout(layer, dropout))  # of what is added
        self.hidden_dropout = nn.Dropout(dropout)
        width = hidden * 2 if isinstance(activation, gated) else hidden
        self.linear1 = nn.Linear(dim, width, bias, device=device, dtype=dtype)
        self.linear2 = nn.Linear(hidden, dim, bias, device=device, dtype=dtype)
        plain = {} if bias or norm == "rms" else {"bias": False}
        for half in range(len(attentions) + 1):
            self.add_module(f"norm{half + 1}", NORMS[norm](dim, eps=eps, device=device, dtype=dtype, **plain))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot and Bengio's uniform numbers for the linear maps, 0 for their biases."""
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def _into(self, norm: nn.Module, x: Tensor) -> Tensor:
        """What a half of the layer is given."""
        return norm(x) if self.norm_first else x

    def _out_of(self, norm: nn.Module, x: Tensor, found: Tensor) -> Tensor:
        """What goes on, given what the half found."""
        y = x + self.dropout(found)
        return y if self.norm_first else norm(y)

    def _feedforward(self, norm: nn.Module, x: Tensor) -> Tensor:
        activation = self.activation if isinstance(self.activation, gated) else FUNCTIONS[self.activation]
        found = self.linear2(self.hidden_dropout(activation(self.linear1(self._into(norm, x)))))
        return self._out_of(norm, x, found)

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}, norm_first={self.norm_first}"
