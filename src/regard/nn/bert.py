"""BERT on the lazy matrix, with the weights that the world has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regard.masks import Mask
from regard.nn import checks, weights
from regard.nn.block import Function, looked_up
from regard.nn.encoder import Encoder
from regard.nn.positions import learned

ACTIVATIONS: dict[str, Function] = {  # the first name of each is the one that is written
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def _both(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{part}": f"{theirs}.{part}" for part in ("weight", "bias")}


NAMES = weights.Names(
    top={
        "words.weight": "embeddings.word_embeddings.weight",
        "position.table": "embeddings.position_embeddings.weight",
        "segments.weight": "embeddings.token_type_embeddings.weight",
        **_both("norm", "embeddings.LayerNorm"),
        **_both("pooler", "pooler.dense"),
    },
    layer={
        **{
            f"self_attn.in_proj_{part}": tuple(f"attention.self.{name}.{part}" for name in ("query", "key", "value"))
            for part in ("weight", "bias")
        },
        **{
            ours: (theirs,)
            for pair in (
                ("self_attn.out_proj", "attention.output.dense"),
                ("norm1", "attention.output.LayerNorm"),
                ("linear1", "intermediate.dense"),
                ("linear2", "output.dense"),
                ("norm2", "output.LayerNorm"),
            )
            for ours, theirs in _both(*pair).items()
        },
    },
    ours="encoder.layers.",
    theirs="encoder.layer.",
    prefixes=("bert.",),
    ignored=("cls.", "classifier.", "qa_outputs.", "embeddings.position_ids"),
    optional=("pooler.",),
)


class Bert(nn.Module):
    """A deep encoder of text that sees both ways: tokens, positions and segments are added, normalised, and encoded.

        x = norm(word[token_i] + position[i] + segment[s_i]),    y = encoder(x),    post-norm, GELU

    Args:
        vocabulary, dim, heads, layers: as in BERT-base: 30,522, 768, 12 and 12.
        hidden: of the feed-forward networks; None = 4 · dim.
        positions: how many tokens a text may have. segments: how many kinds of them.
        activation: "gelu", "gelu_tanh", "relu" or "silu". eps: what norms add to variances.
        dropout: of embeddings, and of what each half of a layer adds, in training; attention_dropout: of weights.
        pooler: whether there is a layer for `pool`.

    Source: Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding".

    >>> model = Bert(100, dim=16, heads=4, layers=2, positions=32).eval()
    >>> tokens, mask = torch.randint(100, (2, 7)), regard.masks.padding([7, 4])
    >>> y, attentions = model(tokens, mask=mask, return_attention=True)
    >>> y.shape, attentions[1].topk(3).indices.shape
    (torch.Size([2, 7, 16]), torch.Size([2, 4, 7, 3]))
    """

    def __init__(
        self,
        vocabulary: int = 30_522,
        dim: int = 768,
        heads: int = 12,
        layers: int = 12,
        *,
        hidden: int | None = None,
        positions: int = 512,
        segments: int = 2,
        activation: Function = "gelu",
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        eps: float = 1e-12,
        pooler: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        checks.sizes("Bert", vocabulary=vocabulary, segments=segments)
        self.encoder = Encoder(dim, heads, layers, hidden=hidden, activation=activation, dropout=dropout, eps=eps, **made)
        layer: Any
        for layer in self.encoder.layers:
            layer.self_attn.dropout = checks.dropout("Bert", attention_dropout)
            layer.hidden_dropout.p = 0.0
        self.words = nn.Embedding(vocabulary, dim, **made)
        self.position = learned(positions, dim, **made)
        self.segments = nn.Embedding(segments, dim, **made)
        self.norm = nn.LayerNorm(dim, eps=eps, **made)
        self.dropout = nn.Dropout(dropout)
        self.pooler = nn.Linear(dim, dim, **made) if pooler else None
        self.activation = activation
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gaussian numbers of deviation 0.02, biases 0, as in the paper's own code."""
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(
        self, tokens: Tensor, *, mask: Mask | None = None, segments: Tensor | None = None, return_attention: bool = False
    ) -> Any:
        """Contextualised embeddings, (batch, n, dim); with return_attention also a tuple of matrices, one for each layer.

        Args:
            tokens: (batch, n). mask: who may meet, such as padding(keep=attention_mask.bool()); None = everyone.
            segments: (batch, n), the segment of each token; None = all in the first.
        """
        checks.tokens("Bert", "tokens", tokens)
        checks.within_positions("Bert", tokens.shape[-1], len(self.position.table))
        x = looked_up("Bert", "tokens", self.words, tokens)
        if segments is None:
            x = x + self.segments.weight[0]
        else:
            checks.tokens("Bert", "segments", segments)
            checks.one_for_each("Bert", "segments", segments, tokens)
            x = x + looked_up("Bert", "segments", self.segments, segments)
        x = self.dropout(self.norm(self.position(x)))
        return self.encoder(x, mask=mask, return_attention=return_attention)

    def pool(self, y: Tensor) -> Tensor:
        """tanh(W y_0 + b) of the first token, (batch, n, dim) → (batch, dim); what BERT's own classifiers see."""
        checks.has_pooler(self.pooler is not None)
        assert self.pooler is not None
        return torch.tanh(self.pooler(y[..., 0, :]))

    @classmethod
    def from_pretrained(cls, name_or_dir: str | Path | None = None) -> Bert:
        """A model with the weights of a directory (config.json and model.safetensors) or of a name on the Hugging Face Hub.

        None = the packaged all-MiniLM-L6-v2. What belongs to heads is left out; anything else that is missing or foreign is a
        ShapeError that lists it. The model is in eval mode: call model.train() before fine-tuning.

        >>> Bert.from_pretrained().position  # doctest: +SKIP
        Learned(length=512, dim=384)
        """
        place = weights.directory(name_or_dir)
        config, tensors = weights.read("Bert", place, "bert")
        checks.activation("Bert", config["hidden_act"], tuple(ACTIVATIONS))
        checks.settings("Bert", config, is_decoder=False, position_embedding_type="absolute")
        model = cls(
            config["vocab_size"], config["hidden_size"], config["num_attention_heads"], config["num_hidden_layers"],
            hidden=config["intermediate_size"], positions=config["max_position_embeddings"],
            segments=config["type_vocab_size"], activation=ACTIVATIONS[config["hidden_act"]],
            dropout=config["hidden_dropout_prob"], attention_dropout=config["attention_probs_dropout_prob"],
            eps=config["layer_norm_eps"], pooler=any("pooler." in name for name in tensors),
        )  # fmt: skip
        model.load_state_dict(NAMES.loaded("Bert", tensors, model.state_dict()))
        return model.eval()

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes config.json and model.safetensors as transformers' BertModel reads them."""
        weights.write(directory, self._config(), NAMES.saved(self.state_dict()))

    def _config(self) -> dict[str, Any]:
        layer: Any = self.encoder.layers[0]
        return {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "vocab_size": self.words.num_embeddings,
            "hidden_size": self.words.embedding_dim,
            "num_attention_heads": layer.self_attn.heads,
            "num_hidden_layers": len(self.encoder.layers),
            "intermediate_size": layer.linear1.out_features,
            "hidden_act": next(name for name, ours in ACTIVATIONS.items() if ours == self.activation),
            "max_position_embeddings": len(self.position.table),
            "type_vocab_size": self.segments.num_embeddings,
            "layer_norm_eps": self.norm.eps,
            "hidden_dropout_prob": self.dropout.p,
            "attention_probs_dropout_prob": layer.self_attn.dropout,
        }
