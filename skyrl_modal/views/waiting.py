"""What a run waits for: a live line on a terminal, otherwise a line at intervals, until its command writes output.

A run that starts quickly imports nothing for it: what draws is loaded in a thread, after ``FIRST_DELAY``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:  # the classes too: defining a protocol takes longer than the rest of this module
    from skyrl_modal.views.live_line import LiveLine

    class Messages(Protocol):
        """Receives messages, as ``skyrl_modal.reporting.Reporter``."""

        def info(self, text: str) -> None:
            """Receive a message."""

        def warn(self, text: str) -> None:
            """Receive a warning."""

    class Progress(Protocol):
        """What an execution waits for, see ``skyrl_modal.backends.base.Progress``."""

        @property
        def phase(self) -> str:
            """What it does or waits for."""

        @property
        def detail(self) -> str:
            """How far it is; empty if that is not known."""

        @property
        def seconds(self) -> float | None:
            """For how long it has done so; None if it has begun when this phase was first returned."""


#: Seconds before the first report, and between two updates: while something is displayed, and after output.
FIRST_DELAY = 0.3
UPDATE_INTERVAL = 0.25
IDLE_INTERVAL = 1.0
#: Without a terminal: seconds after which a new phase is reported, and seconds without any message or output after
#: which it is reported again; these increase to the second value in phases that are longer than the third one.
PHASE_DELAY = 2.0
REPORT_INTERVAL = 15.0
LONG_REPORT_INTERVAL = 60.0
LONG_WAIT = 600.0


def format_elapsed(seconds: float) -> str:
    """Return a duration in whole seconds.

    Example:
        >>> format_elapsed(15.2), format_elapsed(150), format_elapsed(7500)
        ('15 s', '2 min 30 s', '2 h 05 min')
    """
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


class WaitingDisplay:
    """Displays the phases of a run's start, in a ``with`` statement. Implements ``skyrl_modal.reporting.WaitDisplay``.

    Args:
        reporter: Receives the messages, and the lines without a terminal.
        may_be_live: Whether a terminal may show a live line. Otherwise it gets lines, like a pipe.
        is_verbose: Whether to report each phase when it begins and all lines of a long step, without a live line.
    """

    def __init__(self, reporter: Messages, *, may_be_live: bool = True, is_verbose: bool = False) -> None:
        self._reporter = reporter
        self._may_be_live = may_be_live and not is_verbose
        self._is_verbose = is_verbose
        #: Held while anything is written. It is reentrant: the caller's code may start another run.
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._line: LiveLine | None = None
        self._get_progress: Callable[[], Progress | None] | None = None
        self._take_lines: Callable[[], Sequence[str]] | None = None
        self._own: tuple[str, bool] | None = None
        self._is_output_seen = self._is_line_open = False
        self._phase = self._reported = self._reported_detail = ""
        self._phase_begin = self._last_report = time.monotonic()

    def __enter__(self) -> Self:
        threading.Thread(target=self._update, name="skyrl-modal-waiting", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- what a run reports ------------------------------------------------------------------------------------------

    def info(self, text: str) -> None:
        """Write a message."""
        self._report(self._reporter.info, text)

    def warn(self, text: str) -> None:
        """Write a warning."""
        self._report(self._reporter.warn, text)

    def _report(self, write: Callable[[str], None], text: str) -> None:
        with self._lock:
            self._report_lines()
            write(text)
            self._last_report = time.monotonic()

    def begin(self, phase: str, *, is_command: bool = False) -> None:
        """Display that another phase begins."""
        with self._lock:
            self._own = (phase, is_command)
            self._is_output_seen = False
            if self._is_verbose:
                self._show()

    def watch(self, execution: object) -> None:
        """Ask an execution from now on what it waits for."""
        with self._lock:
            self._get_progress = getattr(execution, "progress", None)
            self._take_lines = getattr(execution, "take_lines", None)

    def write(self, sink: Callable[[bytes], object], data: bytes) -> None:
        """Remove the display, and write output to a sink."""
        with self._lock:
            if not self._is_output_seen:
                self._report_lines()
            self._is_output_seen = True
            self._is_line_open = not data.endswith(b"\n")
            self._last_report = time.monotonic()
            self._erase(is_output=True)
            sink(data)

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Hide the display, and call code of the caller."""
        with self._lock:
            self._erase()
            function(*arguments)

    def close(self) -> None:
        """Remove the display. Messages are still written."""
        with self._lock:
            if not self._closed.is_set():
                self._report_lines()
                self._closed.set()
                if self._line is not None:
                    self._line.close()
                    self._line = None

    def _erase(self, *, is_output: bool = False) -> None:
        if self._line is not None:
            self._line.erase()
        elif is_output:
            from skyrl_modal.views.text import live_lines

            for line in live_lines:  # of another run of this process, whose terminal this output may reach too
                line.close()

    # -- display -----------------------------------------------------------------------------------------------------

    def _update(self) -> None:
        """Update the display until it is closed. Runs in a thread of its own, which must not wait for a reader."""
        if self._closed.wait(FIRST_DELAY):
            return
        from skyrl_modal.views.live_line import can_write, open_line

        with self._lock:
            if self._may_be_live and not self._closed.is_set():
                self._line = open_line()
        while not self._closed.wait(IDLE_INTERVAL if self._is_output_seen else UPDATE_INTERVAL):
            if can_write() and self._lock.acquire(blocking=False):
                try:
                    if not self._closed.is_set():
                        self._show()
                except Exception:  # of a reporter, such as a handler of the application's log
                    self._closed.set()
                finally:
                    self._lock.release()

    def _show(self) -> None:
        self._report_lines()
        progress = None if self._get_progress is None else self._get_progress()
        if progress is not None:
            phase, detail, seconds, is_command = progress.phase, progress.detail, progress.seconds, False
        elif self._own is not None and not self._is_output_seen:
            (phase, is_command), detail, seconds = self._own, "", None
        else:
            self._phase = self._reported = ""
            self._erase()
            return
        now = time.monotonic()
        if phase != self._phase:
            self._phase, self._phase_begin = phase, now
        if seconds is None:
            seconds = now - self._phase_begin
        if self._line is None:
            if not is_command or self._is_verbose:
                self._report_phase(phase, detail, seconds, now)
        elif self._is_line_open:
            self._line.erase()
        else:
            self._line.draw(phase, format_elapsed(seconds), detail)

    def _report_phase(self, phase: str, detail: str, seconds: float, now: float) -> None:
        """Write a line about the phase, if one is due."""
        is_due = now - self._last_report >= (LONG_REPORT_INTERVAL if seconds > LONG_WAIT else REPORT_INTERVAL)
        if phase != self._reported:
            is_due = is_due or self._is_verbose or now - self._phase_begin >= PHASE_DELAY
        elif self._is_verbose and detail != self._reported_detail:
            is_due = is_due or now - self._last_report >= IDLE_INTERVAL
        if is_due:
            self._reported, self._reported_detail, self._last_report = phase, detail, now
            elapsed = f" ({format_elapsed(seconds)})" if seconds >= 1 else ""
            self._reporter.info(f"{phase}{elapsed}: {detail}" if detail else f"{phase}{elapsed}")

    def _report_lines(self) -> None:
        """Write the lines of long steps, if all of them are requested."""
        if self._is_verbose and self._take_lines is not None:
            for line in self._take_lines():
                self._reporter.info(line)
                self._last_report = time.monotonic()
