"""Facts about this machine, for the container's code and for the local backend. Standard library only."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Mapping, Sequence

from skyrl_modal.dataclass import dataclass

#: The first version of Ray that authenticates its clients by a token (RAY_AUTH_MODE; Ray's release notes of 2.52).
RAY_TOKEN_VERSION = (2, 52)

_DIST_INFO = r"ray-(\d+)\.(\d+)\.([0-9A-Za-z.]+)\.dist-info"


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
    import shutil  # imported here, as most of the imports of this module: a run without Ray needs none of them

    program = shutil.which("ray", path=path)
    if program is None:
        return None
    program = os.path.abspath(program)  # Ray is started in another working directory
    python = _python_of_script(program)
    return RayInstallation(program, python, _installed_version(python))


def _python_of_script(script: str) -> str:
    """Return the interpreter that a console script names in its first line, else this process's own."""
    with open(script, "rb") as file:
        first = file.readline(512)
    if first.startswith(b"#!"):
        parts = first[2:].decode("utf-8", "surrogateescape").split()
        if parts and "python" in os.path.basename(parts[0]) and os.access(parts[0], os.X_OK):
            return parts[0]
    beside = os.path.join(os.path.dirname(script), "python")
    return beside if os.path.exists(beside) else sys.executable


def _installed_version(python: str) -> str | None:
    """Return the version of Ray in an interpreter's site-packages, from the name of its metadata folder.

    Asking the interpreter itself would cost a process.
    """
    import re
    from pathlib import Path

    for folder in sorted((Path(python).parent.parent / "lib").glob("python3.*/site-packages/ray-*.dist-info")):
        match = re.fullmatch(_DIST_INFO, folder.name)
        if match is not None:
            return ".".join(match.groups())
    return None


def complete_path(path: str, *, base: str | None, needs_ray: bool) -> str:
    """Return a PATH that a caller has declared, with the folders of programs that a run needs first.

    A folder that the caller's value contains keeps its place. Nothing is added to a value that leads to a ``ray``,
    which the caller has chosen.

    Args:
        path: The declared value.
        base: The PATH that a run has without it.
        needs_ray: Whether the run starts Ray.
    """
    folders = [os.path.dirname(sys.executable)]
    if needs_ray:
        import shutil

        if shutil.which("ray", path=path) is not None:
            return path
        ray = shutil.which("ray", path=base)
        folders += [] if ray is None else [os.path.dirname(ray)]
    entries = path.split(os.pathsep) if path else []
    missing = [folder for folder in dict.fromkeys(folders) if folder not in entries]
    return os.pathsep.join([*missing, *entries])


def append_to_path(path: str, folders: Sequence[str]) -> str:
    """Return a PATH with folders at its end, unless it contains them."""
    entries = path.split(os.pathsep)
    return os.pathsep.join([*entries, *(folder for folder in folders if folder not in entries)])


def visible_gpu_count(env: Mapping[str, str] = os.environ) -> int:
    """Return the number of GPUs in ``$CUDA_VISIBLE_DEVICES``, else of all that the NVIDIA driver lists.

    Args:
        env: The variables of a run; by default those of this process.
    """
    visible = env.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1", "NoDevFiles")])
    devices = "/proc/driver/nvidia/gpus"
    return len(os.listdir(devices)) if os.path.isdir(devices) else 0


def open_pidfd(pid: int) -> int | None:
    """Open a descriptor that refers to a process.

    Returns:
        The descriptor; None where the system has none: macOS, Linux before 5.3, older versions of gVisor, sandboxes
        that refuse unknown system calls, and a process that has no descriptor left.

    Raises:
        ProcessLookupError: There is no such process.
    """
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except OSError:
        return None


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


def tree_size(folder: str | os.PathLike[str]) -> int:
    """Return the size of the files below a folder in bytes. Files that are removed meanwhile are omitted."""
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total
