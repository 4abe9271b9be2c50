"""Commits of the run's volumes: failed ones are repeated, and what could not be saved is listed.

Modal's client is passed in, so that this module imports the standard library only.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from skyrl_modal.container.unsaved_files import count_text, file_time, printable, size_text
from skyrl_modal.dataclass import dataclass

#: Seconds in which the last commit of a run is repeated.
COMMIT_TIMEOUT = 30.0
#: The same for commits while the run continues: a later one saves the same files.
STATE_COMMIT_TIMEOUT = 5.0
#: Seconds before the first repetition, and at most before each further one. Each wait is twice the one before.
FIRST_WAIT, MAX_WAIT = 0.5, 8.0
#: Seconds after which Modal kills a container that it has asked to end (30 s, https://modal.com/docs/guide/preemption),
#: less the time to report the result.
ENDING_TIMEOUT = 26.0
#: Seconds and number of entries of the search for files that were not saved, and number of files that are listed.
SEARCH_TIMEOUT, MAX_ENTRIES, MAX_LISTED = 1.0, 200_000, 10
#: Seconds before a commit from which a change counts as later: time stamps are not exact.
CLOCK_TOLERANCE = 0.1

#: Part of the error of a reload that an open file prevents (``Volume.reload``, modal 1.6.0 to 1.6.4).
_OPEN_FILES_TEXT = "open files preventing the operation"


class Volume(Protocol):
    """Modal's client for a mounted volume."""

    def commit(self) -> object:
        """Save what has changed."""

    def reload(self) -> object:
        """Show what other containers have committed."""


@dataclass(slots=True)
class MountedVolume:
    """A volume of the run.

    Attributes:
        name: Its name.
        path: Its mount path.
        volume: Modal's client for it.
        saved_at: Time of ``file_time`` up to which changes are saved.
    """

    name: str
    path: str
    volume: Volume
    saved_at: float = 0.0

    def reload(self) -> None:
        """Show what other containers have committed. What is there then is saved."""
        self.volume.reload()
        self.saved_at = file_time()


def is_reload_error(error: BaseException) -> bool:
    """Return whether a commit succeeded, and only the client's reload after it failed.

    The client reloads a volume after a commit if the server requests it, and raises RuntimeError if a file is open
    (modal 1.6.4: a commit itself does not fail for this reason).

    Example:
        >>> is_reload_error(RuntimeError("there are open files preventing the operation (path x)"))
        True
        >>> is_reload_error(RuntimeError("Volume not found"))
        False
    """
    return isinstance(error, RuntimeError) and _OPEN_FILES_TEXT in str(error)


