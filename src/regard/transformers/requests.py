"""Who may ask for attn_implementation="regard", and what those are told who may not."""

from __future__ import annotations

import functools
import inspect
import sys
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from regard.checks import Unsupported
from regard.transformers import whisper

NAME = "regard"

# Classes of models of which some layers go through the interface and others, named here, do not.
PARTLY = {
    "bigbird_pegasus": "BigBirdPegasusBlockSparseAttention",
    "informer": "InformerProbSparseAttention",
    "longt5": "LongT5LocalAttention",
    "pegasus_x": "PegasusXGlobalLocalAttention",
    "git": "GitSelfAttention",
    "clap_audio_model": "ClapAudioSelfAttention",
}


def require(model: PreTrainedModel) -> None:
    """Raise `regard.checks.Unsupported` unless every attention layer of the model goes through regard.

    >>> from transformers import AutoModel, BertConfig
    >>> small = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> regard.transformers.require(AutoModel.from_config(small, attn_implementation="regard"))
    >>> regard.transformers.require(AutoModel.from_config(small, attn_implementation="eager"))
    Traceback (most recent call last):
    regard.checks.Unsupported: regard.transformers: BertModel uses attn_implementation="eager"; load it with ...
    """
    for part in _parts(model):
        refuse_outsider(type(part), part.config.model_type)
        used = part.config._attn_implementation
        if used != NAME:
            raise Unsupported(
                f'regard.transformers: {type(part).__name__} uses attn_implementation="{used}"; load it with '
                f'attn_implementation="{NAME}" or call model.set_attn_implementation("{NAME}").'
            )


def _parts(model: PreTrainedModel) -> list[PreTrainedModel]:
    return [m for m in model.modules() if isinstance(m, PreTrainedModel)]


def refuse_outsider(model: type[PreTrainedModel], model_type: str) -> None:
    """Stop at a class whose attention layers transformers does not let anyone replace."""
    if model_type in PARTLY:
        raise Unsupported(
            f"regard.transformers: {model.__name__} (model type {model_type}) does part of its attention "
            f"({PARTLY[model_type]}) outside transformers' AttentionInterface, so not all of its weights can be lazy; use "
            'attn_implementation="eager".'
        )
    try:
        inspect.getsource(sys.modules[model.__module__])
    except (KeyError, OSError, TypeError):
        return  # transformers looks at the source; without one the answer is unknown, and the mask will tell
    if not model._can_set_attn_implementation():
        raise Unsupported(
            f"regard.transformers: {model.__name__} (model type {model_type}) does its attention outside transformers' "
            'AttentionInterface, so its weights cannot be lazy; use attn_implementation="eager".'
        )


def _asked(implementation: Any, config: PreTrainedConfig, part: PreTrainedConfig) -> bool:
    """Whether a request, which may be a dict by sub-model, names regard for the part with that configuration."""
    if not isinstance(implementation, dict):
        return bool(implementation == NAME)
    if part is not config:
        for key in config.sub_configs:
            if (inner := getattr(config, key, None)) is not None and any(part is one for one in _tree(inner)):
                return _asked(implementation.get(key), inner, part)
    return bool(implementation.get("") == NAME)


def _tree(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    inner = [getattr(config, key, None) for key in config.sub_configs]
    return [config, *(one for part in inner if part is not None for one in _tree(part))]


def watch() -> None:
    """Let every request for "regard" be checked against the class that it is made of.

    transformers asks a class about flash and sdpa only. Any other name it accepts, and some classes then ignore it:
    that would end in dense weights without a word.
    """
    choose, switch = PreTrainedModel.get_correct_attn_implementation, PreTrainedModel.set_attn_implementation

    @functools.wraps(choose)
    def checked_choice(self: PreTrainedModel, requested_attention: str | None, *args: Any, **kwargs: Any) -> Any:
        if requested_attention == NAME:
            refuse_outsider(type(self), self.config.model_type)
            whisper.adapt(type(self), NAME)
        return choose(self, requested_attention, *args, **kwargs)

    @functools.wraps(switch)
    def checked_switch(self: PreTrainedModel, attn_implementation: Any, *args: Any, **kwargs: Any) -> Any:
        for part in _parts(self):
            if _asked(attn_implementation, self.config, part.config):
                refuse_outsider(type(part), part.config.model_type)
                whisper.adapt(type(part), NAME)
        return switch(self, attn_implementation, *args, **kwargs)

    PreTrainedModel.get_correct_attn_implementation = checked_choice
    PreTrainedModel.set_attn_implementation = checked_switch
    _watch_configs()


OUTPUT_ATTENTIONS = (
    "regard.transformers: transformers takes output_attentions in a config for eager attention alone; leave the config as it "
    "is and pass output_attentions=True in the call, model(…, output_attentions=True) or model.generate(…, "
    "output_attentions=True, return_dict_in_generate=True)."
)


def _watch_configs() -> None:
    """Let the refusal of output_attentions in a config, which transformers has for every name but eager, say what to do."""
    flag: Any = PreTrainedConfig.output_attentions
    make = PreTrainedConfig.from_dict.__func__

    def checked_flag(self: Any, value: bool) -> None:
        if value and self._attn_implementation == NAME:
            raise Unsupported(OUTPUT_ATTENTIONS)
        flag.fset(self, value)

    @functools.wraps(make)
    def checked_dict(cls: Any, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        if kwargs.get("output_attentions") and kwargs.get("attn_implementation") == NAME:
            raise Unsupported(OUTPUT_ATTENTIONS)
        return make(cls, config_dict, **kwargs)

    PreTrainedConfig.output_attentions = flag.setter(checked_flag)
    PreTrainedConfig.from_dict = classmethod(checked_dict)  # type: ignore[arg-type]
