"""How near the lazy matrices of a model from transformers are to the weights of its twin with eager attention.

>>> from regard.testing.architectures import named
>>> from regard.testing.likeness import compare
>>> found = compare(named("llama"), padded="left")
>>> found.kinds, found.logits < 1e-5, found.weights < 1e-5
(('attentions',), True, True)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import regard
from regard.testing.architectures import BATCH, Architecture, inputs, twins

KINDS = ("attentions", "encoder_attentions", "decoder_attentions", "cross_attentions")
STEPS = 4
GREEDY: dict[str, Any] = {
    "max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False, "return_dict_in_generate": True,
    "output_attentions": True, "output_logits": True, "disable_compile": True,
}  # fmt: skip


def kinds(outputs: Any) -> dict[str, tuple[Any, ...]]:
    """The matrices of an output by their kind, those of towers included."""
    found: dict[str, tuple[Any, ...]] = {}
    for name in outputs:
        if name in KINDS and outputs[name]:
            found[name] = outputs[name]
        elif name in ("text_model_output", "vision_model_output") and outputs[name].get("attentions"):
            found[f"{name.split('_')[0]} attentions"] = outputs[name].attentions
    return found


def rows(kind: str, A: Any, given: dict[str, Tensor]) -> Tensor:
    """Which queries of each sample are no padding, (batch, queries)."""
    keep = given.get("attention_mask")
    if keep is None or kind in ("decoder_attentions", "cross_attentions", "vision attentions"):
        return torch.ones(BATCH, A.shape[-2], dtype=torch.bool)
    return keep.bool()


def logits(architecture: Architecture, outputs: Any, given: dict[str, Tensor]) -> Tensor:
    """What is compared: the logits of everything that is no padding."""
    found: Tensor = outputs.logits_per_image if architecture.reads == "text and image" else outputs.logits
    if architecture.head in ("MaskedLM", "CausalLM", "ImageTextToText"):
        return found[given["attention_mask"].bool()]
    return found


@dataclass(frozen=True)
class Found:
    """The largest differences from eager: of logits, and of weights, entropy, top-8 and received on rows of words."""

    logits: float
    weights: float
    entropy: float
    topk: float
    received: float
    kinds: tuple[str, ...]
    layers: tuple[str, ...]  # what they use


def compare(architecture: Architecture, padded: str = "none", models: tuple[Any, Any] | None = None) -> Found:
    """One forward of both, and every question of every layer."""
    given = inputs(architecture, padded)
    with torch.no_grad():
        wanted, found = (model(**given, output_attentions=True) for model in models or twins(architecture))
    theirs, ours = kinds(wanted), kinds(found)
    if list(theirs) != list(ours):
        raise AssertionError(f"{architecture.name}: eager has {list(theirs)}, regard {list(ours)}")
    most = dict.fromkeys(("weights", "entropy", "topk", "received"), 0.0)
    for kind, matrices in theirs.items():
        for W, A in zip(matrices, ours[kind], strict=True):
            if not isinstance(A, regard.Attention) or A.shape != W.shape:
                raise AssertionError(f"{architecture.name}: {kind} has {A!r} where eager has {tuple(W.shape)}")
            for name, difference in _differences(A, W, rows(kind, A, given)).items():
                most[name] = max(most[name], difference)
    used = sorted({word for matrices in ours.values() for A in matrices for word in uses(A)})
    far = _far(logits(architecture, found, given), logits(architecture, wanted, given))
    return Found(far, **most, kinds=tuple(ours), layers=tuple(used))


def _differences(A: Any, W: Tensor, real: Tensor) -> dict[str, float]:
    keep = real[:, None, :].expand(W.shape[:3])
    k = min(8, W.shape[-1])
    values, places = A.topk(k)
    there = W.gather(-1, places.clamp(min=0)).masked_fill(places < 0, 0)  # eager's weights of the same keys
    pairs = {
        "weights": (A.to_dense()[keep], W[keep]),
        "entropy": (A.entropy()[keep], torch.special.entr(W).sum(-1)[keep]),
        "topk": (torch.stack([values[keep], there[keep]]), W.topk(k).values[keep].expand(2, -1, -1)),
        "received": (A.mT @ keep[..., None].float(), W.mT @ keep[..., None].float()),
    }
    return {name: _far(found, wanted) for name, (found, wanted) in pairs.items()}


def uses(A: Any) -> list[str]:
    """What a matrix from a model is made with, in words."""
    call, mask = A.call, str(A.call.mask)
    said = {
        "grouped heads": call.key.shape[1] < call.query.shape[1],
        "sinks": call.sinks is not None,
        "softcap": call.softcap is not None,
        "position bias": call.bias is not None,
        "causal": "causal" in mask,
        "window": "window" in mask,
        "chunks": "chunked" in mask,
        "chosen keys": "chosen" in mask,
    }
    return [word for word, is_so in said.items() if is_so]


def decode(
    architecture: Architecture, padded: str = "none", models: tuple[Any, Any] | None = None, **options: Any
) -> tuple[float, float]:
    """The largest differences of logits and weights over the steps of generate(); other tokens are an AssertionError."""
    given = inputs(architecture, padded)
    given.pop("decoder_input_ids", None)
    if architecture.head == "Seq2SeqLM":
        options.setdefault("decoder_start_token_id", 1)
    made = []
    for model in models or twins(architecture):
        torch.manual_seed(1)
        made.append(model.generate(**given, **{**GREEDY, **options}))
    wanted, found = made
    if not torch.equal(wanted.sequences, found.sequences):
        raise AssertionError(f"{architecture.name}: eager made {wanted.sequences.tolist()}, regard {found.sequences.tolist()}")
    far = max(_far(ours, theirs) for ours, theirs in zip(found.logits, wanted.logits, strict=True))
    return far, max(_apart(kind, found[kind], wanted[kind], given) for kind in KINDS if kind in wanted)


def _apart(kind: str, found: Any, wanted: Any, given: dict[str, Tensor]) -> float:
    """The largest difference of weights, of layers, or of the layers of steps."""
    steps = ((found, wanted),) if kind == "encoder_attentions" else tuple(zip(found, wanted, strict=True))
    most = 0.0
    for n, (ours, theirs) in enumerate(steps):
        for A, W in zip(ours, theirs, strict=True):
            if not isinstance(A, regard.Attention) or A.shape != W.shape:
                raise AssertionError(f"{kind} has {A!r} where eager has {tuple(W.shape)}")
            real = torch.cat([rows(kind, A, given), torch.ones(BATCH, n, dtype=torch.bool)], -1)[:, -W.shape[-2] :]
            keep = real.repeat_interleave(W.shape[0] // BATCH, 0)[:, None].expand(W.shape[:3])
            most = max(most, _far(A.to_dense()[keep], W[keep]))
    return most


def gradients(architecture: Architecture, padded: str = "none", models: tuple[Any, Any] | None = None) -> float:
    """The largest difference of a parameter's gradient, of the mean of the logits times fixed random numbers."""
    given, made = inputs(architecture, padded), []
    for model in models or twins(architecture):
        model.zero_grad()
        found = logits(architecture, model(**given), given)
        direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(5))
        (found * direction).mean().backward()
        made.append({name: p.grad for name, p in model.named_parameters()})
    eager, lazy = made
    if names := [name for name in eager if (eager[name] is None) != (lazy[name] is None)]:
        raise AssertionError(f"{architecture.name}: only one of them has gradients of {names}")
    return max(_far(lazy[name], grad) for name, grad in eager.items() if grad is not None)


def _far(found: Tensor, wanted: Tensor) -> float:
    """The largest difference; infinite where one of the two is no number."""
    return float((found - wanted).detach().abs().nan_to_num(nan=torch.inf).max()) if wanted.numel() else 0.0
