"""Recordings of earlier resolutions, in the user's cache, by the content of everything that they depend on."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from skyrl_modal.errors import StorageError
from skyrl_modal.gitfiles.files import read_regular_file
from skyrl_modal.protocol.codec import ProtocolError, from_json, to_json
from skyrl_modal.skyrl.resolution.records import EndOfExecution, Recording
from skyrl_modal.user_folders import cache_folder, create_user_folder

#: Recordings that are kept, and size of one.
MAX_RECORDINGS = 300
_MAX_BYTES = 16 << 20


def recording_key(parts: Sequence[bytes]) -> str:
    """Return the name of a recording that depends on these contents."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def load_recording(key: str) -> Recording | None:
    """Return a recording; None if there is none, or its file is damaged."""
    try:
        return from_json(Recording, read_regular_file(_folder() / key, follow_link=False, max_bytes=_MAX_BYTES))
    except (OSError, ProtocolError, StorageError):
        return None


def save_recording(key: str, recording: Recording) -> None:
    """Keep a recording of a command that ended by itself. Nothing happens if the cache cannot be written."""
    if recording.end is not EndOfExecution.EXITED:
        return
    with contextlib.suppress(OSError, StorageError):
        folder = create_user_folder(_folder())
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=".new-")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(to_json(recording))
            os.replace(name, folder / key)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        _remove_oldest(folder)


def _folder() -> Path:
    return cache_folder() / "resolutions"


def _remove_oldest(folder: Path) -> None:
    entries = [(entry.stat(follow_symlinks=False).st_mtime_ns, entry.path) for entry in os.scandir(folder)]
    for _, path in sorted(entries)[: max(len(entries) - MAX_RECORDINGS, 0)]:
        with contextlib.suppress(FileNotFoundError):  # another process has removed it
            os.unlink(path)
