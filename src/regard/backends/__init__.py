"""Who does the sweeps: the registry, and the choice of a backend for a question."""

from __future__ import annotations

from collections.abc import Callable

from regard import checks
from regard.backends.base import Backend
from regard.call import Call
from regard.readouts.base import Readout


def _reference() -> Backend:
    from regard.backends.reference import Reference

    return Reference()


def _tiled() -> Backend:
    from regard.backends.tiled import Tiled

    return Tiled()


BACKENDS: dict[str, Callable[[], Backend]] = {"tiled": _tiled, "reference": _reference}  # in order of preference


def named(backend: str | Backend) -> Backend:
    """The backend of that name, or the one given."""
    if isinstance(backend, Backend):
        return backend
    checks.choice("attention", "backend", backend, tuple(BACKENDS))
    return BACKENDS[backend]()


def available() -> list[tuple[str, list[str]]]:
    """Every backend with the reasons why it cannot be used on this machine; none if it can."""
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
    """The demanded backend, or the first that can answer; refuses with the reasons."""
    if demanded is not None:
        backend = named(demanded)
        if reasons := backend.why_not(call, readout):
            raise checks.Unsupported(f"backend {backend.name!r} cannot answer: {'; '.join(reasons)}.")
        return backend
    refused = []
    for make in BACKENDS.values():
        backend = make()
        reasons = backend.why_not(call, readout) if backend.chosen else ["it only answers when it is named"]
        if not reasons:
            return backend
        refused.append(f"{backend.name}: {'; '.join(reasons)}")
    raise checks.Unsupported(f"no backend can answer; {'. '.join(refused)}.")
