"""Whisper generates in segments, and reads the timestamps of tokens from the cross-attentions of chosen heads.

For the timestamps transformers switches the model to eager attention, for good. Here it keeps its implementation, and of the
lazy matrices those heads alone are stored while the timestamps are found. What is generated is taken apart into samples and
stacked again; lazy matrices are left out of that, and put back.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch

from regard.checks import Unsupported
from regard.lazy import Lazy

KINDS = ("encoder_attentions", "decoder_attentions", "cross_attentions")
SOURCE = "_regard"  # where a sample keeps what it was taken from
_adapted: set[type] = set()


def adapt(model: type, name: str) -> None:
    """Let the class of a model that can give timestamps of tokens keep the implementation of that name."""
    module = sys.modules.get("transformers.models.whisper.generation_whisper")
    mixin = None if module is None else module.WhisperGenerationMixin
    if mixin is None or mixin in _adapted or not issubclass(model, mixin):
        return
    _adapted.add(mixin)
    mixin.generate = _keeping(mixin.generate, name)
    mixin.generate_with_fallback = _kept(mixin.generate_with_fallback, name)
    mixin._extract_token_timestamps = _stored(mixin._extract_token_timestamps)
    mixin._postprocess_outputs = _parted(mixin._postprocess_outputs)
    mixin._stack_split_outputs = _stacked(mixin._stack_split_outputs)


def _keeping(generate: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(generate)
    def keeping(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = self.config._attn_implementation
        self.__dict__["_regard_keeps"] = before == name
        try:
            return generate(self, *args, **kwargs)
        finally:
            if self.__dict__.pop("_regard_keeps"):
                self.config._attn_implementation = before

    return keeping


def _kept(search: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(search)
    def kept(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.__dict__.get("_regard_keeps"):  # after generate() has overwritten it, before anything is computed
            self.config._attn_implementation = name
        return search(self, *args, **kwargs)

    return kept


def _stored(extract: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(extract)
    def stored(self: Any, generate_outputs: Any, alignment_heads: Any, *args: Any, **kwargs: Any) -> Any:
        steps = generate_outputs["cross_attentions"]
        if _lazy(steps):
            heads = of_heads(steps, alignment_heads)
            generate_outputs = _Attributes({**generate_outputs, "cross_attentions": heads})
        return extract(self, generate_outputs, alignment_heads, *args, **kwargs)

    return stored


def of_heads(steps: Any, heads: Any) -> tuple[tuple[torch.Tensor, ...], ...]:
    """The weights of chosen (layer, head) as tensors of the matrices' shapes; all others are 0."""

    def of(A: Any, chosen: list[int]) -> torch.Tensor:
        if not chosen:
            return torch.zeros((), device=A.device).expand(A.shape)
        weights = torch.zeros(A.shape, device=A.device)
        weights[:, chosen] = A[:, chosen].to_dense(limit=None)
        return weights

    layers = len(steps[0])
    of_layer = [sorted({int(head) for layer, head in heads if int(layer) == n}) for n in range(layers)]
    return tuple(tuple(of(A, of_layer[n]) for n, A in enumerate(matrices)) for matrices in steps)


def _parted(postprocess: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(postprocess)
    def parted(self: Any, *args: Any, **kwargs: Any) -> Any:
        outputs: Any = kwargs.get("seek_outputs", args[0] if args else None)
        lazy = {} if isinstance(outputs, torch.Tensor) else {kind: outputs[kind] for kind in KINDS if _lazy(outputs.get(kind))}
        if not lazy:
            return postprocess(self, *args, **kwargs)
        without = _Without(outputs, lazy)
        args, kwargs = ((without, *args[1:]), kwargs) if args else (args, {**kwargs, "seek_outputs": without})
        tokens, samples = postprocess(self, *args, **kwargs)
        for n, sample in enumerate(samples):
            for kind, steps in lazy.items():
                part = slice(n, n + 1)
                sample[kind] = (
                    tuple(A[n] for A in steps)
                    if kind == KINDS[0]
                    else tuple(tuple(A[part] for A in matrices) for matrices in steps)
                )
            sample[SOURCE] = (lazy, n)
        return tokens, samples

    return parted


class _Attributes(dict[str, Any]):
    """What is looked up by name, either way."""

    __getattr__ = dict.__getitem__


class _Without(_Attributes):
    """Outputs of which the lazy ones can be looked up, and are passed over when all are gone through."""

    def __init__(self, outputs: Any, lazy: dict[str, Any]) -> None:
        super().__init__({key: value for key, value in outputs.items() if key not in lazy})
        self.lazy = lazy

    def __missing__(self, key: str) -> Any:
        return self.lazy[key]


def _stacked(stack: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stack)
    def stacked(self: Any, samples: Any, kind: Any, *args: Any, **kwargs: Any) -> Any:
        sources = [sample.pop(SOURCE, None) for sample in samples]
        if sources[0] is None:
            return stack(self, samples, kind, *args, **kwargs)
        lazy = sources[0][0]
        if [source and source[0] is lazy and source[1] for source in sources] != list(range(len(samples))):
            raise Unsupported(
                "regard.transformers: Whisper generated some samples again at another temperature, and their lazy matrices "
                "cannot be stacked; pass one temperature, or return_segments=True for those of each sample."
            )
        bare = [{key: value for key, value in sample.items() if key not in lazy} for sample in samples]
        outputs = stack(self, bare, kind, *args, **kwargs)
        for name, matrices in lazy.items():
            outputs[name] = matrices
        return outputs

    return stacked


def _lazy(found: Any) -> bool:
    while isinstance(found, tuple) and found:
        found = found[0]
    return isinstance(found, Lazy)
