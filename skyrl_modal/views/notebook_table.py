"""A table of several runs that is updated in place in a notebook, through IPython's own display handles."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any

#: Seconds between two updates of the table.
UPDATE_INTERVAL = 0.25


class NotebookTable:
    """Shows HTML that changes.

    The front end assigns what is displayed to a cell by variables of the context, so a thread that has a copy of the
    caller's context makes the updates.

    Args:
        render: Returns the HTML.
    """

    def __init__(self, render: Callable[[], str]) -> None:
        self._render = render
        self._handle: Any = None
        self._changed = threading.Event()
        self._is_ended = False
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._follow,), daemon=True)

    def start(self) -> None:
        """Show the table."""
        from IPython.display import display  # imported here: a notebook has it, and this package does not require it

        self._handle = display(self._to_html(), display_id=True)
        self._thread.start()

    def update(self) -> None:
        """Show what has changed, soon."""
        self._changed.set()

    def stop(self) -> None:
        """Show the final state."""
        self._is_ended = True
        self._changed.set()
        self._thread.join()
        self._handle.update(self._to_html())

    def _follow(self) -> None:
        while not self._is_ended:
            self._changed.wait()
            self._changed.clear()
            if not self._is_ended:
                self._handle.update(self._to_html())
                threading.Event().wait(UPDATE_INTERVAL)

    def _to_html(self) -> object:
        from IPython.display import HTML

        return HTML(self._render())
