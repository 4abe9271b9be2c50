"""Parts of HTML pages for notebooks: label and value pairs, and tables. Everything is escaped.

The colors work on a light and on a dark page: text has the page's color, and a state has a colored mark before it.
"""

from __future__ import annotations

import html
import sys
from collections.abc import Iterable, Sequence

from skyrl_modal.views.text import escape_controls

#: The color of the mark for a state; others have none.
_COLORS = {
    "succeeded": "#2da44e",
    "running": "#0969da",
    "preparing": "#0969da",
    "failed": "#cf222e",
    "lost": "#cf222e",
    "timed_out": "#bf8700",
    "over_budget": "#bf8700",
    "cancelled": "#6e7781",
}
_CELL = "text-align:left;vertical-align:top;padding:2px 12px 2px 0"


def is_notebook() -> bool:
    """Return whether the output of this process is shown in a notebook, which shows standard error as an error."""
    return "ipykernel" in sys.modules and type(sys.stderr).__module__.startswith("ipykernel")


def escape(text: object) -> str:
    """Return a text for HTML, with escape sequences instead of control characters.

    Example:
        >>> escape("a < b")
        'a &lt; b'
    """
    return html.escape(escape_controls(str(text), multiline=True))


def state_to_html(state: str) -> str:
    """Return a state with its mark."""
    color = _COLORS.get(state)
    mark = "" if color is None else f'<span style="color:{color}">●</span> '
    return f"{mark}{escape(state)}"


def rows_to_html(rows: Iterable[tuple[str, object]], *, state: str | None = None, tail: str = "") -> str:
    """Return label and value pairs as a table.

    Args:
        rows: The pairs. Those with an empty value are left out.
        state: A state that is shown first; None for none.
        tail: The last lines of an output, which are folded up below the table.

    Example:
        >>> rows_to_html([("exit code", 7)]).startswith("<table")
        True
    """
    lines = [] if state is None else [_row("state", state_to_html(state))]
    lines += [_row(label, escape(value)) for label, value in rows if str(value)]
    folded = f"<details><summary>last lines</summary><pre>{escape(tail)}</pre></details>" if tail else ""
    return f"<table>{''.join(lines)}</table>{folded}"


def _row(label: str, value: str) -> str:
    return f'<tr><th style="{_CELL}">{escape(label)}</th><td style="{_CELL};white-space:pre-wrap">{value}</td></tr>'


def table_to_html(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return rows of cells as a table. The column ``state`` gets marks.

    Example:
        >>> "<th" in table_to_html(["run", "state"], [["r1", "running"]])
        True
    """
    head = "".join(f'<th style="{_CELL}">{escape(heading)}</th>' for heading in headings)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td style="{_CELL}">{state_to_html(str(cell)) if heading == "state" else escape(cell)}</td>'
            for heading, cell in zip(headings, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"
