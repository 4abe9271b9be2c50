"""Variables that a run on this machine has in addition to those of the caller."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping


def search_path(env: Mapping[str, str]) -> str:
    """Return the PATH of a run: the programs of the caller's Python are first, also if its environment is not active.

    Args:
        env: The caller's environment.
    """
    return os.path.dirname(sys.executable) + os.pathsep + env.get("PATH", os.defpath)
