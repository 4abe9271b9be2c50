"""Tests without the git settings of the machine and of the user."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def isolated_git_settings(home: Path) -> Iterator[None]:
    """Use a folder as the home folder, for git and for the library, without settings of the machine."""
    wanted = {"HOME": str(home), "XDG_CONFIG_HOME": str(home / "xdg"), "GIT_CONFIG_NOSYSTEM": "1"}
    before = {key: os.environ.get(key) for key in (*wanted, "GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE")}
    for key in before:
        os.environ.pop(key, None)
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value


@pytest.fixture
def no_settings(tmp_path: Path) -> Iterator[Path]:
    """A home folder without git settings."""
    home = tmp_path / "home"
    home.mkdir()
    with isolated_git_settings(home):
        yield home
