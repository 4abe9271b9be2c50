"""Pytest fixtures: `from tests.support.loopback.fixtures import loopback` in a conftest or test module."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import LoopbackModal


@pytest.fixture
def loopback(tmp_path: Path) -> Iterator[LoopbackModal]:
    """Yield a server that this process's modal client uses; fail the test if a request was not handled."""
    with LoopbackModal(tmp_path, stop_grace=5, preempt_grace=5, cancel_grace=5, timeout_grace=1) as server:
        with server.activate():
            yield server
        assert not server.unimplemented, server.unimplemented
        errors = "".join(line for error in server.errors for line in traceback.format_exception(error))
        assert not errors, errors + server.log_text()
