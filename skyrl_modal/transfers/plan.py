"""What a transfer would do, as data, text and JSON."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

from skyrl_modal.backends.transfer_options import FileState
from skyrl_modal.dataclass import dataclass

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class PlannedCopy:
    """One source and the path of its copy. Paths on volumes are those in the container.

    Attributes:
        source: What is copied.
        target: The path of the copy.
    """

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file of a transfer.

    Attributes:
        path: Its path at the target.
        size: Bytes.
        state: ``"new"``, ``"replaced"``, or ``"unchanged"`` for a file that is not copied.
    """

    path: str
    size: int
    state: FileState


@dataclass(frozen=True, slots=True)
class TransferPlan:
    """What ``pull`` or ``push`` would copy.

    Attributes:
        copies: Each source and the path of its copy.
        files: The files, in the order of their copies.
        warnings: Messages about entries that would not be copied.
    """

    copies: Sequence[PlannedCopy]
    files: Sequence[PlannedFile]
    warnings: Sequence[str] = ()

    @property
    def size(self) -> int:
        """The size in bytes of the files that would be copied."""
        return sum(file.size for file in self.files if file.state is not FileState.UNCHANGED)

    def to_json(self) -> str:
        """Return the plan as JSON, with the attributes as keys."""
        import json  # imported here, since only this needs it

        values = {
            "copies": [{"source": copy.source, "target": copy.target} for copy in self.copies],
            "files": [{"path": file.path, "size": file.size, "state": str(file.state)} for file in self.files],
            "size": self.size,
            "warnings": list(self.warnings),
        }
        return json.dumps(values, indent=2)


class PlanRecorder:
    """A monitor that records the files of a transfer that copies nothing.

    Attributes:
        files: The files.
        target: The path of the current copy.
    """

    def __init__(self) -> None:
        self.files: list[PlannedFile] = []
        self.target = ""

    def found(self, path: str, size: int, state: FileState) -> None:
        """Record a file."""
        self.files.append(PlannedFile(posixpath.join(self.target, path) if path else self.target, size, state))

    def transferred(self, size: int, *, is_resumed: bool = False) -> None:
        """Do nothing: nothing is copied."""

    def completed(self) -> None:
        """Do nothing: nothing is copied."""
