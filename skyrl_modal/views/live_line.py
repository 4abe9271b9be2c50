"""One line at the end of a terminal that is rewritten in place. Imported only when something takes long."""

from __future__ import annotations

import contextlib
import os
import re
import select
import threading
import unicodedata
from collections.abc import Iterator
from typing import TextIO

from skyrl_modal.protocol.log_lines import LINE_PREFIX
from skyrl_modal.views.colors import DIM, has_colors, paint
from skyrl_modal.views.text import escape_controls, live_lines, message_stream, write_text

_DEFAULT_WIDTH = 80
#: Sequences that change the color of text (ECMA-48, SGR), which the tools of an image build write.
_COLOR = re.compile(r"\x1b\[[0-9;:]*m")
#: Values of TERM for terminals that cannot move the cursor.
_DUMB_TERMINALS = ("", "dumb", "unknown")


def can_write() -> bool:
    """Return whether messages can be written now without waiting for a reader, or it is not known."""
    stream = message_stream()
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)  # type: ignore[union-attr]  # None is an AttributeError
        return bool(poll.poll(0))
    except (AttributeError, OSError, ValueError):  # there is no stream, no descriptor, or no poll
        return True


def is_live_terminal(stream: TextIO | None) -> bool:
    """Return whether a stream is a terminal on which a line can be rewritten."""
    try:
        return stream is not None and stream.isatty() and os.environ.get("TERM", "") not in _DUMB_TERMINALS
    except ValueError:  # it is closed
        return False


def open_line() -> LiveLine | None:
    """Return a live line; None if messages are not written to a terminal, or another run of this process has one."""
    stream = message_stream()
    return LiveLine(stream) if stream is not None and is_live_terminal(stream) and not live_lines else None


class LiveLine:
    """A line that is rewritten in place. It is removed before anything else is written.

    Nothing is drawn while the process is in the background of the terminal.

    Args:
        stream: The terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.RLock()
        self._drawn = ""
        self._width = _DEFAULT_WIDTH
        self._is_closed = False
        live_lines.append(self)

    def draw(self, phase: str, elapsed: str, detail: str) -> None:
        """Replace the line. It is cut to the width of the terminal.

        Args:
            phase: What happens.
            elapsed: For how long.
            detail: How far it is; empty if that is not known.
        """
        width = self._terminal_width()
        head = f"{LINE_PREFIX}{phase} ({elapsed})"
        text = cut(_printable(f"{head}: {detail}" if detail else head), width - 1)
        with self._lock:
            if self._is_closed or not self._is_in_foreground():
                return
            if text != self._drawn or width != self._width:
                begin = self._removal(width) if width < self._width else "\r"
                self._write(f"{begin}{self._painted(text, len(head))}\x1b[K")
                self._drawn, self._width = text, width

    def _painted(self, text: str, head: int) -> str:
        if not has_colors(self._stream):
            return text
        prefix = len(LINE_PREFIX)
        return f"{paint(text[:prefix], DIM)}{text[prefix:head]}{paint(text[head:], DIM)}"

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """Remove the line while the block runs."""
        with self._lock:
            self.erase()
            yield

    def erase(self) -> None:
        """Remove the line, if it is displayed."""
        with self._lock:
            if self._drawn:
                self._write(self._removal(self._terminal_width()))
                self._drawn = ""

    def close(self) -> None:
        """Remove the line for good."""
        with self._lock:
            self.erase()
            self._is_closed = True
            if self in live_lines:
                live_lines.remove(self)

    def _removal(self, width: int) -> str:
        """Return what removes the line. A terminal that became narrower has broken it into several rows."""
        rows = max(0, text_width(self._drawn) - 1) // max(width, 1)
        return "\r\x1b[2K" + ("\x1b[1A\x1b[2K" * rows if _breaks_lines() else "")

    def _write(self, text: str) -> None:
        try:
            write_text(self._stream, text)
        except (OSError, ValueError):  # it is closed
            self._is_closed = True

    def _terminal_width(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or _DEFAULT_WIDTH
        except (OSError, ValueError):
            return _DEFAULT_WIDTH

    def _is_in_foreground(self) -> bool:
        try:
            return os.tcgetpgrp(self._stream.fileno()) == os.getpgrp()
        except (OSError, ValueError):  # it is a terminal that does not control this process
            return True


def _breaks_lines() -> bool:
    """Return whether the terminal breaks lines that are longer than its new width, as most do, instead of cutting them.

    xterm, rxvt, GNU Screen and the Linux console cut them.
    """
    term = os.environ.get("TERM", "")
    if "XTERM_VERSION" in os.environ or term.startswith(("rxvt", "linux")):
        return False
    return not term.startswith("screen") or "TMUX" in os.environ


def _printable(text: str) -> str:
    return escape_controls(_COLOR.sub("", text))


def text_width(text: str) -> int:
    """Return the number of columns of a text on a terminal.

    Example:
        >>> text_width("abc"), text_width("日本")
        (3, 4)
    """
    return len(text) if text.isascii() else sum(map(_character_width, text))


def _character_width(character: str) -> int:
    # Combining characters count too: a terminal may display them on their own.
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, width: int) -> str:
    """Return a text that fits into some columns. The end of a longer text is replaced by an ellipsis.

    Example:
        >>> cut("abcdef", 6), cut("abcdef", 4), cut("日本語", 5)
        ('abcdef', 'abc…', '日本…')
    """
    if text_width(text) <= width:
        return text
    used = 0
    for position, character in enumerate(text):
        used += _character_width(character)
        if used > width - 1:
            return f"{text[:position]}…" if width > 0 else ""
    return text
