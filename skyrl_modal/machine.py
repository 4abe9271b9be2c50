"""Facts about this machine, for the container's code and for the local backend. Standard library only."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

#: The first version of Ray that authenticates its clients by a token (RAY_AUTH_MODE; Ray's release notes of 2.52).
RAY_TOKEN_VERSION = (2, 52)

_DIST_INFO = re.compile(r"ray-(\d+)\.(\d+)\.([0-9A-Za-z.]+)\.dist-info")


@dataclass(frozen=True, slots=True)
class RayInstallation:
    """The ``ray`` program that a run uses.

    Attributes:
        program: Its path.
        python: The interpreter that Ray is installed for.
        version: Ray's version, such as ``"2.60.0"``; None if it could not be found.
    """

    program: str
    python: str
    version: str | None

    @property
    def has_token_authentication(self) -> bool:
        """Whether this Ray authenticates its clients by a token. True if the version is unknown."""
        if self.version is None:
            return True
        major, minor = self.version.split(".")[:2]
        return (int(major), int(minor)) >= RAY_TOKEN_VERSION


def find_ray(path: str | None) -> RayInstallation | None:
    """Find the ``ray`` program.

    Args:
        path: The value of the PATH variable to search; None for this process's own.

    Returns:
        The installation; None if there is no such program.
    """
    program = shutil.which("ray", path=path)
    if program is None:
        return None
    python = _python_of_script(program)
    return RayInstallation(program, python, _installed_version(python))


def _python_of_script(script: str) -> str:
    """Return the interpreter that a console script names in its first line, else this process's own."""
    with open(script, "rb") as file:
        first = file.readline(512)
    if first.startswith(b"#!"):
        parts = first[2:].decode("utf-8", "surrogateescape").split()
        if parts and "python" in Path(parts[0]).name and os.access(parts[0], os.X_OK):
            return parts[0]
    beside = Path(script).parent / "python"
    return str(beside) if beside.exists() else sys.executable


def _installed_version(python: str) -> str | None:
    """Return the version of Ray in an interpreter's site-packages, from the name of its metadata folder.

    Asking the interpreter itself would cost a process.
    """
    for folder in sorted((Path(python).parent.parent / "lib").glob("python3.*/site-packages/ray-*.dist-info")):
        match = _DIST_INFO.fullmatch(folder.name)
        if match is not None:
            return ".".join(match.groups())
    return None


def visible_gpu_count() -> int:
    """Return the number of GPUs in ``$CUDA_VISIBLE_DEVICES``, else of all that the NVIDIA driver lists."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1", "NoDevFiles")])
    devices = Path("/proc/driver/nvidia/gpus")
    return sum(1 for _ in devices.iterdir()) if devices.is_dir() else 0


def enlarge_pipe(descriptor: int, size: int) -> None:
    """Enlarge a pipe's buffer, so that the same output takes fewer system calls. A system that refuses keeps its size.

    Args:
        descriptor: One end of the pipe.
        size: Bytes.
    """
    command = getattr(fcntl, "F_SETPIPE_SZ", None)
    if command is not None:
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, command, size)
