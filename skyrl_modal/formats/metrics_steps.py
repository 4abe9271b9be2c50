"""The newest step in the metrics files of one rank, read while they grow."""

from __future__ import annotations

import contextlib
import os
import re

from skyrl_modal.formats.metrics_writer import METRICS_FOLDER
from skyrl_modal.protocol.run_folder import open_regular_file

#: The name of a file: attempt, start of the container in milliseconds, rank, a random name of the process, part.
FILE_NAME = re.compile(r"(\d{1,6})-(\d{1,16})-(\d{1,5})-([0-9a-f]{1,32})-(\d{1,6})\.jsonl", re.ASCII)
_STEP = re.compile(rb'^\{"table":\d{1,9},"step":(\d{1,16}),', re.MULTILINE)
#: Bytes of a file that are read in one update at most. What is before them is skipped, not read later.
_MAX_BYTES = 8 << 20
#: Number of files that are looked at.
_MAX_FILES = 10_000


class MetricsSteps:
    """The steps that the processes of a rank have logged. ``update`` reads what is new since its last call.

    Args:
        run_folder: The run's folder.
        rank: The rank; None for all ranks.

    Attributes:
        rows: Number of rows that were read. It grows with each logged row, also of a step that was logged before.

    Example:
        >>> steps = MetricsSteps("/root/data/.skyrl_modal/runs/r1", 0)
        >>> steps.update()
        False
        >>> print(steps.newest())
        None
    """

    def __init__(self, run_folder: str | os.PathLike[str], rank: int | None = 0) -> None:
        self.rows = 0
        self._folder = os.path.join(run_folder, METRICS_FOLDER)
        self._rank = rank
        self._offsets: dict[str, int] = {}
        self._newest: dict[int, int] = {}

    def update(self) -> bool:
        """Read what is new. Return whether there were new rows. Files that cannot be read are skipped."""
        before = self.rows
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            for number, entry in enumerate(entries):
                if number >= _MAX_FILES:
                    break
                match = FILE_NAME.fullmatch(entry.name)
                if match is not None and self._rank in (None, int(match[3])):
                    with contextlib.suppress(OSError):  # it was removed, or is no regular file
                        self._read(entry, int(match[1]))
        return self.rows > before

    def newest(self, attempt: int | None = None) -> int | None:
        """Return the greatest step; None if there is none.

        Args:
            attempt: Only of this attempt; None for all attempts.
        """
        if attempt is not None:
            return self._newest.get(attempt)
        return max(self._newest.values(), default=None)

    def _read(self, entry: os.DirEntry[str], attempt: int) -> None:
        offset = self._offsets.get(entry.name, 0)
        size = entry.stat(follow_symlinks=False).st_size
        if size <= offset:
            return
        begin = max(offset, size - _MAX_BYTES)
        with open_regular_file(entry.path) as file:
            file.seek(begin)
            data = file.read(_MAX_BYTES)
        end = data.rfind(b"\n") + 1
        if not end and len(data) >= _MAX_BYTES:
            end = len(data)  # too long to be a line
        self._offsets[entry.name] = begin + end  # the rest of a line is read again
        found = [int(text) for text in _STEP.findall(data, 0, end)]
        if found:
            self.rows += len(found)
            self._newest[attempt] = max(*found, self._newest.get(attempt, 0))
