"""What Modal's client reports while it creates an app, and has no supported access to except ``modal.enable_output``.

``enable_output`` prints to standard output, which belongs to the command. With a client that lacks what is used here,
or if the application has enabled the client's own output, nothing is reported.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skyrl_modal.backends.modal.start_progress import StartProgress

#: The start that the current task belongs to. Tasks that the client creates for it inherit this.
_progress: ContextVar[StartProgress | None] = ContextVar("skyrl_modal_start", default=None)
#: The client's text about an upload (modal 1.6.0 to 1.6.4).
_UPLOADED = re.compile(r"Uploaded (\d+)/(\d+) ")


@contextlib.contextmanager
def reported_to(progress: StartProgress) -> Iterator[None]:
    """Let the client report to a start what it does in a ``with`` block."""
    _install()
    token = _progress.set(progress)
    try:
        yield
    finally:
        _progress.reset(token)


def _install() -> None:
    """Replace the client's output, if that is disabled, by one that displays nothing either, and reports."""
    try:
        from modal._output.manager import DisabledOutputManager, DisabledStatusRow
        from modal.output import OutputManager
    except ImportError:
        return
    if type(OutputManager.get()) is not DisabledOutputManager:
        return

    class Row(DisabledStatusRow):
        """The row of an object that the client creates."""

        _numbers = itertools.count()

        def __init__(self, progress: StartProgress) -> None:
            self._progress, self._number = progress, next(self._numbers)

        def message(self, message: str) -> None:
            match = _UPLOADED.search(message)
            if match is not None:
                self._progress.uploaded(self._number, int(match[1]), int(match[2]))

        def finish(self, message: str) -> None:
            self._progress.upload_ended(self._number)

    class ReportingOutput(DisabledOutputManager):
        """An output that displays nothing."""

        def add_status_row(self) -> Any:
            progress = _progress.get()
            return super().add_status_row() if progress is None else Row(progress)

        async def put_streaming_log(self, log: Any, prefix: str = "") -> None:
            progress = _progress.get()
            if progress is not None and log.data:
                progress.built(log.data)

        def update_snapshot_progress(self, image_id: str, task_progress: Any) -> None:
            progress = _progress.get()
            if progress is not None and task_progress.len:
                progress.saving_image(task_progress.pos / task_progress.len)

    OutputManager._set(ReportingOutput())
