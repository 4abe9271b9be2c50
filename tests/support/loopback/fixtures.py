"""Pytest fixtures: `from tests.support.loopback.fixtures import loopback` in a conftest or test module."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from . import LoopbackModal

#: The functions that the tests call in containers.
JOBS = Path(__file__).with_name("loopback_jobs.py")


@pytest.fixture
def loopback(tmp_path: Path) -> Iterator[LoopbackModal]:
    """Yield a server that this process's modal client uses; fail the test if a request was not handled."""
    with LoopbackModal(tmp_path, stop_grace=5, preempt_grace=5, cancel_grace=5, timeout_grace=1) as server:
        with server.activate():
            yield server
        assert not server.unimplemented, server.unimplemented
        errors = "".join(line for error in server.errors for line in traceback.format_exception(error))
        assert not errors, errors + server.log_text()


@pytest.fixture(scope="session")
def jobs() -> ModuleType:
    """Return loopback_jobs as a top-level module, so that the client uploads this file only."""
    spec = importlib.util.spec_from_file_location("loopback_jobs", JOBS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["loopback_jobs"] = module
    spec.loader.exec_module(module)
    return module
