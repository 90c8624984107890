"""What all tests share.

hypothesis draws the same examples each time; HYPOTHESIS_PROFILE=long draws ten times as many, never the same.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import jaxtyping
import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile("ci", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("long", settings.get_profile("ci"), derandomize=False, max_examples=1000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

torch.set_num_threads(1)  # the problems are small: a second thread costs more than it brings


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The shapes in signatures are checked where a test asks for it; all others run what users run."""
    jaxtyping.config.update("jaxtyping_disable", item.get_closest_marker("shapes") is None)


def bare(found: Any) -> Any:
    """A function without the checks of shapes that the test runner can put around it."""
    if isinstance(found, property):
        return property(bare(found.fget))
    if isinstance(found, staticmethod):
        return staticmethod(bare(found.__func__))
    while getattr(found, "__globals__", {}).get("__name__") == "jaxtyping._decorator":
        found = found.__wrapped__
    return found


@pytest.fixture(scope="module")
def as_users_have_it() -> Iterator[None]:
    """regard without those checks, which a graph cannot look through."""
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "regard"]
    classes = [kind for module in modules for kind in vars(module).values() if isinstance(kind, type)]
    with pytest.MonkeyPatch.context() as patch:
        for owner in (*modules, *(kind for kind in classes if kind.__module__.split(".")[0] == "regard")):
            for name, found in list(vars(owner).items()):
                if isinstance(found, FunctionType | property | staticmethod) and name != "__name__":
                    patch.setattr(owner, name, bare(found))
        yield


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Lightning leaves Ctrl-C without effect once it has met one."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)
