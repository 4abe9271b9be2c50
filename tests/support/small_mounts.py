"""Programs that run with file systems of their own: small, read-only, or in place of a folder."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

SKIP_REASON = "needs root or user namespaces, to mount a small file system"


@functools.cache
def _unshare() -> list[str] | None:
    """Return the command that runs a program in a mount namespace of its own; None if that is not allowed."""
    for options in (["--mount"], ["--mount", "--map-root-user"]):
        command = ["unshare", *options]
        try:
            done = subprocess.run([*command, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False)
        except FileNotFoundError:
            return None
        if done.returncode == 0:
            return command
    return None


def run_with_mount(
    folder: Path, options: str, argv: Sequence[str], *, prepare: str = "true", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program that finds an empty file system in memory at a folder. The test is skipped if that is not possible.

    Args:
        folder: An existing folder.
        options: Options of the file system, such as ``"size=2m"``.
        argv: The program.
        prepare: A shell command that runs before it, in the folder.
        cwd: The working directory of the program.
    """
    unshare = _unshare()
    if unshare is None:
        pytest.skip(SKIP_REASON)
    script = 'mount -t tmpfs -o "$1" none "$0" && (cd "$0" && eval "$2") && shift 2 && exec "$@"'
    return subprocess.run(
        [*unshare, "sh", "-c", script, str(folder), options, prepare, *argv],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C"},
    )
