"""Stand-in for a run that cannot be reached from here."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from skyrl_modal.errors import BackendUnavailable
from skyrl_modal.protocol.state import RunState

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from skyrl_modal.backends.base import Handle, StoredFile
    from skyrl_modal.protocol.events import RunEvent
    from skyrl_modal.protocol.result import RunResultRecord


class UnavailableExecution:
    """The execution of a run on a backend that is not installed, or that fails to attach.

    Its state is unknown. Every other question raises BackendUnavailable.

    Args:
        backend: The backend's name.
        handle: The stored handle.
        reason: Why the run cannot be reached.
    """

    def __init__(self, backend: str, handle: Handle, reason: str) -> None:
        self.handle = handle
        self.url: str | None = None
        self.log_path = ""
        self._backend = backend
        self.reason = reason

    def state(self) -> RunState:
        """Return RunState.UNKNOWN."""
        return RunState.UNKNOWN

    def wait_started(self) -> None:
        """Raise BackendUnavailable."""
        self._fail()

    def events(self) -> Iterator[RunEvent]:
        """Raise BackendUnavailable."""
        self._fail()

    def log_size(self) -> int:
        """Raise BackendUnavailable."""
        self._fail()

    def read_log(self, offset: int) -> bytes:
        """Raise BackendUnavailable."""
        self._fail()

    def list_files(self, folder: str) -> Sequence[StoredFile]:
        """Raise BackendUnavailable."""
        self._fail()

    def read_file(self, path: str) -> bytes:
        """Raise BackendUnavailable."""
        self._fail()

    def wait(self, timeout: float | None = None) -> RunResultRecord:
        """Raise BackendUnavailable."""
        self._fail()

    def cancel(self, *, now: bool = False) -> None:
        """Raise BackendUnavailable."""
        self._fail()

    def _fail(self) -> NoReturn:
        raise BackendUnavailable(self._backend, self.reason)
