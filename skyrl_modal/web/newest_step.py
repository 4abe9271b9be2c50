"""The newest step of a run on this machine, by the ends of its metrics files."""

from __future__ import annotations

import contextlib
import os
import re

from skyrl_modal.formats.metrics_steps import FILE_NAME
from skyrl_modal.formats.metrics_writer import METRICS_FOLDER
from skyrl_modal.protocol.run_folder import open_regular_file

_STEP = re.compile(rb'^\{"table":\d{1,9},"step":(\d{1,16}),', re.MULTILINE)
#: Bytes at the end of a file that are read, and number of files.
_END_BYTES, _MAX_FILES = 64 << 10, 1_000


class NewestStep:
    """The newest step. A list of many runs does not need the rows before it, which ``MetricsSteps`` reads.

    Args:
        run_folder: The run's folder.

    Example:
        >>> print(NewestStep("/root/data/.skyrl_modal/runs/r1").find())
        None
    """

    def __init__(self, run_folder: str) -> None:
        self._folder = os.path.join(run_folder, METRICS_FOLDER)
        self._sizes: dict[str, int] = {}
        self._newest: dict[int, int] = {}

    def find(self) -> int | None:
        """Return the greatest step of the last attempt; None if there is none. Unchanged files are not read again."""
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            for _, entry in zip(range(_MAX_FILES), entries, strict=False):
                match = FILE_NAME.fullmatch(entry.name)
                if match is not None:
                    with contextlib.suppress(OSError):  # it was removed, or is no regular file
                        self._read(entry, int(match[1]))
        return self._newest[max(self._newest)] if self._newest else None

    def _read(self, entry: os.DirEntry[str], attempt: int) -> None:
        size = entry.stat(follow_symlinks=False).st_size
        if self._sizes.get(entry.name) == size:
            return
        with open_regular_file(entry.path) as file:
            file.seek(max(0, size - _END_BYTES))
            data = file.read(_END_BYTES)
        self._sizes[entry.name] = size
        steps = [int(text) for text in _STEP.findall(data, 0, data.rfind(b"\n") + 1)]
        if steps:
            self._newest[attempt] = max(*steps, self._newest.get(attempt, 0))
