"""The runs that were started from this machine."""

from __future__ import annotations

import itertools

from skyrl_modal.errors import translate_system_errors
from skyrl_modal.run.handle import Run
from skyrl_modal.run.index import RunIndex


@translate_system_errors()
def runs(limit: int | None = 50) -> list[Run]:
    """Return the runs that this user started from this machine, the newest first.

    A run on a backend that is not installed has the state ``unknown``. Records that cannot be read are skipped with a
    warning. Records of runs that are older than those returned are not read.

    Args:
        limit: Number of runs to return at most; None for all.

    Raises:
        StorageError: The folder with the records cannot be read.

    Example:
        >>> from skyrl_modal import runs
        >>> [run.state for run in runs(limit=0)]
        []
    """
    return RunList(Run._from_record(record) for record in itertools.islice(RunIndex().newest_first(), limit))


class RunList(list[Run]):
    """A list of runs, which a notebook shows as a table."""

    def _repr_html_(self) -> str:
        from skyrl_modal.views.notebook import table_to_html  # only a notebook needs it
        from skyrl_modal.views.text import first_line

        rows = []
        for run in self:
            created, command = run.job.created_at[:16].replace("T", " "), first_line(run.job.command, 200)
            rows.append((run.id, run.job.name or "", run.backend, created, command))
        return table_to_html(("run", "name", "backend", "created", "command"), rows)
