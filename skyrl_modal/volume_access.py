"""What the methods of ``Launcher`` about files on volumes do: joins transfers, backends and the display of progress.

Each function does what the method of the same name documents. ``Launcher`` translates errors of the system.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from skyrl_modal.backends import Backend, VolumeEntry, get_backend
from skyrl_modal.transfers import copying, volume_files
from skyrl_modal.views.transfer_progress import TransferProgress

if TYPE_CHECKING:
    from skyrl_modal.launcher import Launcher
    from skyrl_modal.transfers.copying import LocalSources
    from skyrl_modal.transfers.plan import TransferPlan
    from skyrl_modal.transfers.volume_files import DiskUsage

#: The number of the caller's frame, for warnings: a function, the method that calls it, and its decorator are between.
_STACK_LEVEL = 4


def _backend_of(launcher: Launcher) -> Backend:
    return get_backend(launcher.backend) if isinstance(launcher.backend, str) else launcher.backend


def list_path(launcher: Launcher, path: str) -> list[VolumeEntry]:
    """List a folder of a volume, a file, or what matches a pattern."""
    return volume_files.list_path(_backend_of(launcher), launcher.volumes, path)


def read(launcher: Launcher, path: str) -> Iterator[bytes]:
    """Yield the content of a file on a volume in pieces."""
    return volume_files.read(_backend_of(launcher), launcher.volumes, path)


def measure(launcher: Launcher, path: str) -> DiskUsage:
    """Return the size of a file or folder on a volume."""
    return volume_files.measure(_backend_of(launcher), launcher.volumes, path)


def remove(launcher: Launcher, path: str, *, recursive: bool, force: bool, dry_run: bool = False) -> list[str]:
    """Remove a file or folder of a volume."""
    return volume_files.remove(
        _backend_of(launcher), launcher.volumes, path, recursive=recursive, force=force, dry_run=dry_run
    )


def pull(
    launcher: Launcher, path: str | Sequence[str], local: str | Path, *, force: bool, progress: TransferProgress
) -> Path:
    """Copy files or folders from a volume to this machine."""
    backend = _backend_of(launcher)
    copies = copying.find_pulls(backend, launcher.volumes, path, local)
    with progress:
        _warn(copying.pull(backend, copies, force=force, monitor=progress))
    return Path(copies.target)


def push(launcher: Launcher, local: LocalSources, path: str, *, force: bool, progress: TransferProgress) -> str:
    """Copy files or folders from this machine to a volume. Return the path of the copy in the container."""
    backend = _backend_of(launcher)
    copies = copying.find_pushes(backend, launcher.volumes, local, path)
    with progress:
        _warn(copying.push(backend, copies, force=force, monitor=progress))
    return copies.target


def plan_pull(launcher: Launcher, path: str | Sequence[str], local: str | Path, *, force: bool) -> TransferPlan:
    """Return what ``pull`` would copy."""
    backend = _backend_of(launcher)
    return copying.plan_pull(backend, copying.find_pulls(backend, launcher.volumes, path, local), force=force)


def plan_push(launcher: Launcher, local: LocalSources, path: str, *, force: bool) -> TransferPlan:
    """Return what ``push`` would copy."""
    backend = _backend_of(launcher)
    return copying.plan_push(backend, copying.find_pushes(backend, launcher.volumes, local, path), force=force)


def _warn(texts: Sequence[str]) -> None:
    for text in texts:
        warnings.warn(text, stacklevel=_STACK_LEVEL + 1)
