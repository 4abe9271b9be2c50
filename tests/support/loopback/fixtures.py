"""Pytest fixtures: `from tests.support.loopback.fixtures import loopback` in a conftest or test module."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import LoopbackModal


@pytest.fixture
def loopback(tmp_path: Path) -> Iterator[LoopbackModal]:
    """A server that the modal client of this process uses. It must have understood all that it was asked."""
    with LoopbackModal(tmp_path, stop_grace=5, preempt_grace=5, cancel_grace=5, timeout_grace=1) as server:
        with server.here():
            yield server
        assert not server.unimplemented, server.unimplemented
        errors = "".join(line for error in server.errors for line in traceback.format_exception(error))
        assert not errors, errors + server.log_text()
