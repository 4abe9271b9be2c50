"""A view of one run that is updated in place in a notebook, and lines of text elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from skyrl_modal.dataclass import dataclass
from skyrl_modal.views.chart import Chart
from skyrl_modal.views.metrics import row_to_text
from skyrl_modal.views.notebook import is_notebook, rows_to_html, text_to_html
from skyrl_modal.views.text import escape_controls, write_text


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """What is shown of a run.

    Attributes:
        state: Its state.
        rows: Labels and texts. Those with an empty text are left out.
        row: The newest row of metrics; empty if there is none.
        chart: The curves; None if there are none.
        lines: The last lines of the output.
        note: A text that is shown last.
    """

    state: str
    rows: Sequence[tuple[str, str]] = ()
    row: Mapping[str, float]
    chart: Chart | None = None
    lines: Sequence[str] = ()
    note: str = ""


class LiveView:
    """Shows a run that changes, through IPython's own display handles if this is a notebook."""

    def __init__(self) -> None:
        self._is_notebook = is_notebook()
        self._handle: Any = None
        self._shown = ""

    def show(self, status: RunStatus) -> None:
        """Show a run as it is now, if it differs from what is shown."""
        text = status_to_html(status) if self._is_notebook else status_to_text(status)
        if text == self._shown:
            return
        self._shown = text
        if not self._is_notebook:
            write_text(sys.stdout, f"{text}\n")
            return
        from IPython.display import HTML, display  # imported here: a notebook has it, this package does not require it

        if self._handle is None:
            self._handle = display(HTML(text), display_id=True)
        else:
            self._handle.update(HTML(text))


def status_to_html(status: RunStatus) -> str:
    """Return state, values, curves and last lines for a notebook.

    Example:
        >>> "step 3" in status_to_html(RunStatus(state="running", row={}, lines=["step 3"]))
        True
    """
    parts = [rows_to_html([*status.rows, ("note", status.note)], state=status.state)]
    parts += [] if status.chart is None else [status.chart._repr_html_()]
    parts += [text_to_html("\n".join(status.lines))] if status.lines else []
    return "".join(parts)


def status_to_text(status: RunStatus) -> str:
    """Return state, step and values of the curves as one line.

    Example:
        >>> status_to_text(RunStatus(state="running", row={"step": 3.0, "time": 1.0, "loss": 0.5}))
        'running  step 3'
    """
    keys = () if status.chart is None else tuple(status.chart.curves)
    parts = [status.state, row_to_text(status.row, keys) if status.row else "", escape_controls(status.note)]
    return "  ".join(filter(None, parts))
