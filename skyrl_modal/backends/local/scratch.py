"""Scratch folders: the files of a run that are discarded at its end.

Each of them is locked as long as any process of its rank exists: the processes have duplicates of a descriptor of the
folder itself. A start with another environment can therefore not take it for an abandoned one.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from skyrl_modal.backends.local.descriptors import DescriptorSet
from skyrl_modal.backends.local.file_systems import file_system_of, local_disk_folders, make_own_folder, short_folders
from skyrl_modal.backends.local.ray_folder import FOLDER_NAME, TEMPORARY_PREFIX, RayPlace, find_ray_place
from skyrl_modal.backends.local.sandbox import Sandbox
from skyrl_modal.backends.temporary_folders import abandoned_folder, lock_folder, remove_tree
from skyrl_modal.dataclass import dataclass
from skyrl_modal.user_folders import cache_folder, create_user_folder

#: Link in a folder of a run. Its target is not a path, but this machine and the run.
_MARKER = "skyrl-modal-run"
#: Limit for the removal of abandoned folders when a run starts. The next start continues.
_REMOVAL_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class ScratchFolder:
    """The scratch folder of a rank.

    Attributes:
        path: Its path.
        locks: Descriptors that keep this folder and ``ray_parent``. Every process of the rank has duplicates of them.
        ray_parent: A further folder for the files of Ray, outside of this one; None if there is none.
        ray_folder: Ray's temporary folder as the run finds it; None for its default, ``ray`` in $TMPDIR.
    """

    path: Path
    locks: Sequence[int] = ()
    ray_parent: Path | None = None
    ray_folder: str | None = None

    @property
    def tmp(self) -> Path:
        """The run's folder for temporary files on this machine."""
        return self.path / "tmp"

    @property
    def folders(self) -> list[Path]:
        """All folders to remove at the end of the rank."""
        return [self.path] if self.ray_parent is None else [self.path, self.ray_parent]

    def remove(self) -> None:
        """Remove all folders of the rank."""
        for folder in self.folders:
            remove_tree(folder)


def scratch_root() -> Path:
    """Return the folder with the scratch folders of all runs that have a sandbox.

    It is in the user's cache, unless that is on a network file system: Ray is slow there, and overlays do not work.
    Then it is in a folder for temporary files, if one is on a disk of this machine.
    """
    cache = cache_folder() / "scratch"
    if file_system_of(cache).is_network:
        for parent in local_disk_folders():
            folder = parent / f"skyrl-modal-{os.geteuid()}"
            if make_own_folder(folder):
                return folder / "scratch"
    return cache


def scratch_parent(sandbox: Sandbox | None) -> Path:
    """Return the folder in which runs have their scratch folders."""
    if sandbox is not None:
        return scratch_root()
    import tempfile  # imported here, since it takes time

    return Path(tempfile.gettempdir())


def create_scratch_folder(
    run_id: str, rank: int, sandbox: Sandbox | None, fds: DescriptorSet, *, has_ray: bool = False
) -> ScratchFolder:
    """Create and lock the scratch folder of a rank.

    Folders that were left by processes which were killed are removed first.

    Args:
        run_id: The run.
        rank: The rank.
        sandbox: The sandbox of the run; None if it has none.
        fds: Receives the descriptors with the locks.
        has_ray: Whether the temporary folder of Ray's head is in it.

    Raises:
        BackendUnavailable: There is no folder for the sockets of Ray.
        StorageError: The folder cannot be created.
    """
    parent = scratch_parent(sandbox)
    deadline = time.monotonic() + _REMOVAL_SECONDS
    if sandbox is None:
        for shared in _temporary_parents():
            remove_abandoned_folders(shared, deadline, is_shared=True)
        place = find_ray_place(parent, sandbox) if has_ray else None
        path, lock = _create_temporary(run_id, parent, fds)
    else:
        remove_abandoned_folders(create_user_folder(parent), deadline)
        place = find_ray_place(parent, sandbox) if has_ray else None
        path, lock = _create_named(run_id, parent / (f"{run_id}.{rank}" if rank else run_id), fds)
    if place is None or place.parent is None:
        return ScratchFolder(path, [lock])
    return _with_ray_parent(ScratchFolder(path, [lock]), place, place.parent, run_id, fds)


