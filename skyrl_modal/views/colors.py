"""Colors for a terminal, by https://no-color.org and https://force-color.org."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import TextIO

#: Parameters of SGR (ECMA-48).
BOLD, DIM, RED, GREEN, YELLOW, BLUE = "1", "2", "31", "32", "33", "34"
#: The colors of the states of a run: red is a failure, and yellow a limit.
STATE_COLORS = {
    "succeeded": GREEN,
    "running": BLUE,
    "preparing": BLUE,
    "failed": RED,
    "lost": RED,
    "timed_out": YELLOW,
    "over_budget": YELLOW,
}


def has_colors(stream: TextIO | None) -> bool:
    """Return whether text on a stream has colors.

    ``NO_COLOR`` has precedence over ``FORCE_COLOR``. Without both, a terminal has colors unless it is a dumb one.
    """
    override = color_override()
    if override is not None:
        return override
    try:
        return stream is not None and stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    except ValueError:  # it is closed
        return False


def color_override() -> bool | None:
    """Return whether the environment requests colors everywhere; None if that depends on the stream."""
    if os.environ.get("NO_COLOR"):
        return False
    return True if os.environ.get("FORCE_COLOR") else None


def paint(text: str, color: str) -> str:
    r"""Return a text with a color.

    Example:
        >>> paint("failed", RED)
        '\x1b[31mfailed\x1b[0m'
    """
    return f"\x1b[{color}m{text}\x1b[0m" if text else ""


def paint_message(stream: TextIO, text: str, prefix: str, label: str) -> str:
    """Return the lines of a message for a stream: the prefix is dim, and a label after the first one has a color.

    Args:
        stream: Where it is written.
        text: The lines.
        prefix: What each line begins with.
        label: ``"warning:"``, a state, or empty.
    """
    if not has_colors(stream):
        return text
    color = YELLOW if label == "warning:" else STATE_COLORS.get(label)
    if color is not None:
        text = text.replace(f"{prefix}{label}", f"{prefix}{paint(label, color)}", 1)
    return "".join(f"{paint(prefix, DIM)}{line.removeprefix(prefix)}" for line in text.splitlines(keepends=True))


def paint_cells(rows: Sequence[Sequence[str]], colors: Mapping[str, str]) -> list[list[str]]:
    """Return padded cells with colors by their texts, and the first row in bold."""
    painted = [[paint(cell, BOLD) for cell in row] for row in rows[:1]]
    for row in rows[1:]:
        painted.append([paint(cell, colors[cell.rstrip()]) if cell.rstrip() in colors else cell for cell in row])
    return painted


def paint_labels(text: str) -> str:
    """Return the text of a plan with colors for the labels of its findings."""

    def painted(match: re.Match[str]) -> str:
        return f"{match[1]}{paint(match[2], RED if match[2] == 'error' else YELLOW)}"

    # A label is right-aligned in eight columns, and the rest of each value is further to the right.
    return re.sub(r"(?m)^( {1,3})(error|warning)(?=  )", painted, text)
