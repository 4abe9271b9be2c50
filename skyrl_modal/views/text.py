"""Text for people: the launcher's messages, label and value pairs, and tables."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TextIO

from skyrl_modal.protocol.log_lines import LINE_PREFIX, prefixed
from skyrl_modal.views.wrapping import wrap_for

if TYPE_CHECKING:
    from skyrl_modal.views.live_line import LiveLine

#: The line that is rewritten on the terminal, if there is one: it is removed before a message is written.
live_lines: list[LiveLine] = []
#: Characters that control a terminal or the order in which text is displayed, end a line, or are no characters:
#: C0 and C1 controls, bidirectional marks and overrides (UAX #9), line and paragraph separators, surrogates.
#: It is compiled on first use: most processes display no text with one of these characters.
_CONTROLS = "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
#: The same without tab and newline.
_CONTROLS_IN_LINES = _CONTROLS.replace("\x00-\x1f", "\x00-\x08\x0b-\x1f")


#: Width of the last column for which other columns are left out, and the smallest one.
_LAST_COLUMN_WIDTH = 16
_MIN_CELL = 5


def escape_controls(text: str, *, multiline: bool = False) -> str:
    r"""Return a text with escape sequences such as ``\x1b`` instead of control characters.

    Names of files, records on a shared volume, and messages about them may contain characters that move the cursor,
    hide text, change the title of the terminal or make it answer.

    Args:
        text: The text.
        multiline: Whether to keep tabs and newlines; otherwise the result has one line.

    Example:
        >>> escape_controls("a\x1b[2Jb\n")
        'a\\x1b[2Jb\\n'
    """
    plain = text.replace("\n", "").replace("\t", "") if multiline else text
    if plain.isprintable():  # none of the controls is
        return text
    return re.sub(_CONTROLS_IN_LINES if multiline else _CONTROLS, lambda match: ascii(match[0])[1:-1], text)


def write_text(stream: TextIO, text: str) -> None:
    """Write a text to a stream whose encoding may not contain all of its characters, and flush it.

    Raises:
        OSError: The stream cannot be written to.
    """
    try:
        stream.write(text)
    except UnicodeEncodeError:
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def message_stream() -> TextIO | None:
    """Return where messages are written: standard error; in a notebook, which shows that as an error, standard output.

    It is looked up for each message, since a notebook replaces it.
    """
    if "ipykernel" in sys.modules:
        from skyrl_modal.views.notebook import is_notebook  # imported here: other programs need no HTML

        return sys.stdout if is_notebook() else sys.stderr
    return sys.stderr


class StateText(str):
    """A message that begins with a state, which has a color on a terminal.

    Args:
        text: The message.
        state: The state.
    """

    __slots__ = ("state",)
    state: str

    def __new__(cls, text: str, state: str) -> StateText:
        """Return a message that has its state as an attribute."""
        message = super().__new__(cls, text)
        message.state = state
        return message


class StderrReporter:
    """A reporter that writes to standard error; in a notebook to standard output.

    A message that cannot be written is discarded: the run and its exit code do not depend on it.
    """

    def info(self, text: str) -> None:
        """Write a message of one or more lines, each with the prefix."""
        self._write(text, text.state if isinstance(text, StateText) else "")

    def _write(self, text: str, label: str) -> None:
        stream = message_stream()
        if stream is not None:
            lines = "\n".join(escape_controls(line) for line in text.splitlines())
            lines = wrap_for(stream, lines, used=len(LINE_PREFIX))
            with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
                shown = prefixed(lines)
                if "FORCE_COLOR" in os.environ or stream.isatty():
                    from skyrl_modal.views.colors import paint_message  # imported here: most streams have no colors

                    shown = paint_message(stream, shown, LINE_PREFIX, label)
                with live_lines[0].hidden() if live_lines else contextlib.nullcontext():
                    write_text(stream, shown)

    def warn(self, text: str) -> None:
        """Write a warning."""
        self._write(f"warning: {text}", "warning:")


@contextlib.contextmanager
def warnings_as_messages() -> Iterator[None]:
    """Print Python's warnings of a ``with`` block immediately, as messages of the launcher."""

    def show(message: Warning | str, *details: object, **options: object) -> None:
        StderrReporter().warn(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


def format_rows(rows: Sequence[tuple[str, str]]) -> str:
    """Return label and value pairs as lines, with the labels right-aligned. Control characters are escaped.

    Example:
        >>> print(format_rows([("command", "true"), ("nodes", "2")]))
         command  true
           nodes  2
    """
    return "\n".join(f"{label:>8}  {_indented(escape_controls(value, multiline=True))}" for label, value in rows)


def _indented(text: str) -> str:
    """Return a text whose further lines cannot be mistaken for rows of their own."""
    return text.replace("\n", "\n" + " " * 10)


def format_columns(rows: Sequence[Sequence[str]], colors: Mapping[str, str] | None = None) -> str:
    """Return rows of cells as lines with aligned columns. Control characters are escaped.

    Args:
        rows: The rows.
        colors: The colors of cells with certain texts, such as states; the first row is then bold. None for no colors.

    Example:
        >>> print(format_columns([("a", "1"), ("long", "2")]))
        a     1
        long  2
    """
    rows = [[escape_controls(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    for line in lines:
        line[-1] = line[-1].rstrip()
    if colors is not None:
        from skyrl_modal.views.colors import paint_cells  # imported here: most output has no colors

        lines = paint_cells(lines, colors)
    return "\n".join("  ".join(line).rstrip() for line in lines)


def first_line(text: str, length: int) -> str:
    r"""Return the first line of a text, with a mark at its end if it was cut.

    Example:
        >>> first_line("python train.py\nexit 0", 80), first_line("x" * 9, 5)
        ('python train.py…', 'xxxx…')
    """
    line, *others = text.strip().splitlines() or [""]
    if len(line) > length:
        return f"{line[: length - 1]}…"
    return f"{line[: length - 1]}…" if others else line


def fit_columns(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    droppable: Sequence[str] = (),
    width: int | None = None,
    colors: Mapping[str, str] | None = None,
) -> str:
    """Return rows below headings for a terminal. Columns without a value are left out, and the last one is cut.

    Args:
        headings: The headings.
        rows: The cells of each row; ``-`` is no value.
        droppable: Headings of columns that are left out on a narrow terminal, in this order.
        width: The number of columns of the terminal; None to ask the system.
        colors: As for ``format_columns``.

    Example:
        >>> print(fit_columns(("A", "B", "C"), [("1", "-", "long text")], width=8))
        A  C
        1  long…
    """
    if width is None:
        from shutil import get_terminal_size  # imported here, since a pipe needs no width

        width = get_terminal_size().columns
    table = [[escape_controls(cell) for cell in row] for row in (headings, *rows)]
    last = len(headings) - 1
    widths = {
        number: max(len(row[number]) for row in table) + 2
        for number in range(last)
        if number == 0 or any(row[number] != "-" for row in rows)
    }
    for heading in droppable:
        if width - sum(widths.values()) < _LAST_COLUMN_WIDTH:
            widths.pop(headings.index(heading), None)
    room = max(width - sum(widths.values()), _MIN_CELL)
    shown = [[row[number] for number in (*widths, last)] for row in table]
    for row in shown:
        if len(row[-1]) > room:
            row[-1] = f"{row[-1][: room - 1]}…"
    return format_columns(shown, colors)
