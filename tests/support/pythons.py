"""Other versions of Python on this machine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def find_python(minor: str) -> str | None:
    """Return a Python of a minor version, from PATH or from pyenv; None if there is none."""
    candidates = [shutil.which(f"python{minor}")]
    candidates += [str(path) for path in Path.home().glob(f".pyenv/versions/{minor}.*/bin/python{minor}")]
    for candidate in filter(None, candidates):
        done = subprocess.run([candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
                              check=False, capture_output=True, text=True)  # fmt: skip
        if done.stdout.strip() == minor:
            return candidate
    return None