class VolumeCommits:
    """The run's volumes, as the latest commit left them.

    Args:
        mounts: All volumes.
        writable: Those that are committed. The first one contains the run's folder.
        run_folder: The run's folder, whose files are not listed as unsaved files of the command.
        mask: Removes secrets from a text.
    """

    def __init__(
        self,
        mounts: Sequence[MountedVolume],
        writable: Sequence[MountedVolume],
        *,
        run_folder: str = "",
        mask: Callable[[str], str] = str,
    ) -> None:
        self._mounts = list(mounts)
        self._writable = list(writable)
        self._run_folder = run_folder
        self._mask = mask
        # A commit publishes one state of a volume, so two commits of one rank are not useful at the same time.
        self._lock = threading.Lock()
        self._background: list[threading.Thread] = []
        self._end: float | None = None
        self._ending = threading.Event()

    def reload(self) -> None:
        """Show what other containers have committed.

        Raises:
            OSError: A volume could not be reloaded, after repetitions.
        """
        failed = self._repeat(self._mounts, MountedVolume.reload, COMMIT_TIMEOUT)
        for name, error in failed.items():
            raise OSError(f"the volume {name} could not be reloaded: {error}") from error

    def expect_end(self, seconds: float = ENDING_TIMEOUT) -> None:
        """Repeat commits for this time at most from now on, since the platform then kills the container."""
        if self._end is None:
            self._end = time.monotonic() + seconds
            self._ending.set()

    def commit(self) -> str | None:
        """Commit all volumes. Return what failed, with the files that are not saved; None if nothing failed."""
        failed = self._commit(self._writable, COMMIT_TIMEOUT)
        if not failed:
            return None
        texts = []
        for mount in self._writable:
            if mount.name in failed:
                error = " ".join(str(failed[mount.name]).split()) or type(failed[mount.name]).__name__
                text = f"the volume {mount.name} could not be committed: {error[:1000]}"
                texts.append(f"{text}{self._describe_unsaved(mount)}")
        return self._mask("\n".join(texts))

    def commit_run_folder(self) -> None:
        """Commit the first writable volume, which contains the run's folder. A later commit repeats what failed."""
        self._commit(self._writable[:1], STATE_COMMIT_TIMEOUT)

    def is_on_writable(self, folder: str) -> bool:
        """Return whether a folder is on a volume that is committed."""
        return self._volume_of(folder) is not None

    def commit_folder(self, folder: str) -> bool:
        """Commit the volume of a folder while the run continues. Return whether that succeeded."""
        volume = self._volume_of(folder)
        return volume is not None and not self._commit([volume], STATE_COMMIT_TIMEOUT)

    def _volume_of(self, folder: str) -> MountedVolume | None:
        found = [mount for mount in self._mounts if f"{folder}/".startswith(f"{mount.path}/")]
        innermost = max(found, key=lambda mount: len(mount.path), default=None)
        return innermost if innermost in self._writable else None

    def commit_run_folder_in_background(self) -> None:
        """Start ``commit_run_folder`` in a thread."""
        thread = threading.Thread(target=self.commit_run_folder, daemon=True)
        self._background.append(thread)
        thread.start()

    def join_background_commits(self) -> None:
        """Wait for the commits in threads. The last commit must come after them, since their errors are ignored."""
        for thread in self._background:
            thread.join()

    def _commit(self, mounts: Iterable[MountedVolume], timeout: float) -> dict[str, Exception]:
        return self._repeat(mounts, self._commit_once, timeout)

    def _commit_once(self, mount: MountedVolume) -> None:
        with self._lock:
            begin = file_time()
            try:
                mount.volume.commit()
            except RuntimeError as error:
                if not is_reload_error(error):
                    raise
            mount.saved_at = begin

    def _repeat(
        self, mounts: Iterable[MountedVolume], function: Callable[[MountedVolume], None], timeout: float
    ) -> dict[str, Exception]:
        """Call a function for each volume, and again for those for which it fails, with growing waits.

        Returns:
            The last error by the name of the volume, for those that failed until the end.
        """
        pending, wait, deadline = list(mounts), FIRST_WAIT, 0.0
        while True:
            failed: dict[str, Exception] = {}
            for mount in pending:
                try:
                    function(mount)
                except Exception as error:  # any error of Modal's client: the result must reach the caller
                    failed[mount.name] = error
            now = time.monotonic()
            deadline = deadline or now + timeout
            end = deadline if self._end is None else min(deadline, self._end)
            if not failed or now + wait > end:
                return failed
            if self._ending.is_set():
                time.sleep(wait)
            else:
                self._ending.wait(wait)
            pending = [mount for mount in pending if mount.name in failed]
            wait = min(2 * wait, MAX_WAIT)

    def _describe_unsaved(self, mount: MountedVolume) -> str:
        """Return the files that have changed since the last commit, formatted to follow a message."""
        files, is_complete = find_changed_files(mount.path, mount.saved_at)
        own = [file for file in files if self._run_folder and file.path.startswith(f"{self._run_folder}/")]
        others = sorted((file for file in files if file not in own), key=lambda file: (-file.size, file.path))
        if not files:
            return ""
        partial = "" if is_complete else " (not everything was searched)"
        own_text = f"{count_text(len(own))} of the run's own folder {self._run_folder}"
        if not others:
            return f"; not saved since the last commit{partial}: {own_text}"
        total = f"{count_text(len(others))}, {size_text(sum(file.size for file in others))}"
        lines = [f"; not saved since the last commit{partial}: {total}"]
        lines += [f"  {printable(file.path)} ({size_text(file.size)})" for file in others[:MAX_LISTED]]
        if len(others) > MAX_LISTED:
            lines.append(f"  and {len(others) - MAX_LISTED:,} more")
        if own:
            lines.append(f"  and {own_text}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class ChangedFile:
    """A file that has changed.

    Attributes:
        path: Its path.
        size: Its size in bytes.
    """

    path: str
    size: int


def find_changed_files(folder: str, since: float) -> tuple[list[ChangedFile], bool]:
    """Return the files in a folder that were created or changed since a time, and whether all of it was searched.

    Links are not followed. The folder itself may be a link, as the mount paths of Modal's volumes are.

    Args:
        folder: The folder.
        since: A time of ``file_time``.
    """
    found: list[ChangedFile] = []
    pending, entries, deadline = [folder], 0, time.monotonic() + SEARCH_TIMEOUT
    while pending:
        with contextlib.suppress(OSError), os.scandir(pending.pop()) as listing:
            for entry in listing:
                entries += 1
                if entries > MAX_ENTRIES or time.monotonic() > deadline:
                    return found, False
                with contextlib.suppress(OSError):  # it was removed meanwhile
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                        continue
                    status = entry.stat(follow_symlinks=False)
                    # The time of the last change of the inode: a file that was moved here keeps its older content time.
                    if max(status.st_mtime, status.st_ctime) >= since - CLOCK_TOLERANCE:
                        found.append(ChangedFile(entry.path, status.st_size))
    return found, True
