"""New files that are in no volume, and are therefore lost when a run has ended.

The search is bounded in time and never fails a run. It is made where the files are: in the container, or in the
namespaces of a local run, before they end.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from skyrl_modal.dataclass import dataclass
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.kept_logs import is_skyrl_log_folder
from skyrl_modal.protocol.result import UnsavedFolder
from skyrl_modal.protocol.state import StopReason

#: Seconds that the search takes at most, and that it takes after a run that was asked to stop.
SEARCH_TIMEOUT, SHORT_SEARCH_TIMEOUT = 1.0, 0.3
#: Entries that are looked at.
MAX_ENTRIES = 300_000
#: Bytes from which a folder is reported, whatever its files are called.
MIN_BYTES = 1_000_000
#: Folders that a message lists.
_MAX_LISTED = 8
#: Names of results. Their folders are reported from the first byte on. Compiled when it is needed.
_RESULT = (
    r"(?i)ckpt|checkpoint|global_step|export|outputs|dumped_|tfevents|wandb|mlruns|swanlog|tensorboard"
    r"|\.(?:safetensors|pt|pth|ckpt|distcp|gguf|npz|npy|pkl|parquet|jsonl|csv)$"
)
#: Names of folders and files whose content can be created again, or that programs use for themselves.
_IGNORED_NAMES = frozenset({
    ".cache", "__pycache__", ".venv", "venv", ".git", "node_modules", "site-packages", ".mypy_cache", ".pytest_cache",
    ".ruff_cache", ".ipynb_checkpoints", ".local", ".config", ".nv", ".triton", ".skyrl_modal", ".vscode-server",
    ".ssh", ".jupyter", "wheels", "uv.lock", "conda-meta", "pkgs",
})  # fmt: skip
_IGNORED_PREFIXES = ("torchinductor_", "uv-", ".uv", ".tmp", "pip-", "ray_tmp", "builds-v", "archive-v")
_IGNORED_SUFFIX = ".egg-info"
#: Folders of the image, and of the system, that commands do not write results to.
_SYSTEM_FOLDERS = frozenset({
    "/proc", "/sys", "/dev", "/run", "/boot", "/etc", "/bin", "/sbin", "/lib",
    "/lib32", "/lib64", "/libx32", "/usr", "/var", "/opt", "/__modal", "/pkg", "/snap",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class LostPlace:
    """A folder whose content is lost when the run has ended.

    Attributes:
        path: The folder, as the command sees it.
        source: Where its new files are found.
        only_new: Whether folders in it are searched only if they were created or changed since the command started.
    """

    path: str
    source: str
    only_new: bool = False


def container_places(job: Job) -> list[LostPlace]:
    """Return the places in a container, whose whole file system is lost except for the volumes.

    The folders in which SkyRL writes by default are first, since the search may not reach all. Of the folders in ``/``,
    those that programs usually write to are searched, and those that are new.
    """
    mounts = [mount.remote_path for mount in job.mounts]
    homes = [job.env.get("HOME"), os.environ.get("HOME"), "/root", "/home", "/workspace"]
    paths = [job.workdir, *mounts, *homes, os.environ.get("TMPDIR"), "/tmp", "/mnt", "/data"]
    places = [LostPlace(path, path) for path in dict.fromkeys(paths) if path is not None and os.path.isdir(path)]
    return [*places, LostPlace("/", "/", only_new=True)]


def sandbox_places(job: Job) -> list[LostPlace]:
    """Return the places in the namespaces of a local run; without namespaces, those in its scratch folder.

    Writes to all other folders change the files of the machine, which are kept.
    """
    tmp = os.environ.get("TMPDIR")  # the local backend sets it for each rank
    if tmp is None:
        return []
    if tmp != "/tmp":
        copies = [f"{os.path.dirname(tmp)}/mounts{mount.remote_path}" for mount in job.mounts]
        return [LostPlace(folder, folder) for folder in (*copies, tmp)]
    mounts = _read_mounts()
    targets = [*(mount.remote_path for mount in job.mounts), *job.storage_paths]
    parents = {parent for target in targets for parent in _parents(target)}
    in_memory = sorted(parent for parent in parents if mounts.get(parent, ("", ""))[0] == "tmpfs")
    uppers = [LostPlace(mount.remote_path, _upper_folder(mount.remote_path, mounts)) for mount in job.mounts]
    return [*uppers, *(LostPlace(folder, folder) for folder in (*in_memory, tmp))]


def _parents(path: str) -> Iterator[str]:
    """Yield the folders above an absolute path, up to the root."""
    while path != "/":
        path = os.path.dirname(path)
        yield path


def _upper_folder(path: str, mounts: Mapping[str, tuple[str, str]]) -> str:
    """Return the folder that receives the writes to an overlay; the mounted folder if that one is not visible here."""
    kind, options = mounts.get(path, ("", ""))
    upper = next((item for item in options.split(",") if item.startswith("upperdir=")), None)
    if kind != "overlay" or upper is None:
        return path
    upper = upper.removeprefix("upperdir=").removeprefix(
        "/oldroot"
    )  # bubblewrap mounts it while this machine's root is there (0.11)
    return upper if os.path.isdir(upper) else path


def _read_mounts() -> dict[str, tuple[str, str]]:
    """Return type and options of the file system at each mount point (proc_pid_mountinfo(5)); none without /proc."""
    mounts: dict[str, tuple[str, str]] = {}
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                before, _, after = line.partition(" - ")
                kind, _, options = after.split(None, 2)
                mounts[_unescape(before.split()[4])] = (kind, _unescape(options.strip()))
    except (OSError, ValueError, IndexError):
        pass
    return mounts


def _unescape(text: str) -> str:
    if "\\" not in text:  # as in most paths
        return text
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def file_time() -> float:
    """Return the current time of the clock by which a file system dates its files."""
    clock = getattr(time, "CLOCK_REALTIME_COARSE", None)
    return time.time() if clock is None else time.clock_gettime(clock)


class UnsavedFilesSearch:
    """A search for files that were created or changed since the command started.

    Args:
        places: Where to search. Places inside others are searched once.
        since: Time of ``file_time`` when the command started.
        saved: Paths whose content is kept, such as volumes.
        min_bytes: Bytes from which a folder is reported that contains no results.
    """

    def __init__(
        self, places: Sequence[LostPlace], since: float, saved: Collection[str], *, min_bytes: int = MIN_BYTES
    ) -> None:
        self._places = places
        self._since = since
        self._saved = {*saved, *_read_mounts()}
        self._min_bytes = min_bytes
        self._files: dict[str, int] = {}
        self._bytes: dict[str, int] = {}
        self._results: set[str] = set()
        self._seen: set[str] = set()
        self._entries = 0
        self._deadline = 0.0
        self.is_complete = False

    def run(self, timeout: float) -> list[UnsavedFolder]:
        """Search, and return the folders with new files, the largest first.

        Args:
            timeout: Seconds after which the search ends. ``is_complete`` is then False.
        """
        self._deadline = time.monotonic() + timeout
        # In a thread of its own: a file system that does not answer must not delay the end of the run.
        thread = threading.Thread(target=self._search, name="unsaved-files", daemon=True)
        thread.start()
        thread.join(timeout)
        sizes = self._bytes.copy()
        found = [
            UnsavedFolder(path, self._files.get(path, 0), size)
            for path, size in sizes.items()
            if size and (size >= self._min_bytes or path in self._results)
        ]
        return sorted(found, key=lambda folder: (-folder.bytes, folder.path))

    def _search(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # the run does not depend on the search
            self.is_complete = all(self._walk(place) for place in self._places)

    def _walk(self, place: LostPlace) -> bool:
        """Search a place. Return whether there was enough time."""
        pending = [(place.source, place.path, "")]
        while pending:
            folder, path, group = pending.pop()
            if path in self._seen:
                continue
            self._seen.add(path)
            for entry in _entries(folder):
                self._entries += 1
                if self._entries >= MAX_ENTRIES or (self._entries % 64 == 0 and time.monotonic() >= self._deadline):
                    return False
                child = f"{path.rstrip('/')}/{entry.name}"
                if _is_folder(entry):
                    is_old = place.only_new and not group and not self._is_new(entry)
                    if not is_old and not self._is_ignored(child, entry):
                        pending.append((entry.path, child, group or child))
                elif child not in self._saved and not _is_ignored_name(entry.name):
                    self._count(entry, child, group or child)
        return True

    def _is_ignored(self, path: str, entry: os.DirEntry[str]) -> bool:
        if path in self._saved or path in _SYSTEM_FOLDERS or _is_ignored_name(entry.name):
            return True
        is_kept = entry.name == "ray" or is_skyrl_log_folder(entry.name)  # by the keeper of the logs
        if is_kept and os.path.dirname(path) == os.environ.get("TMPDIR", "/tmp"):
            return True
        return os.path.exists(f"{entry.path}/pyvenv.cfg") or os.path.exists(f"{entry.path}/conda-meta")

    def _is_new(self, entry: os.DirEntry[str]) -> bool:
        try:
            return entry.stat(follow_symlinks=False).st_ctime > self._since
        except OSError:
            return False

    def _count(self, entry: os.DirEntry[str], path: str, group: str) -> None:
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError:  # it was removed meanwhile
            return
        if not entry.is_file(follow_symlinks=False) or status.st_ctime <= self._since:
            return
        # Some file systems report no blocks for small files, whose content is in the inode.
        size = min(status.st_size, status.st_blocks * 512 or 4096)
        self._files[group] = self._files.get(group, 0) + 1
        self._bytes[group] = self._bytes.get(group, 0) + size
        if re.search(_RESULT, path[len(os.path.dirname(group)) :]):
            self._results.add(group)


def _is_ignored_name(name: str) -> bool:
    return name in _IGNORED_NAMES or name.startswith(_IGNORED_PREFIXES) or name.endswith(_IGNORED_SUFFIX)


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError:  # not readable, or removed meanwhile
        return


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


#: Returns the places of a run.
LostPlaces = Callable[[Job], Sequence[LostPlace]]


@dataclass(frozen=True, slots=True)
class FoundFiles:
    """Folders with files that are lost, and a message about them, which is empty if there are none."""

    folders: Sequence[UnsavedFolder] = ()
    text: str = ""


class UnsavedFilesReport:
    """Finds the new files of one rank that are lost when its run has ended.

    Args:
        job: The run.
        places: Returns the places to search; None if nothing is lost.
    """

    def __init__(self, job: Job, places: LostPlaces | None) -> None:
        self._job = job
        self._places = places
        self._since: float | None = None

    def begin(self) -> None:
        """Set the time from which files are new, unless it is set. To be called when the run's files are complete."""
        if self._since is None:
            self._since = file_time()

    def find(self, stop_reason: StopReason | None = None) -> FoundFiles:
        """Search for new files. After a stop there is less time, and after a kill none.

        Args:
            stop_reason: Why the run was asked to stop; None if it was not.
        """
        if self._since is None or self._places is None or stop_reason is StopReason.KILL:
            return FoundFiles()
        job = self._job
        saved = set(job.storage_paths)
        saved |= {os.path.realpath(path) for path in saved} | {job.run_folder}
        search = UnsavedFilesSearch(self._places(job), self._since, saved)
        folders = search.run(SEARCH_TIMEOUT if stop_reason is None else SHORT_SEARCH_TIMEOUT)
        text = describe_unsaved(folders, job, is_complete=search.is_complete) if folders else ""
        return FoundFiles(folders, text)


def describe_unsaved(folders: Sequence[UnsavedFolder], job: Job, *, is_complete: bool) -> str:
    """Return the warning about folders with files that are lost."""
    listed = [f"{printable(item.path)} ({count_text(item.files)}, {size_text(item.bytes)})" for item in folders]
    more = [f"and {len(listed) - _MAX_LISTED} more"] if len(listed) > _MAX_LISTED else []
    volume = next((volume.mount_path for volume in job.volumes if not volume.read_only), None)
    remedy = f"write them to a volume, such as {volume}" if volume else "declare a volume, and write them to it"
    partial = "" if is_complete else " (not everything was searched)"
    places = ", ".join([*listed[:_MAX_LISTED], *more])
    return f"warning: new files are in no volume, and are lost{partial}: {places}; {remedy}"


def printable(path: str) -> str:
    r"""Return a path as text; bytes that are not UTF-8 are written as ``\xNN``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def count_text(number: int) -> str:
    """Return a number of files for people."""
    return "1 file" if number == 1 else f"{number:,} files"


def size_text(size: int) -> str:
    """Return a size in bytes for people."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size} bytes"
