"""Interfaces that receive the launcher's messages, and implementations that discard them."""

from __future__ import annotations

import sys
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
