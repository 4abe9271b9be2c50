"""Records programs in a terminal, and replays the recordings on an emulated screen."""

from __future__ import annotations

import codecs
import fcntl
import json
import os
import pty
import struct
import subprocess
import termios
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pyte

#: Seconds for each typed character, after a command is typed, and after its output.
TYPING, BEFORE_OUTPUT, AFTER_OUTPUT = 0.04, 0.4, 1.6
#: Longer times without output are shortened to this.
MAX_IDLE = 0.8
PROMPT = "\x1b[1;32m$\x1b[0m "


@dataclass
class Recording:
    """What a terminal has received.

    Args:
        columns: Its width.
        rows: Its height.
    """

    columns: int
    rows: int
    #: The seconds since the begin, and the text, as in an event of asciinema's format.
    events: list[tuple[float, str]] = field(default_factory=list)

    @property
    def duration(self) -> float:
        """The time of the last event."""
        return self.events[-1][0] if self.events else 0.0

    def type(self, line: str) -> None:
        """Add a line as if a person types it after a prompt."""
        self.events.append((self.duration, PROMPT))
        for character in line:
            self.events.append((self.duration + TYPING, character))
        self.events.append((self.duration + BEFORE_OUTPUT, "\r\n"))

    def run(self, command: list[str], *, timeout: float = 300) -> int:
        """Add the output of a program, and return its exit code."""
        begin, last = self.duration, 0.0
        for moment, text in record(command, self.columns, self.rows, timeout=timeout):
            if isinstance(text, int):
                self.events.append((self.duration + AFTER_OUTPUT, ""))
                return text
            begin -= max(0.0, moment - last - MAX_IDLE)
            last = moment
            self.events.append((begin + moment, text))
        raise AssertionError("a recording ends with the exit code")

    def text(self) -> str:
        """Return all that the terminal has received."""
        return "".join(text for _, text in self.events)

    def write_cast(self, file: Path) -> None:
        """Write the recording in asciinema's format, version 2."""
        header = {"version": 2, "width": self.columns, "height": self.rows}
        lines = [json.dumps(header), *(json.dumps([round(moment, 3), "o", text]) for moment, text in self.events)]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")

    @classmethod
    def read_cast(cls, file: Path) -> Recording:
        """Return a recording that ``write_cast`` or asciinema wrote."""
        header, *events = map(json.loads, file.read_text(encoding="utf-8").splitlines())
        return cls(header["width"], header["height"], [(moment, text) for moment, kind, text in events if kind == "o"])

    def limited(self, seconds: float) -> Recording:
        """Return the same in at most this time."""
        factor = min(1.0, seconds / max(self.duration, 1e-9))
        return Recording(self.columns, self.rows, [(moment * factor, text) for moment, text in self.events])

    def screens(self, interval: float) -> list[tuple[float, list[list[pyte.screens.Char]]]]:
        """Return the time and the lines of each screen that is shown for at least the interval."""
        screen = pyte.Screen(self.columns, self.rows)
        stream = pyte.Stream(screen)
        screens: list[tuple[float, list[list[pyte.screens.Char]]]] = []
        for number, (moment, text) in enumerate(self.events):
            stream.feed(text)
            following = self.events[number + 1][0] if number + 1 < len(self.events) else float("inf")
            if following - moment >= interval or not screens or moment - screens[-1][0] >= interval:
                lines = [[screen.buffer[row][column] for column in range(self.columns)] for row in range(self.rows)]
                if not screens or screens[-1][1] != lines:
                    screens.append((moment, lines))
        return screens

    def final_lines(self) -> list[list[pyte.screens.Char]]:
        """Return the lines of the last screen, without empty ones at its end."""
        lines = self.screens(float("inf"))[-1][1] if self.events else []
        while lines and not "".join(cell.data for cell in lines[-1]).strip():
            lines = lines[:-1]
        return lines


def record(command: list[str], columns: int, rows: int, *, timeout: float) -> Iterable[tuple[float, str | int]]:
    """Execute a program in a terminal. Yield the seconds since its start with each text, then with the exit code."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    begin = time.monotonic()

    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True)
    os.close(terminal)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    try:
        while time.monotonic() - begin < timeout:
            try:
                data = os.read(controller, 65536)
            except OSError:  # Linux: no process has the terminal open any more
                break
            if not data:
                break
            yield time.monotonic() - begin, decoder.decode(data)
        yield time.monotonic() - begin, process.wait(timeout)
    finally:
        os.close(controller)
        if process.poll() is None:
            process.kill()
            process.wait()
