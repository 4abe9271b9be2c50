"""The progress of a transfer on standard error: one live line on a terminal, a line every 15 s otherwise."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from types import TracebackType
from typing import Self

from skyrl_modal.protocol.log_lines import prefixed
from skyrl_modal.views.text import write_text

#: Seconds before the first report of a transfer, and between two of them.
_TERMINAL_DELAY = 1.0
_TERMINAL_INTERVAL = 0.25
_PIPE_INTERVAL = 15.0
_DEFAULT_WIDTH = 80


def format_size(size: float) -> str:
    """Return a size as text, in decimal units.

    Example:
        >>> format_size(2_500_000), format_size(900), format_size(3_200_000_000)
        ('2.5 MB', '900 B', '3.2 GB')
    """
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size:.0f} B"


class TransferProgress:
    """Counts what is transferred, and displays it while a transfer takes longer than a moment.

    Args:
        verb: What the transfer does, such as ``"pull"``.
        quiet: Whether to display nothing.

    Attributes:
        files: Number of files that have to be copied.
        bytes: Their size.
        unchanged: Number of files that the target has already.
        done_files: Number of files that are complete.
        done_bytes: Bytes that were copied.
        resumed_bytes: Those of them that an earlier transfer has copied.
    """

    def __init__(self, verb: str, *, quiet: bool = False) -> None:
        self.files = self.bytes = self.unchanged = 0
        self.done_files = self.done_bytes = self.resumed_bytes = 0
        self._verb = verb
        self._quiet = quiet
        self._lock = threading.Lock()
        self._begin = time.monotonic()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_shown = False

    # -- what a transfer reports -------------------------------------------------------------------------------------

    def found(self, path: str, size: int, state: str) -> None:
        """Count a file."""
        with self._lock:
            if state == "unchanged":
                self.unchanged += 1
            else:
                self.files += 1
                self.bytes += size

    def transferred(self, size: int, *, is_resumed: bool = False) -> None:
        """Count bytes."""
        with self._lock:
            self.done_bytes += size
            if is_resumed:
                self.resumed_bytes += size

    def completed(self) -> None:
        """Count a file that is complete."""
        with self._lock:
            self.done_files += 1

    # -- display -----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._begin = time.monotonic()
        if not self._quiet and sys.stderr is not None:
            self._thread = threading.Thread(target=self._display, name="skyrl-modal-progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _display(self) -> None:
        from skyrl_modal.views.live_line import cut, is_live_terminal  # imported here, since most transfers are short

        is_terminal = is_live_terminal(sys.stderr)
        delay = _TERMINAL_DELAY if is_terminal else _PIPE_INTERVAL
        while not self._ended.wait(delay):
            line = self.line()
            if is_terminal:
                delay = _TERMINAL_INTERVAL
                line = f"\r\x1b[2K{cut(prefixed(line).rstrip(), _width() - 1)}"
            else:
                line = prefixed(line)
            self._write(line)
            self._is_shown = True
        if self._is_shown and is_terminal:
            self._write("\r\x1b[2K")

    @staticmethod
    def _write(text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the transfer does not depend on its display
            write_text(sys.stderr, text)

    def line(self) -> str:
        """Return the state as one line."""
        with self._lock:
            if not self.done_bytes and not self.done_files:
                # What the files are, or whether the target has them, is found out first: for uploads their checksums.
                return f"{self._verb}: examining {_count(self.files + self.unchanged)}, {format_size(self.bytes)}"
            seconds = max(time.monotonic() - self._begin, 0.001)
            rate = (self.done_bytes - self.resumed_bytes) / seconds
            parts = [
                f"{self._verb}: {self.done_files:,} of {self.files:,} files",
                f"{format_size(self.done_bytes)} of {format_size(self.bytes)}",
                f"{format_size(rate)}/s",
            ]
            rest = self.bytes - self.done_bytes
            if rate > 0 and rest > 0:
                parts.append(f"{_format_seconds(rest / rate)} left")
            return ", ".join(parts)

    def summary(self) -> str:
        """Return what was done, after the end."""
        with self._lock:
            seconds = max(time.monotonic() - self._begin, 0.001)
            new = max(0, self.done_bytes - self.resumed_bytes)
            parts = [f"copied {_count(self.done_files)}, {format_size(self.done_bytes)}, in {_format_seconds(seconds)}"]
            if seconds >= 1 and new:
                parts.append(f"{format_size(new / seconds)}/s")
            if self.resumed_bytes:
                parts.append(f"{format_size(self.resumed_bytes)} were there already")
            if self.unchanged:
                parts.append(f"{_count(self.unchanged)} unchanged")
            return "; ".join(parts)


def _count(number: int) -> str:
    return f"{number:,} file" if number == 1 else f"{number:,} files"


def _format_seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _width() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or _DEFAULT_WIDTH
    except (OSError, ValueError, AttributeError):
        return _DEFAULT_WIDTH
