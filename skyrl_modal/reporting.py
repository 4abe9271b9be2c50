"""Interfaces that receive the launcher's messages, and implementations that discard them."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from skyrl_modal.protocol.state import RunState


class Reporter(Protocol):
    """Receives the launcher's messages about a run."""

    def info(self, text: str) -> None:
        """Receive a message of one or more lines."""

    def warn(self, text: str) -> None:
        """Receive a warning."""


class RunTable(Protocol):
    """Displays the progress of several runs."""

    def update(
        self, number: int, *, run_id: str | None = None, state: RunState | None = None, line: str | None = None
    ) -> None:
        """Display what has changed of one run. None leaves a value unchanged. Any thread may call it."""


class NullReporter:
    """A reporter that discards all messages."""

    def info(self, text: str) -> None:
        """Discard a message."""

    def warn(self, text: str) -> None:
        """Discard a warning."""


class NullRunTable:
    """A table that displays nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing: nothing is displayed."""

    def update(
        self, number: int, *, run_id: str | None = None, state: RunState | None = None, line: str | None = None
    ) -> None:
        """Discard an update."""
