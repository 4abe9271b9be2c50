"""The training steps that an attempt has reached, as its metrics and its checkpoints show them.

Imported only by runs whose limits or retries depend on them.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable

from skyrl_modal.formats.checkpoint_listing import FolderListing
from skyrl_modal.formats.checkpoints import CheckpointFolder
from skyrl_modal.formats.metrics_steps import MetricsSteps
from skyrl_modal.protocol.job import Job

#: Seconds between two looks at the metrics of a rank, which is a process that logs them for other processes to read.
REPORT_INTERVAL = 2.0


def reached_step(job: Job, steps: Iterable[int] = ()) -> int | None:
    """Return the greatest step that a run has reached; None if none is known.

    A complete checkpoint is a step that was reached, also if the program logs no metrics.

    Args:
        job: The run.
        steps: Steps that other ranks have reported.
    """
    metrics = MetricsSteps(job.run_folder, rank=None)
    metrics.update()
    logged = metrics.newest()
    known = [*steps, *([] if logged is None else [logged])]
    for target in () if job.resume is None else job.resume.targets:
        with contextlib.suppress(OSError):  # a folder that cannot be read has no checkpoint to continue from
            newest = CheckpointFolder(FolderListing(target.folder), target.folder).newest_complete()
            known += [] if newest is None else [newest.step]
    return max(known, default=None)


class StepFiles:
    """When the processes of a rank have logged their newest row.

    Args:
        run_folder: The run's folder.
        rank: The rank.
    """

    def __init__(self, run_folder: str, rank: int) -> None:
        self._metrics = MetricsSteps(run_folder, rank)
        self._metrics.update()  # rows of earlier attempts are no activity of this one
        self._changed_at = 0.0

    def last_change(self) -> float:
        """Return the time of ``time.monotonic()`` at which the newest row was first seen; 0 for none.

        The rows since the last call count as logged now, so the time can be later than the row.
        """
        if self._metrics.update():
            self._changed_at = time.monotonic()
        return self._changed_at


class StepReporter:
    """Reports the steps that the processes of a rank other than 0 log, until it is stopped.

    Args:
        run_folder: The run's folder.
        rank: The rank.
        report: Receives the greatest step of the run on this rank after each look that found new rows.
    """

    def __init__(self, run_folder: str, rank: int, report: Callable[[int], None]) -> None:
        self._metrics = MetricsSteps(run_folder, rank)
        self._report = report
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="steps", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Report what is new, and end."""
        self._stopping.set()
        self._thread.join()
        self._report_new()

    def _follow(self) -> None:
        while not self._stopping.wait(REPORT_INTERVAL):
            self._report_new()

    def _report_new(self) -> None:
        if self._metrics.update() and (step := self._metrics.newest()) is not None:
            self._report(step)
