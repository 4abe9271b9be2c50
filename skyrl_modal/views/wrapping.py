"""Lines of text that fit into a terminal, which would otherwise break them in the middle of a word."""

from __future__ import annotations

import os
import re
from typing import TextIO

#: Narrower terminals break the lines themselves.
_MIN_WIDTH = 40
#: The label of a row, as in ``format_rows``.
_LABEL = re.compile(r" *[\w .-]*\w  (?=\S)")
#: What is not broken: a part in backticks, such as a command to copy, and a word.
_WORD = re.compile(r"[^\s`]*`[^`]*`\S*|\S+")


def wrap_lines(text: str, width: int) -> str:
    r"""Return a text whose lines have at most this width, where spaces permit it.

    Further lines of a row begin below its value, and those of other lines are indented. A word that is too long, such
    as a path, begins a line and is not broken, so that it can be copied.

    Args:
        text: One or more lines.
        width: Number of characters of a line.

    Example:
        >>> print(wrap_lines("   mount  /root/SkyRL from the checkout: 363 files, 4.4 MB", 40))
           mount  /root/SkyRL from the checkout:
                  363 files, 4.4 MB
    """
    if width < _MIN_WIDTH:
        return text
    return "\n".join(line if len(line) <= width else _wrap(line, width) for line in text.split("\n"))


def _wrap(line: str, width: int) -> str:
    label = _LABEL.match(line)
    begin = label[0] if label else line[: len(line) - len(line.lstrip())]
    indent = " " * (len(begin) if begin else 2)
    lines, current, end = [], begin, len(begin)
    for word in _WORD.finditer(line, len(begin)):
        gap = line[end : word.start()]
        if current.strip() and len(current) + len(gap) + len(word[0]) > width and len(current) > len(indent):
            lines.append(current)
            current, gap = indent, ""
        current += gap + word[0]
        end = word.end()
    return "\n".join([*lines, current])


def wrap_for(stream: TextIO, text: str, *, used: int = 0) -> str:
    """Return a text that fits into the terminal of a stream; the same text if the stream is no terminal.

    Args:
        stream: The stream.
        text: One or more lines.
        used: Number of characters before each line.
    """
    try:
        if not stream.isatty():
            return text
        # Not that of standard output, as in shutil.get_terminal_size: it may be a pipe.
        columns = os.get_terminal_size(stream.fileno()).columns
    except (AttributeError, OSError, ValueError):  # it is no file, it is closed, or its terminal is gone
        return text
    variable = os.environ.get("COLUMNS", "")
    return wrap_lines(text, (int(variable) if variable.isdecimal() and int(variable) else columns) - used)
