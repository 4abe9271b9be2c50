"""Commits of volumes after each new checkpoint, while the command runs.

Every node watches what itself sees: with FSDP, each writes the files of its own ranks. A folder is looked at every few
seconds, and no file is read but the pointer. It is imported only for runs whose checkpoint folders are known.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading

from skyrl_modal.dataclass import dataclass
from skyrl_modal.formats.checkpoint_listing import FolderListing
from skyrl_modal.formats.checkpoints import POINTER_FILE, STEP_PREFIX

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: Seconds between two looks at the folders.
WATCH_INTERVAL = 3.0
#: Entries of the newest checkpoint that are compared. More are files of thousands of ranks.
_MAX_COMPARED = 20_000

#: The names, sizes and times of the files of the newest checkpoint.
_Files = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class FolderState:
    """What is compared of a checkpoint folder.

    Attributes:
        pointer: The content of the pointer file, and its time; None if there is none.
        files: The files of the newest checkpoint.
    """

    pointer: tuple[bytes, int] | None = None
    files: _Files = ()


class CheckpointWatch:
    """A thread that calls a function after each new checkpoint.

    A checkpoint counts as written when the pointer file has changed, which SkyRL writes last, or when its files have
    not changed between two looks: on nodes without the pointer, and for what fully asynchronous training writes after
    the pointer. A pause while a checkpoint is written leads to a further call, and to nothing else.

    Args:
        folders: The checkpoint folders.
        commit: Commits the volume of a folder, and returns whether that succeeded.
    """

    def __init__(self, folders: Sequence[str], commit: Callable[[str], bool], interval: float = WATCH_INTERVAL) -> None:
        self._commit = commit
        self._interval = interval
        self._committed = {folder: read_state(folder) for folder in folders}
        self._last = dict(self._committed)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="checkpoint-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop. A commit that has begun is waited for. What is new is saved by the last commit of the run."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(self._interval):
            for folder in self._committed:
                self._look(folder)

    def _look(self, folder: str) -> None:
        state, committed = read_state(folder), self._committed[folder]
        is_written = state.pointer != committed.pointer or state == self._last[folder]
        self._last[folder] = state
        if state == committed or not state.files or not is_written:
            return
        # Modal's client reloads a volume after a commit, unless a file is open. Meanwhile the volume looks empty, also
        # to the training (docs/modal-assumptions.md).
        with _open_file(state):
            is_committed = self._commit(folder)
        if is_committed:  # otherwise it is repeated after the next look
            self._committed[folder] = state


@contextlib.contextmanager
def _open_file(state: FolderState) -> Iterator[None]:
    """Keep the first file of a checkpoint open that can be opened."""
    with contextlib.ExitStack() as stack:
        for path, _, _ in state.files:
            with contextlib.suppress(OSError):
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                stack.callback(os.close, descriptor)
                if stat.S_ISREG(os.fstat(descriptor).st_mode):
                    break
        yield


def read_state(folder: str) -> FolderState:
    """Return what is compared of a folder; an empty state if it does not exist."""
    newest, pointer = "", None
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        steps = [name for entry in entries if (name := entry.name).startswith(STEP_PREFIX)]
        newest = max(steps, key=_step, default="")
    with contextlib.suppress(OSError):
        status = os.lstat(os.path.join(folder, POINTER_FILE))
        pointer = (FolderListing(folder).read(POINTER_FILE, 0, 64) or b"", status.st_mtime_ns)
    return FolderState(pointer, _files(os.path.join(folder, newest)) if newest else ())


def _step(name: str) -> int:
    digits = name.removeprefix(STEP_PREFIX)
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 20 else -1


def _files(folder: str) -> _Files:
    found: list[tuple[str, int, int]] = []
    pending = [folder]
    while pending and len(found) < _MAX_COMPARED:
        with contextlib.suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):  # it was removed meanwhile
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                        continue
                    status = entry.stat(follow_symlinks=False)
                    found.append((entry.path, status.st_size, status.st_mtime_ns))
    return tuple(sorted(found))
