"""A pseudoterminal, and what is displayed on it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
from types import TracebackType
from typing import Self, TextIO

#: What programs write to a terminal: a sequence of the form ESC [ PARAMETERS LETTER, or one character.
_UNITS = re.compile(r"\x1b\[([0-9;]*)([A-Za-z])|([\s\S])")


class Screen:
    """The rows of a terminal, after the sequences that a live line needs: CR, LF, CUU, EL and SGR.

    Args:
        columns: Number of columns. A longer line is continued in the next row.

    Attributes:
        rows: The rows.
    """

    def __init__(self, columns: int) -> None:
        self.rows = [""]
        self._columns = columns
        self._row = self._column = 0

    def write(self, text: str) -> None:
        """Display a text."""
        for parameters, letter, character in _UNITS.findall(text):
            if letter:
                self._control(letter, int(parameters.split(";")[0] or 0))
            elif character == "\r":
                self._column = 0
            elif character == "\n":
                self._next_row()
            else:
                if self._column == self._columns:
                    self._column = 0
                    self._next_row()
                row = self.rows[self._row].ljust(self._column)
                self.rows[self._row] = row[: self._column] + character + row[self._column + 1 :]
                self._column += 1

    def _control(self, letter: str, number: int) -> None:
        if letter == "A":
            self._row = max(0, self._row - (number or 1))
        elif letter == "K":
            self.rows[self._row] = "" if number == 2 else self.rows[self._row][: self._column]
        elif letter != "m":
            raise ValueError(f"the sequence with the letter {letter} is not known")

    def _next_row(self) -> None:
        self._row += 1
        if self._row == len(self.rows):
            self.rows.append("")


class Terminal:
    """A pseudoterminal.

    Args:
        columns: Number of columns.

    Attributes:
        device: The descriptor of the side that programs write to.
        received: What was written until now, as far as it was read.
    """

    def __init__(self, columns: int = 80) -> None:
        self._controller, self.device = pty.openpty()
        self.received = ""
        self.resize(columns)

    def resize(self, columns: int) -> None:
        """Change the number of columns."""
        fcntl.ioctl(self._controller, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def stream(self) -> TextIO:
        """Return the terminal as a stream."""
        return open(os.dup(self.device), "w", encoding="utf-8", errors="backslashreplace")  # the caller closes it

    def write(self, keys: str) -> None:
        """Press keys."""
        os.write(self._controller, keys.encode())

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Read until a pattern is found in what was written since the last call of ``forget``."""
        while (match := re.search(pattern, self.received)) is None:
            self.received += os.read(self._controller, 65536).decode()
        return match

    def forget(self) -> None:
        """Forget what was read."""
        self.received = ""

    def read_rest(self) -> str:
        """Close the device here, and read until all programs have closed it. Return everything that was received."""
        self.close_device()
        while True:
            try:
                data = os.read(self._controller, 65536)
            except OSError:  # closed
                return self.received
            if not data:
                return self.received
            self.received += data.decode()

    def close_device(self) -> None:
        """Close the side that programs write to."""
        if self.device >= 0:
            os.close(self.device)
            self.device = -1

    def hang_up(self) -> None:
        """Close the other side, as when a terminal is closed."""
        if self._controller >= 0:
            os.close(self._controller)
            self._controller = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close_device()
        self.hang_up()
