"""Colors for a terminal, by https://no-color.org and https://force-color.org."""

from __future__ import annotations

import os
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
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    try:
        return stream is not None and stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    except ValueError:  # it is closed
        return False


def paint(text: str, color: str) -> str:
    r"""Return a text with a color.

    Example:
        >>> paint("failed", RED)
        '\x1b[31mfailed\x1b[0m'
    """
    return f"\x1b[{color}m{text}\x1b[0m" if text else ""
