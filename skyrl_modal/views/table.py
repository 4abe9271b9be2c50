"""Tables on a terminal. Imported only where a table is shown, since importing rich takes a moment."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from skyrl_modal.dataclass import dataclass
from skyrl_modal.protocol.log_lines import prefixed
from skyrl_modal.protocol.state import RunState
from skyrl_modal.views.live_line import is_live_terminal
from skyrl_modal.views.notebook import is_notebook, table_to_html
from skyrl_modal.views.text import escape_controls, write_text

if TYPE_CHECKING:
    from skyrl_modal.views.notebook_table import NotebookTable

_HEADINGS = ("name", "run", "state", "last line")
#: Longer cells are cut.
_MAX_CELL = 200
#: Sequences that change the color of text (ECMA-48, SGR), which programs write in their output.
_COLOR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(slots=True)
class _Row:
    run_id: str = ""
    state: RunState = RunState.PENDING
    line: str = ""


class LiveRunTable:
    """A table of several runs on standard error: live on a terminal, else one line for each change of a state.

    Args:
        names: A name for each run.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)
        self._rows = [_Row() for _ in names]
        self._lock = threading.Lock()
        self._notebook: NotebookTable | None = None
        if is_notebook():
            from skyrl_modal.views.notebook_table import NotebookTable  # only a notebook has IPython

            self._notebook = NotebookTable(self._to_html)
        self._console = Console(stderr=True)
        self._is_live = is_live_terminal(sys.stderr)  # FORCE_COLOR makes every stream a terminal for the console
        self._live = Live(self._table(), console=self._console, refresh_per_second=4, transient=False)

    def __enter__(self) -> Self:
        if self._notebook is not None:
            self._notebook.start()
        elif self._is_live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._notebook is not None:
            self._notebook.stop()
        elif self._is_live:
            self._live.update(self._table())
            self._live.stop()

    def update(
        self, number: int, *, run_id: str | None = None, state: RunState | None = None, line: str | None = None
    ) -> None:
        """Display what has changed of one run. None leaves a value unchanged. Any thread may call it."""
        with self._lock:
            row = self._rows[number]
            is_new_state = state is not None and state is not row.state
            row.run_id = row.run_id if run_id is None else run_id
            row.state = row.state if state is None else state
            row.line = row.line if line is None else _COLOR.sub("", line)
            if self._notebook is not None:
                self._notebook.update()
            elif self._is_live:
                self._live.update(self._table())
            elif is_new_state:
                text = f"{self._names[number]}: {row.state} {row.run_id} {row.line}".rstrip()
                if sys.stderr is not None:
                    with contextlib.suppress(OSError, ValueError):  # as in StderrReporter
                        write_text(sys.stderr, prefixed(escape_controls(text)))

    def _to_html(self) -> str:
        rows = [(name, row.run_id, row.state, row.line) for name, row in zip(self._names, self._rows, strict=True)]
        return table_to_html(_HEADINGS, [[cell[:_MAX_CELL] for cell in map(str, row)] for row in rows])

    def _table(self) -> Table:
        table = Table(*_HEADINGS, expand=True)
        for name, row in zip(self._names, self._rows, strict=True):
            _add_row(table, [cell[:_MAX_CELL] for cell in (name, row.run_id, row.state, row.line)])
        return table


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on standard output, which is a terminal."""
    table = Table(*headings, box=None, pad_edge=False)
    for row in rows:
        _add_row(table, row)
    Console().print(table)


def _add_row(table: Table, cells: Sequence[str]) -> None:
    # Text, and not rich's markup, since the output of a command may contain brackets.
    table.add_row(*(Text(escape_controls(cell), overflow="fold") for cell in cells))
