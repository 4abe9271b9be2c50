"""Fixtures of the tests of gitfiles."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gitfiles.repositories import Templates, git
from tests.gitfiles.trees import make
from tests.support.git_settings import no_settings

__all__ = ["no_settings"]


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that an executed program creates."""
    return tmp_path / "executed"


@pytest.fixture
def program(tmp_path: Path, marker: Path) -> Path:
    """A program that creates the marker."""
    path = tmp_path / "program"
    path.write_text(f'#!/bin/sh\necho "$0 $*" >> {shlex.quote(str(marker))}\n')
    path.chmod(0o755)
    return path


@pytest.fixture(scope="session")
def templates() -> Iterator[Templates]:
    """Fresh repositories to copy, in memory if possible: a case has about a hundred small files."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Templates.make(Path(name))


@pytest.fixture
def tree(tmp_path: Path, no_settings: Path) -> Path:
    """A repository of the same shape as SkyRL's, with the cases that are easily treated wrongly."""
    root = make(
        tmp_path / "checkout",
        {
            ".gitignore": "__pycache__/\n*.log\nlib/\n!docs/lib/\nbuild/\n.env\n.venv\n",
            "train.py": "print(1)\n",
            "docs/lib/page.tsx": "x",
            "pkg/__init__.py": "",
            "pkg/lib/__init__.py": "",
            "pkg/lib/core.py": "",
            "pkg/kept.log": "tracked",
            "pkg/run.log": "",
            "pkg/__pycache__/a.pyc": "",
            "build/keep/model.pt": "m",
            "build/junk.o": "",
            ".env": "WANDB_API_KEY=x\n",
            ".venv/pyvenv.cfg": "",
            ".venv/lib/site.py": "",
        },
    )
    git("init", "-q", cwd=root)
    git("add", "-f", "train.py", "pkg/kept.log", cwd=root)
    return root
