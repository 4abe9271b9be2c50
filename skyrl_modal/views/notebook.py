"""Parts of HTML pages for notebooks: label and value pairs, and tables. Everything is escaped.

The colors work on a light and on a dark page: text has the page's color, and a state has a colored mark before it.
"""

from __future__ import annotations

import html
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from skyrl_modal.declaration import fields as attrs_fields
from skyrl_modal.declaration import has
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
#: Values of fields that are left out.
_EMPTY: tuple[object, ...] = (None, False, (), {}, "")
#: Front ends give ``pre`` the font of other text, in which columns are not aligned.
_PRE = "font-family:ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;white-space:pre-wrap;margin:0"


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
    folded = f"<details><summary>last lines</summary>{text_to_html(tail)}</details>" if tail else ""
    return f"<table>{''.join(lines)}</table>{folded}"


def text_to_html(text: str) -> str:
    """Return text in which each character has the same width.

    Example:
        >>> text_to_html("a < b").endswith(">a &lt; b</pre>")
        True
    """
    return f'<pre style="{_PRE}">{escape(text)}</pre>'


def fields_to_html(value: Any) -> str:
    """Return a declared object as a table of its fields, without those that are empty as by default.

    Args:
        value: An instance of a class of ``skyrl_modal.declaration``.
    """
    fields = [(item, getattr(value, item.name)) for item in attrs_fields(type(value)) if item.repr]
    shown = [(item.name, field) for item, field in fields if field not in _EMPTY or _default_of(item) not in _EMPTY]
    rows = [(name, describe_value(field) or "none") for name, field in shown]
    return f"<strong>{escape(type(value).__name__)}</strong>{rows_to_html(rows)}"


def _default_of(item: Any) -> object:
    factory = getattr(item, "factory", None) or getattr(item.default, "factory", None)  # the latter: of attrs
    return item.default if factory is None else factory()


def describe_value(value: Any) -> str:
    """Return a value of a declared object: other declared objects with the fields that differ from the default.

    Example:
        >>> describe_value(("a", "b")), describe_value({"A": 1}), describe_value(3600.0)
        ('a, b', 'A=1', '3600')
    """
    if isinstance(value, tuple | list):
        return ", ".join(map(describe_value, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={describe_value(item)}" for key, item in value.items())
    if has(type(value)):
        shown = [(item, getattr(value, item.name)) for item in attrs_fields(type(value)) if item.repr]
        texts = [f"{item.name}={field!r}" for item, field in shown if field not in _EMPTY and field != item.default]
        return f"{type(value).__name__}({', '.join(texts)})"
    return f"{value:g}" if isinstance(value, float) else "" if value is None else str(value)


def _row(label: str, value: str) -> str:
    heading = f'<th style="{_CELL};white-space:nowrap">{escape(label)}</th>'
    return f'<tr>{heading}<td style="{_CELL};white-space:pre-wrap">{value}</td></tr>'


def table_to_html(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return rows of cells as a table. The column ``state`` gets marks.

    Columns without a value are left out. Only the last one is broken into several lines.

    Example:
        >>> "<th" in table_to_html(["run", "state"], [["r1", "running"]])
        True
    """
    table = [tuple(map(str, row)) for row in rows]
    shown = [number for number in range(len(headings)) if number == 0 or any(row[number] for row in table)]
    styles = [_CELL if number == shown[-1] else f"{_CELL};white-space:nowrap" for number in shown]
    head = "".join(f'<th style="{_CELL}">{escape(headings[number])}</th>' for number in shown)
    body = ""
    for row in table:
        cells = [state_to_html(row[number]) if headings[number] == "state" else escape(row[number]) for number in shown]
        body += f"<tr>{''.join(map(_cell, cells, styles))}</tr>"
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(content: str, style: str) -> str:
    return f'<td style="{style}">{content}</td>'
