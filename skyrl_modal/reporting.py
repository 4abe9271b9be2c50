"""Interfaces that receive the launcher's messages, and implementations that discard them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from skyrl_modal.protocol.state import RunState

if TYPE_CHECKING:
    from logging import Logger

#: The name of the logger that receives all messages.
LOGGER = "skyrl_modal"


class Reporter(Protocol):
    """Receives the launcher's messages about a run."""

    def info(self, text: str) -> None:
        """Receive a message of one or more lines."""

    def warn(self, text: str) -> None:
        """Receive a warning."""


class WaitDisplay(Reporter, Protocol):
    """Displays what a run waits for, until its command writes output. It is also the reporter of the run.

    Messages, output and what the caller's code prints have to be written through it: they would otherwise be mixed with
    the line that it rewrites.
    """

    def begin(self, phase: str, *, is_command: bool = False) -> None:
        """Display that another phase begins.

        Args:
            phase: What happens, such as ``"copying the selected files"``.
            is_command: Whether the command runs: only a terminal shows for how long.
        """

    def watch(self, execution: object) -> None:
        """Ask an execution from now on what it waits for, if it has a method ``progress``; None for no execution."""

    def write(self, sink: Callable[[bytes], object], data: bytes) -> None:
        """Remove the display, and write output to a sink."""

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Hide the display, and call code of the caller."""

    def close(self) -> None:
        """Remove the display. Messages are still written."""


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


class PlainDisplay:
    """A display that shows nothing, and passes messages on.

    Args:
        reporter: Receives the messages.
    """

    def __init__(self, reporter: Reporter) -> None:
        self.info = reporter.info
        self.warn = reporter.warn

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing: nothing is displayed."""

    def begin(self, phase: str, *, is_command: bool = False) -> None:
        """Do nothing: nothing is displayed."""

    def watch(self, execution: object) -> None:
        """Do nothing: nothing is displayed."""

    def write(self, sink: Callable[[bytes], object], data: bytes) -> None:
        """Write output to a sink."""
        sink(data)

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Call code of the caller."""
        function(*arguments)

    def close(self) -> None:
        """Do nothing: nothing is displayed."""


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


class LoggingReporter:
    """A reporter that logs each message, and passes it on.

    Args:
        logger: The logger.
        reporter: Receives the messages too.
    """

    def __init__(self, logger: Logger, reporter: Reporter) -> None:
        self._logger = logger
        self._reporter = reporter

    def info(self, text: str) -> None:
        """Log a message with the level INFO."""
        self._logger.info("%s", text)
        self._reporter.info(text)

    def warn(self, text: str) -> None:
        """Log a warning."""
        self._logger.warning("%s", text)
        self._reporter.warn(text)


def with_log(reporter: Reporter) -> Reporter:
    """Return a reporter whose messages are also logged, for programs that have imported ``logging``.

    A program that has not imported it cannot have configured it, and importing it takes time.
    """
    logging = sys.modules.get("logging")
    if logging is None:
        return reporter
    logger: Logger = logging.getLogger(LOGGER)
    if not logger.handlers:
        # Without any handler, Python would write warnings to standard error, where they already are.
        logger.addHandler(logging.NullHandler())
    return LoggingReporter(logger, reporter)
