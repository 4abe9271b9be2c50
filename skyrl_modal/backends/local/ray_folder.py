"""Where a run's Ray has its temporary folder.

Ray creates sockets in it, whose paths are limited to 107 bytes (unix(7)), and not every file system has sockets. It
also writes logs there, and objects for which there is no memory, so it should be on a disk.
"""

from __future__ import annotations

from pathlib import Path

from skyrl_modal.backends.local.file_systems import (
    MAX_SOCKET_PATH,
    file_system_of,
    short_folders,
    socket_error,
)
from skyrl_modal.backends.local.sandbox import Sandbox
from skyrl_modal.dataclass import dataclass
from skyrl_modal.errors import BackendUnavailable

#: The folder in the run's folder for temporary files, if its path is suitable.
FOLDER_NAME = "ray"
#: What the names of folders for temporary files of runs begin with.
TEMPORARY_PREFIX = "skyrl-"
#: The longest path below Ray's temporary folder that is a socket, of Ray's dashboard (Ray 2.52 to 2.60).
_LONGEST_SOCKET = "/session_2026-01-01_00-00-00_000000_4194304/sockets/dash_TaskEventsHead"
#: Characters that ``tempfile.mkdtemp`` appends.
_RANDOM = "abcdefgh"


@dataclass(frozen=True, slots=True)
class RayPlace:
    """Where the temporary folder of a run's Ray is created.

    Attributes:
        parent: The folder in which a further folder of the run is created for it; None if it is in the run's own folder
            for temporary files.
        is_link: Whether the further folder has only a link with a short path to the run's own folder.
        description: The place, for people, and why it is not in the run's own folder.
    """

    parent: Path | None
    is_link: bool
    description: str


def find_ray_place(scratch_parent: Path, sandbox: Sandbox | None) -> RayPlace:
    """Find a place for the temporary folder of a run's Ray.

    Args:
        scratch_parent: The existing folder with the run's scratch folder.
        sandbox: The sandbox of the run; None if it has none.

    Raises:
        BackendUnavailable: There is none. The text contains the reasons and the remedy.
    """
    temporary = Path("/tmp") if sandbox is not None else scratch_parent / f"{TEMPORARY_PREFIX}{_RANDOM}" / "tmp"
    file_system = file_system_of(scratch_parent)
    disk_reason = _file_system_reason(scratch_parent)
    reason = disk_reason or _path_reason(temporary / FOLDER_NAME)
    if reason is None:
        place = f"/tmp of the run, which is in {scratch_parent}" if sandbox is not None else str(scratch_parent)
        return RayPlace(None, False, f"{place} ({file_system.type or 'a local file system'})")
    reasons = [f"{scratch_parent}: {reason}"]
    for parent in short_folders():
        if sandbox is not None and parent == Path("/tmp"):
            continue  # the run has another /tmp
        link = parent / f"{TEMPORARY_PREFIX}{_RANDOM}" / FOLDER_NAME
        problem = _path_reason(link) or (_file_system_reason(parent) if disk_reason else _write_reason(parent))
        if problem is None:
            return RayPlace(parent, disk_reason is None, f"{parent}, since {reasons[0]}")
        reasons.append(f"{parent}: {problem}")
    where = "XDG_CACHE_HOME" if sandbox is not None else "TMPDIR"
    raise BackendUnavailable(
        "local",
        f"there is no folder for the sockets of Ray ({'; '.join(reasons)}). Set {where} to a folder with a short path "
        "on a local disk, or use ray=None",
    )


def _path_reason(folder: Path) -> str | None:
    """Return why the path of a folder is not suitable for sockets; None if it is."""
    path = str(folder)
    if not path.isascii():
        return "the path has characters that are not ASCII"
    length = len(path) + len(_LONGEST_SOCKET)
    if length > MAX_SOCKET_PATH:
        return f"the path is {length - MAX_SOCKET_PATH} characters too long for Ray's sockets"
    return None


def _file_system_reason(folder: Path) -> str | None:
    """Return why the file system of a folder is not suitable for sockets; None if it is."""
    file_system = file_system_of(folder)
    if file_system.is_network:
        return f"it is not on a local disk, but on {file_system.type}"
    error = socket_error(folder)
    return None if error is None else f"no socket can be created in it: {error}"


def _write_reason(folder: Path) -> str | None:
    """Return why no link can be created in a folder; None if it can."""
    try:
        import tempfile  # imported here, since it takes time

        with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=folder) as probe:
            Path(probe, FOLDER_NAME).symlink_to("/")
    except OSError as error:
        return str(error.strerror)
    return None
