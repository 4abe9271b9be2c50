"""What a caller requests about a transfer, and what is reported to the caller meanwhile."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from skyrl_modal.dataclass import dataclass, field


class FileState(StrEnum):
    """What a transfer does with a file.

    Attributes:
        NEW: It is copied.
        REPLACED: It is copied, and replaces another file.
        UNCHANGED: It is not copied: the target has it with the same size and time of the last change.
    """

    NEW = "new"
    REPLACED = "replaced"
    UNCHANGED = "unchanged"


class TransferMonitor(Protocol):
    """Receives the progress of a transfer. Several threads call it."""

    def found(self, path: str, size: int, state: FileState) -> None:
        """Receive a file, before anything is copied.

        Args:
            path: Its path in the copied folder; empty for a single file.
            size: Bytes.
            state: What is done with it.
        """

    def transferred(self, size: int, *, is_resumed: bool = False) -> None:
        """Receive the number of further bytes that were copied.

        Args:
            size: Bytes.
            is_resumed: Whether an earlier transfer that was killed has copied them.
        """

    def completed(self) -> None:
        """Receive that one more file is complete."""


class NullMonitor:
    """A monitor that discards everything."""

    def found(self, path: str, size: int, state: FileState) -> None:
        """Discard a file."""

    def transferred(self, size: int, *, is_resumed: bool = False) -> None:
        """Discard a number of bytes."""

    def completed(self) -> None:
        """Discard a completed file."""


@dataclass(frozen=True, slots=True)
class TransferOptions:
    """What a caller requests about a transfer.

    Attributes:
        force: Whether to copy files again that are unchanged.
        dry_run: Whether to report the files to the monitor, and copy nothing.
        monitor: Receives the progress.
    """

    force: bool = False
    dry_run: bool = False
    monitor: TransferMonitor = field(default_factory=NullMonitor)
