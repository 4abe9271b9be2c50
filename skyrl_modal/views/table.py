"""What a person sees of many runs at once. A part of display.py of its own: a single run need not wait for rich."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from skyrl_modal.views.text import PREFIX


class LiveBoard:
    """A table of many runs on standard error: live where that is a terminal, else a line for each change of state."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)
        self._rows = [{"run_id": "", "state": "pending", "line": ""} for _ in names]
        self._lock = threading.Lock()
        self._console = Console(stderr=True)
        self._live = Live(self._table(), console=self._console, refresh_per_second=4, transient=False)

    def __enter__(self) -> LiveBoard:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.update(self._table())
            self._live.stop()

    def update(self, number: int, *, run_id: str = "", state: str = "", line: str = "") -> None:
        """Show what has changed of one run; what is empty stays as it was."""
        with self._lock:
            row = self._rows[number]
            changed = bool(state) and state != row["state"]
            for key, value in (("run_id", run_id), ("state", state), ("line", line)):
                if value:
                    row[key] = value
            if self._console.is_terminal:
                self._live.update(self._table())
            elif changed:
                text = f"{PREFIX}{self._names[number]}: {row['state']} {row['run_id']} {row['line']}"
                print(text.rstrip(), file=sys.stderr, flush=True)

    def _table(self) -> Table:
        table = Table("name", "run", "state", "last line", expand=True)
        for name, row in zip(self._names, self._rows, strict=True):
            # As text, not as rich's markup: a command's output may hold brackets.
            table.add_row(*(Text(part[:200]) for part in (name, row["run_id"], row["state"], row["line"])))
        return table


class NoBoard:
    """A board that shows nothing."""

    def __enter__(self) -> NoBoard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is shown, so nothing is to end."""

    def update(self, number: int, *, run_id: str = "", state: str = "", line: str = "") -> None:
        """Drop it."""
