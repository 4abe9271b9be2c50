"""What the tests of the mount share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gitfiles.repositories import Templates, isolated


@pytest.fixture(scope="session")
def templates() -> Iterator[Templates]:
    """Fresh repositories to copy, in memory where the machine lets us: a case is some hundred small files."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Templates.make(Path(name))


@pytest.fixture
def no_settings(tmp_path: Path) -> Iterator[Path]:
    """A home without git settings, for git and for us."""
    home = tmp_path / "home"
    home.mkdir()
    with isolated(home):
        yield home
