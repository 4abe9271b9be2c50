"""The kept logs of one start of an attempt: a folder with a limited number of logs and of bytes."""

from __future__ import annotations

import os
import time
from pathlib import Path

from skyrl_modal.container.bounded_log import BoundedLog
from skyrl_modal.container.log_selection import LogLimits, has_errors
from skyrl_modal.container.masked_logs import make_private_folder
from skyrl_modal.dataclass import dataclass
from skyrl_modal.machine import tree_size
from skyrl_modal.protocol.kept_logs import parse_start_folder, start_folder_name

#: Seconds without a change after which a log without errors is removed for another one.
_IDLE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class KeptLogLimits:
    """Limits of the kept logs of one rank.

    Attributes:
        log: Those of each log.
        files: Number of logs of one start of an attempt.
        start_bytes: Bytes of the logs of one start of an attempt.
        earlier_bytes: Bytes of the logs of all earlier starts together.
    """

    log: LogLimits = LogLimits()
    files: int = 300
    start_bytes: int = 32 << 20
    earlier_bytes: int = 32 << 20


class KeptLogFolder:
    """The folder of one start.

    Above the limits, logs without errors are removed, the one that was not changed for the longest time first.

    Args:
        path: The folder. It is created with the first log.
        limits: The limits.

    Attributes:
        path: The folder.
        refused: Names of logs that were removed, or not kept at all.
    """

    def __init__(self, path: Path, limits: KeptLogLimits) -> None:
        self.path = path
        self.refused: set[str] = set()
        self._limits = limits
        self._logs: dict[str, BoundedLog] = {}

    def append(self, name: str, data: bytes) -> None:
        """Append masked data to a log.

        Raises:
            OSError: It cannot be written.
        """
        log = self._logs.get(name)
        if log is None:
            if name in self.refused and not has_errors(data):
                return
            if len(self._logs) >= self._limits.files and not self._remove_one(has_errors(data)):
                self.refused.add(name)
                return
            log = self._logs[name] = BoundedLog(self.path / name, self._limits.log)
        log.append(data)
        while sum(kept.size for kept in self._logs.values()) > self._limits.start_bytes and len(self._logs) > 1:
            self._remove(min((kept for kept in self._logs if kept != name), key=self._value))

    def _value(self, name: str) -> tuple[bool, float]:
        return self._logs[name].has_errors, self._logs[name].changed_at

    def _remove_one(self, is_for_errors: bool) -> bool:
        """Remove the log of the least value to make room for another one. Return whether there was one."""
        name = min(self._logs, key=self._value)
        has_log_errors, changed_at = self._value(name)
        if has_log_errors or not (is_for_errors or time.monotonic() - changed_at > _IDLE_SECONDS):
            return False
        self._remove(name)
        return True

    def _remove(self, name: str) -> None:
        self._logs.pop(name).remove()
        self.refused.add(name)


def open_start_folder(rank_logs: Path, attempt: int, limits: KeptLogLimits) -> KeptLogFolder:
    """Return the folder for a new start of an attempt, and remove the oldest ones of earlier starts above the limit.

    Args:
        rank_logs: The folder with the logs of the rank.
        attempt: Number of the attempt.
        limits: The limits.

    Raises:
        OSError: The folders cannot be listed or created.
    """
    make_private_folder(rank_logs)
    starts = sorted(start for name in os.listdir(rank_logs) if (start := parse_start_folder(name)) is not None)
    remaining = limits.earlier_bytes
    for start in reversed(starts):
        folder = rank_logs / start_folder_name(*start)
        remaining -= tree_size(folder)
        if remaining < 0:
            import shutil  # imported here, since few runs have so many logs

            shutil.rmtree(folder, ignore_errors=True)  # a link is not followed
    number = max((start for of, start in starts if of == attempt), default=0) + 1
    return KeptLogFolder(rank_logs / start_folder_name(attempt, number), limits)
