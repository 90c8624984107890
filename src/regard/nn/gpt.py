"""GPT-2 on the lazy matrix, with the weights that the world has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regard.nn import checks, weights
from regard.nn.positions import learned
from regard.nn.text import LanguageModel, TokenEmbedding


def _layer() -> dict[str, tuple[str, ...]]:
    pairs = {
        "norm1": "ln_1",
        "self_attn.in_proj_": "attn.c_attn.",
        "self_attn.out_proj": "attn.c_proj",
        "norm2": "ln_2",
        "linear1": "mlp.c_fc",
        "linear2": "mlp.c_proj",
    }
    parts = ("weight", "bias")
    return {
        f"{ours}{part}" if ours.endswith("_") else f"{ours}.{part}": (f"{theirs.removesuffix('.')}.{part}",)
        for ours, theirs in pairs.items()
        for part in parts
    }


NAMES = weights.Names(
    top={
        "body.embedding.weight": "wte.weight",
        "body.encoder.position.table": "wpe.weight",
        "body.encoder.norm.weight": "ln_f.weight",
        "body.encoder.norm.bias": "ln_f.bias",
    },
    layer=_layer(),
    ours="body.encoder.layers.",
    theirs="h.",
    transposed=("attn.c_attn.weight", "c_proj.weight", "c_fc.weight"),
    prefixes=("transformer.",),
    ignored=("lm_head.", "score.", "classifier.", "qa_outputs.", "multiple_choice_head."),
)


class PlainEmbedding(TokenEmbedding):
    """x_i = E[token_i], without √dim; it begins with Gaussian numbers of deviation 0.02."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) / self.dim**0.5


class GPT(LanguageModel):
    """A deep causal model of text, GPT-2's shape: pre-norm, GELU (tanh), learned positions, logits y Eᵀ of the embeddings' E.

    Args:
        vocabulary, dim, heads, layers: as in the smallest GPT-2: 50,257, 768, 12 and 12.
        positions: how many tokens a text may have. hidden: of the feed-forward networks; None = 4 · dim.
        dropout: of embeddings, weights and what each half of a layer adds, in training.

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".

    >>> model = GPT(100, dim=16, heads=4, layers=2, positions=32).eval()
    >>> logits, attentions = model(torch.randint(100, (2, 7)), return_attention=True)
    >>> logits.shape, attentions[0].shape
    (torch.Size([2, 7, 100]), torch.Size([2, 4, 7, 7]))
    """

    def __init__(
        self,
        vocabulary: int = 50_257,
        dim: int = 768,
        heads: int = 12,
        layers: int = 12,
        *,
        positions: int = 1024,
        hidden: int | None = None,
        dropout: float = 0.1,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(
            vocabulary, dim, heads, layers, position=learned(positions, dim, **made), hidden=hidden, activation="gelu_tanh",
            norm_first=True, dropout=dropout, eps=eps, **made,
        )  # fmt: skip
        self.body.embedding = PlainEmbedding(vocabulary, dim, dropout=dropout, **made)
        layer: Any
        for layer in self.body.encoder.layers:
            layer.hidden_dropout.p = 0.0
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gaussian numbers of deviation 0.02, biases 0, as in the paper's own code."""
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @classmethod
    def from_pretrained(cls, name_or_dir: str | Path) -> GPT:
        """A model with the weights of a directory (config.json and model.safetensors) or of a name on the Hugging Face Hub.

        Anything that is missing or foreign is a ShapeError that lists it. The model is in eval mode.
        """
        config, tensors = weights.read("GPT", weights.directory(name_or_dir), "gpt2")
        checks.activation("GPT", config["activation_function"], ("gelu_new", "gelu_pytorch_tanh"))
        plain = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
        checks.settings("GPT", config, tie_word_embeddings=True, **plain)
        tensors = {name: t for name, t in tensors.items() if not name.endswith((".attn.bias", ".attn.masked_bias"))}
        model = cls(
            config["vocab_size"], config["n_embd"], config["n_head"], config["n_layer"], positions=config["n_positions"],
            hidden=config.get("n_inner"), dropout=config["resid_pdrop"], eps=config["layer_norm_epsilon"],
        )  # fmt: skip
        model.load_state_dict(NAMES.loaded("GPT", tensors, model.state_dict()))
        return model.eval()

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes config.json and model.safetensors as transformers' GPT2LMHeadModel reads them."""
        layer: Any = self.body.encoder.layers[0]
        position: Any = self.body.encoder.position
        drop = self.body.embedding.dropout.p
        config = {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": self.body.embedding.vocabulary,
            "n_embd": self.body.embedding.dim,
            "n_head": layer.self_attn.heads,
            "n_layer": len(self.body.encoder.layers),
            "n_positions": len(position.table),
            "n_inner": layer.linear1.out_features,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": layer.norm1.eps,
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), drop),
        }
        tensors = NAMES.saved(self.state_dict())
        weights.write(directory, config, {f"transformer.{name}": tensor for name, tensor in tensors.items()})
