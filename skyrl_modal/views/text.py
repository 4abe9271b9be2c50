"""Text for people: the launcher's messages, label and value pairs, and tables."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from skyrl_modal.protocol.log_lines import prefixed


class StderrReporter:
    """A reporter that writes to standard error.

    It looks up ``sys.stderr`` for each message, since a notebook replaces it.
    """

    def info(self, text: str) -> None:
        """Write a message of one or more lines, each with the prefix."""
        if sys.stderr is not None:
            sys.stderr.write(prefixed(text))
            sys.stderr.flush()

    def warn(self, text: str) -> None:
        """Write a warning."""
        self.info(f"warning: {text}")


def format_rows(rows: Sequence[tuple[str, str]]) -> str:
    """Return label and value pairs as lines, with the labels right-aligned.

    Example:
        >>> print(format_rows([("command", "true"), ("nodes", "2")]))
         command  true
           nodes  2
    """
    return "\n".join(f"{label:>8}  {value}" for label, value in rows)


def format_columns(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as lines with aligned columns, for a pipe or a file.

    Example:
        >>> print(format_columns([("a", "1"), ("long", "2")]))
        a     1
        long  2
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
