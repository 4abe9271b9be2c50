"""A terminal on whose alternate screen frames are shown, and whose keys are read. It is restored in every case."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import termios
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, Self

#: xterm's alternate screen and its cursor (ctlseqs, DECSET 1049 and DECTCEM).
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l\x1b[2J", "\x1b[0m\x1b[?25h\x1b[?1049l"
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
#: The keys of a terminal whose names differ from their characters: ECMA-48, and DECCKM.
_SEQUENCES = {"A": "up", "B": "down", "C": "right", "D": "left"}
#: Signals that end the program, and those that are handled while it continues.
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_OTHERS = (signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT)
_MIN_READ = 1024
_DEFAULT_SIZE = os.terminal_size((80, 24))


def parse_keys(text: str) -> list[str]:
    r"""Return the names of pressed keys. Unknown sequences are left out.

    Example:
        >>> parse_keys("q\x1b[C\x1bOA1\x1b[15~")
        ['q', 'right', 'up', '1']
    """
    keys, position = [], 0
    while position < len(text):
        character = text[position]
        position += 1
        if character != "\x1b":
            keys.append(character)
            continue
        if text[position : position + 1] not in ("[", "O"):
            continue
        position += 1
        while position < len(text) and not "\x40" <= text[position] <= "\x7e":
            position += 1
        name = _SEQUENCES.get(text[position : position + 1])
        position += 1
        keys += [name] if name is not None else []
    return keys


class FullScreen:
    """The alternate screen of a terminal, with keys that are not echoed. Signals are handled between two frames.

    Args:
        keys: The descriptor that keys are read from.
        output: The descriptor of the terminal.
        encoding: The encoding of the terminal.

    Attributes:
        ended_by: The signal that requested the end; None if there was none.
    """

    def __init__(self, keys: int = 0, output: int = 1, encoding: str = "utf-8") -> None:
        self.ended_by: int | None = None
        self._keys = keys
        self._output = output
        self._encoding = encoding
        self._modes: list[Any] | None = None
        self._drawn: tuple[str, ...] = ()
        self._handlers: dict[int, Any] = {}
        self._wake_reader, self._wake_writer = os.pipe()
        for descriptor in (self._wake_reader, self._wake_writer):
            os.set_blocking(descriptor, False)
        self._wakeup_before = -1

    def __enter__(self) -> Self:
        try:
            self._wakeup_before = signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
            for number in (*_ENDING, *_OTHERS):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._handlers[number] = signal.signal(number, self._handle)
            self._enter()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._handlers.clear()
        # The pipe stays open for threads that may still call `wake`: the process ends soon.

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number in _ENDING:
            self.ended_by = number
            signal.signal(number, signal.SIG_DFL)  # the second one ends a process whose terminal does not read

    def _enter(self) -> None:
        self._modes = termios.tcgetattr(self._keys)
        modes = termios.tcgetattr(self._keys)
        modes[0] &= ~termios.IXON  # Ctrl-S would stop the output
        modes[3] &= ~(termios.ECHO | termios.ICANON)
        modes[6][termios.VMIN], modes[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self._keys, termios.TCSANOW, modes)
        self._drawn = ()
        self._write(_ENTER)

    def _leave(self) -> None:
        """Restore the terminal, unless that is done already."""
        if self._modes is None:
            return
        modes, self._modes = self._modes, None
        with contextlib.suppress(OSError):  # it was closed
            self._write(_LEAVE)
        # A process in the background would be stopped.
        before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        with contextlib.suppress(OSError, termios.error):
            termios.tcsetattr(self._keys, termios.TCSANOW, modes)
            termios.tcflush(self._keys, termios.TCIFLUSH)
        signal.signal(signal.SIGTTOU, signal.SIG_DFL if before is None else before)

    def _suspend(self) -> None:
        """Stop this process, as Ctrl-Z does, with a restored terminal; return when it continues."""
        self._leave()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._enter()

    @property
    def size(self) -> os.terminal_size:
        """Columns and lines now."""
        try:
            size = os.get_terminal_size(self._output)
        except OSError:
            return _DEFAULT_SIZE
        return os.terminal_size((size.columns or _DEFAULT_SIZE.columns, size.lines or _DEFAULT_SIZE.lines))

    def draw(self, lines: Sequence[str]) -> None:
        """Show lines, each of which has to be shorter than the terminal is wide.

        Raises:
            OSError: The terminal was closed.
        """
        if tuple(lines) != self._drawn:
            self._drawn = tuple(lines)
            rows = f"{_CLEAR_LINE}\r\n".join(lines[: self.size.lines])
            self._write(f"{_HOME}{rows}{_CLEAR_LINE}{_CLEAR_BELOW}")

    def _write(self, text: str) -> None:
        data = text.encode(self._encoding, "backslashreplace")
        while data:
            data = data[os.write(self._output, data) :]

    def wake(self) -> None:
        """Let ``wait`` return. Any thread may call it."""
        with contextlib.suppress(OSError):
            os.write(self._wake_writer, b"\0")

    def wait(self, seconds: float) -> list[str]:
        """Wait for keys, a signal, or a call of ``wake``. Return the names of the keys; ``q`` for a closed terminal."""
        ready, _, _ = select.select([self._keys, self._wake_reader], [], [], seconds)
        if self._wake_reader in ready:
            numbers = os.read(self._wake_reader, _MIN_READ)
            if signal.SIGTSTP in numbers:
                self._suspend()
                return []
            if signal.SIGWINCH in numbers or signal.SIGCONT in numbers:
                self._drawn = ()
        if self._keys not in ready:
            return []
        try:
            data = os.read(self._keys, _MIN_READ)
        except OSError:
            return ["q"]
        return parse_keys(data.decode("utf-8", "replace")) if data else ["q"]
