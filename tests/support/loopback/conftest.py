"""Fixtures for the tests of the loopback control plane."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import modal
import pytest

from . import LoopbackModal
from .fixtures import loopback

__all__ = ["loopback"]

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def jobs() -> ModuleType:
    """Return loopback_jobs as a top-level module, so that the client uploads this file only."""
    spec = importlib.util.spec_from_file_location("loopback_jobs", HERE / "loopback_jobs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["loopback_jobs"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def running(jobs: ModuleType, loopback: LoopbackModal) -> Callable[..., Any]:
    """Return a context manager that runs an app on the loopback with one function of loopback_jobs."""

    @contextmanager
    def run(name: str, *, detach: bool = False, **options: Any) -> Iterator[Any]:
        app = modal.App("loopback-test")
        options.setdefault("image", modal.Image.from_registry("ubuntu:22.04"))
        function = app.function(**options)(getattr(jobs, name))
        with app.run(detach=detach):
            yield function

    return run
