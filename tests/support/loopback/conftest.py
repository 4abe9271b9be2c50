"""Fixtures for the tests of the loopback control plane."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import modal
import pytest

from . import LoopbackModal
from .fixtures import jobs, loopback

__all__ = ["jobs", "loopback"]


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
