"""Weights of models that were trained elsewhere: directories and hub names, and their names beside ours."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regard.nn import checks

WEIGHTS, CONFIG = "model.safetensors", "config.json"


@dataclass(frozen=True)
class Names:
    """What our parameters are called in a checkpoint, layers apart; several names are parts that are stacked in ours."""

    top: Mapping[str, str]
    layer: Mapping[str, tuple[str, ...]]
    ours: str  # what every layer's parameters begin with, before its number
    theirs: str
    transposed: tuple[str, ...] = ()  # ends of names whose matrices are (in, out) there
    prefixes: tuple[str, ...] = ()  # what a model with a head puts before all names
    ignored: tuple[str, ...] = ()  # beginnings of names that belong to heads, or are no parameters
    optional: tuple[str, ...] = field(default=())  # ours, that a checkpoint may lack

    def of(self, key: str) -> tuple[str, ...]:
        """The checkpoint's names of one of our parameters."""
        if not key.startswith(self.ours):
            return (self.top[key],)
        number, _, rest = key.removeprefix(self.ours).partition(".")
        return tuple(f"{self.theirs}{number}.{name}" for name in self.layer[rest])

    def loaded(self, model: str, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our state dict, made of a checkpoint; every name has to have its place, on both sides."""
        clean = {self._plain(name): tensor for name, tensor in given.items()}
        clean = {name: tensor for name, tensor in clean.items() if not name.startswith(self.ignored)}
        names = {key: self.of(key) for key in wanted}
        optional = {name for key in wanted if key.startswith(self.optional) for name in names[key]} if self.optional else set()
        due = {name for parts in names.values() for name in parts}
        checks.state_dict(model, sorted(due - set(clean) - optional), sorted(set(clean) - due))
        found = {}
        for key, parts in names.items():
            if all(name in clean for name in parts):
                tensor = torch.cat([clean[name].T if name.endswith(self.transposed) else clean[name] for name in parts])
                checks.fits_parameter(model, parts[0], tensor, wanted[key])
                found[key] = tensor
        return found

    def saved(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint, made of our state dict."""
        found = {}
        for key, tensor in state.items():
            parts = self.of(key)
            for name, part in zip(parts, tensor.detach().chunk(len(parts)), strict=True):
                found[name] = (part.T if name.endswith(self.transposed) else part).contiguous().clone()
        return found

    def _plain(self, name: str) -> str:
        for prefix in self.prefixes:
            name = name.removeprefix(prefix)
        return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def directory(name_or_dir: str | Path | None) -> Path:
    """Where the files of a model lie: a directory, the packaged model (None), or a copy from the Hugging Face Hub."""
    from regard import pretrained

    name, source, _ = pretrained._find(name_or_dir)
    if isinstance(source, Path):
        return source
    if name.rpartition("/")[2] == pretrained.PACKAGED and pretrained._cached(name) is None:
        return pretrained._packaged()
    from huggingface_hub import snapshot_download

    if pretrained._cached(name) is None:
        pretrained._ask_hub(name)
    return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS]))


def read(model: str, place: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of a directory."""
    from safetensors.torch import load_file

    checks.files(model, place, (CONFIG, WEIGHTS))
    config: dict[str, Any] = json.loads((place / CONFIG).read_text())
    checks.model_type(model, config.get("model_type"), kind)
    return config, load_file(place / WEIGHTS)


def write(place: str | Path, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    """Both files, each whole or not at all."""
    from safetensors.torch import save_file

    place = Path(place)
    place.mkdir(parents=True, exist_ok=True)
    save_file(tensors, place / f"{WEIGHTS}.part", metadata={"format": "pt"})
    (place / f"{CONFIG}.part").write_text(json.dumps(config, indent=2) + "\n")
    for name in (WEIGHTS, CONFIG):
        os.replace(place / f"{name}.part", place / name)
