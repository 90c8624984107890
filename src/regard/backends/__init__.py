"""Who does the sweeps: the registry, and the choice of a backend for a question."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import torch

from regard import checks
from regard.backends.base import Backend
from regard.call import Call
from regard.readouts.base import Readout
from regard.readouts.logsumexp import LogSumExp

__all__ = ["BACKENDS", "Backend", "available"]


@cache
def _reference() -> Backend:
    from regard.backends.reference import Reference

    return Reference()


@cache
def _fused() -> Backend:
    from regard.backends.fused import Fused

    return Fused()


@cache
def _tiled() -> Backend:
    from regard.backends.tiled import Tiled

    return Tiled()


BACKENDS: dict[str, Callable[[], Backend]] = {"fused": _fused, "tiled": _tiled, "reference": _reference}
SMALL = 1 << 18  # pairs below which the first backend that can answer does: laying a plan would cost more than it saves


def named(backend: str | Backend) -> Backend:
    """The backend of that name, or the one given."""
    if isinstance(backend, Backend):
        return backend
    checks.choice("attention", "backend", backend, tuple(BACKENDS))
    return BACKENDS[backend]()


def available() -> list[tuple[str, list[str]]]:
    """Every backend with the reasons why it cannot be used on this machine; none if it can.

    >>> dict(regard.backends.available())["tiled"]
    []
    """
    found: list[tuple[str, list[str]]] = []
    for name, make in BACKENDS.items():
        found.append((name, _missing(make)))
    return found


def _missing(make: Callable[[], Backend]) -> list[str]:
    try:
        make()
    except ImportError as error:
        return [str(error)]
    return []


def choose(call: Call, readout: Readout | None, demanded: str | Backend | None) -> Backend:
    """The demanded backend, or of those that can answer the one with the least estimated cost; refuses with the reasons."""
    if demanded is not None:
        backend = named(demanded)
        if reasons := backend.why_not(call, readout):
            raise checks.Unsupported(f"backend {backend.name!r} cannot answer: {'; '.join(reasons)}.")
        return backend
    able: list[Backend] = []
    refused = []
    small = math.prod(call.shape) <= SMALL
    for make in BACKENDS.values():
        backend = make()
        reasons = backend.why_not_chosen(call, readout) or backend.why_not(call, readout)
        if reasons:
            refused.append(f"{backend.name}: {'; '.join(reasons)}")
        elif small:
            return backend
        else:
            able.append(backend)
    if not able:
        raise checks.Unsupported(f"no backend can answer; {'. '.join(refused)}.")
    return able[0] if len(able) == 1 else min(able, key=lambda backend: cost(backend, call))


def assign(
    call: Call, readouts: Sequence[Readout], demanded: str | Backend | None, known: bool
) -> list[tuple[Backend, list[int]]]:
    """Who answers which of the questions, in order: each passes the log-sum-exp on to the next.

    Questions of the second sweep wait for the log-sum-exp. Where another backend finds it cheaper than theirs, it goes
    first, though nobody asks it a question; then one walk answers all the rest.
    """
    chosen = [choose(call, readout, demanded) for readout in readouts]
    if len(chosen) == 1 and readouts[0].sweep == "first":
        return [(chosen[0], [0])]
    order = sorted(dict.fromkeys(chosen), key=lambda backend: backend.first, reverse=True)
    assigned = [(backend, [n for n, b in enumerate(chosen) if b == backend]) for backend in order]
    if not known and demanded is None and assigned and any(readouts[n].sweep == "second" for n in assigned[0][1]):
        with torch.no_grad():  # nobody differentiates it here
            cheapest = choose(call, LogSumExp(), None)
        if cheapest != assigned[0][0]:
            assigned.insert(0, (cheapest, []))
    return assigned


def cost(backend: Backend, call: Call) -> float:
    """What a walk costs, in pairs of PyTorch's fused kernel."""
    return backend.slowness * backend.pairs(call)