def _with_ray_parent(
    scratch: ScratchFolder, place: RayPlace, parent: Path, run_id: str, fds: DescriptorSet
) -> ScratchFolder:
    try:
        further, lock = _create_temporary(run_id, parent, fds)
    except BaseException:
        scratch.remove()
        raise
    ray_folder = further / FOLDER_NAME
    if place.is_link:
        target = scratch.path / FOLDER_NAME
        target.mkdir()  # Ray creates no folder through a link without a target
        ray_folder.symlink_to(target)
    return ScratchFolder(scratch.path, [*scratch.locks, lock], further, str(ray_folder))


def _create_named(run_id: str, folder: Path, fds: DescriptorSet) -> tuple[Path, int]:
    while True:
        folder.mkdir()
        # Until it is locked, another start may remove it.
        with contextlib.suppress(FileNotFoundError):
            folder.chmod(0o700)  # whatever the umask
            lock = lock_folder(folder)
            if lock is not None:
                return _mark(folder, run_id), fds.add(lock)


def _create_temporary(run_id: str, parent: Path, fds: DescriptorSet) -> tuple[Path, int]:
    while True:
        import tempfile  # imported here, since it takes time

        folder = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=parent))
        lock = lock_folder(folder)
        if lock is not None:
            return _mark(folder, run_id), fds.add(lock)


def _mark(folder: Path, run_id: str) -> Path:
    (folder / _MARKER).symlink_to(f"{_machine_id()}:{run_id}")
    return folder


def remove_abandoned_folders(root: Path, deadline: float | None = None, *, is_shared: bool = False) -> None:
    """Remove the scratch folders and probe folders that no process uses.

    Args:
        root: The folder with the scratch folders.
        deadline: Time of ``time.monotonic`` at which to stop; None for no limit.
        is_shared: Whether it also contains folders of other programs.
    """
    for folder in _abandoned_below(root, is_shared=is_shared):
        if not remove_tree(folder, deadline) and deadline is not None and time.monotonic() >= deadline:
            return


def abandoned_folders() -> Iterator[Path]:
    """Yield the scratch folders and probe folders that no process uses, also those of runs without a sandbox.

    Each of them is locked until the next one is requested.
    """
    for root in dict.fromkeys([scratch_root(), cache_folder() / "scratch"]):
        yield from _abandoned_below(root)
    for root in _temporary_parents():
        yield from _abandoned_below(root, is_shared=True)


def _temporary_parents() -> list[Path]:
    import tempfile  # imported here, since it takes time

    return list(dict.fromkeys([Path(tempfile.gettempdir()), *short_folders()]))


def _abandoned_below(root: Path, *, is_shared: bool = False) -> Iterator[Path]:
    # Locks of folders are not visible to other machines that use the same network file system.
    needs_own_machine = file_system_of(root).is_network
    for folder in _folders(root, TEMPORARY_PREFIX if is_shared else ""):
        machine = _machine_of(folder)
        if (machine is None and is_shared) or (needs_own_machine and machine != _machine_id()):
            continue
        with abandoned_folder(folder) as is_abandoned:
            if is_abandoned:
                yield folder


def _folders(root: Path, prefix: str) -> list[Path]:
    try:
        names = sorted(name for name in os.listdir(root) if name.startswith(prefix))
        return [root / name for name in names if (root / name).is_dir() and not (root / name).is_symlink()]
    except OSError:
        return []


def _machine_id() -> str:
    """Return an identifier of this machine, which all containers on it have. On Linux it changes when it is started."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return os.uname().nodename


def _machine_of(folder: Path) -> str | None:
    """Return the identifier of the machine of a run's folder; None if it is no folder of a run."""
    try:
        machine, separator, _ = os.readlink(folder / _MARKER).rpartition(":")
    except OSError:
        return None
    return machine if separator else None
