"""What ``skyrl-modal top`` shows, read from runs: only what is new, in a thread, so that keys do not wait for it."""

from __future__ import annotations

import itertools
import re
import threading
import time
import warnings
from array import array
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from skyrl_modal.errors import SkyRLModalError, translate_system_errors
from skyrl_modal.protocol.state import RunState
from skyrl_modal.run.handle import Run
from skyrl_modal.run.index import RunIndex
from skyrl_modal.run.listing import RunFilter, list_runs, summarize
from skyrl_modal.views.text import escape_controls
from skyrl_modal.views.top import Curve, TopFrame, key_metrics
from skyrl_modal.web.columns import MetricColumns
from skyrl_modal.web.downsampling import sample
from skyrl_modal.web.log_lines import BytesSource, LogIndex
from skyrl_modal.web.observed_run import ObservedRun
from skyrl_modal.web.plain import plain

#: Seconds between two looks at a run: on this machine, and on another backend, where each is a request or more.
_LOCAL_INTERVAL, _REMOTE_INTERVAL = 0.5, 5.0
#: The same for the list of runs.
_LOCAL_LIST_INTERVAL, _REMOTE_LIST_INTERVAL = 3.0, 15.0
#: Number of the newest runs of which the active ones are shown, and of runs whose metrics are kept in memory.
_LISTED, _MAX_KEPT = 20, 8
#: Bytes at the end of the output that are read, lines of it, and points of a curve.
_TAIL_BYTES, _MAX_LINES, _MAX_POINTS = 64 << 10, 100, 200
#: Steps by which the time of a step is estimated.
_TIMED_STEPS = 20
#: The progress bar of SkyRL's trainer (``skyrl/train/trainer.py``), with the number of steps.
_BAR = re.compile(rb"Training Batches Processed:[^\r\n]{0,200}? (\d{1,12})/(\d{1,12}) \[")
#: The mean use of the GPUs in percent, which SkyRL's monitor logs (``skyrl/train/utils/ray_gpu_monitor.py``).
_GPU_USE = "ray/gpu.util.avg"
_ACTIVE = (RunState.PENDING, RunState.PREPARING, RunState.RUNNING)


class _Source:
    """One run, of which only what is new is read."""

    def __init__(self, run_id: str) -> None:
        self.observed = ObservedRun(RunIndex().get(run_id))
        self.is_final = False
        self._total_steps: int | None = None
        self._bar_step: int | None = None
        self._curves: tuple[Curve, ...] = ()
        self._version = -1
        self._lines: tuple[str, ...] = ()
        self._log_size = -1
        self._log_read_at = float("-inf")

    @property
    def interval(self) -> float:
        """Seconds until the next look."""
        return _LOCAL_INTERVAL if self.observed.is_local else _REMOTE_INTERVAL

    def read(self) -> TopFrame:
        """Return what is to be shown now. An error of the backend is a message in it."""
        observed, run = self.observed, self.observed.run
        summary = summarize(run, {})
        message = summary.unavailable_reason or ""
        columns = MetricColumns()
        if not message:
            try:
                with translate_system_errors():
                    self._read_output(run)
                    columns = observed.metrics()
            except (SkyRLModalError, OSError) as error:
                message = str(error)
        self._sample(columns)
        self.is_final = summary.returncode is not None
        steps = [step for step in (observed.newest_step, self._bar_step) if step is not None]
        step = max(steps, default=None)
        return TopFrame(
            run_id=run.id,
            name=summary.name or "",
            command=summary.command[:1000],
            backend=summary.backend,
            state=str(summary.state),
            returncode=summary.returncode,
            duration=summary.duration,
            step=step,
            total_steps=self._total_steps,
            ends_at=None if summary.state is not RunState.RUNNING else self._ends_at(columns, step),
            cost=summary.cost,
            gpu_use=None if self.is_final or not self._curves else _newest(columns, _GPU_USE),
            curves=self._curves,
            lines=self._lines,
            message=message,
        )

    def _read_output(self, run: Run) -> None:
        """Read the end of the output, if something was added to it."""
        if time.monotonic() - self._log_read_at < (0 if self.observed.is_local else 2 * _REMOTE_INTERVAL):
            return
        self._log_read_at = time.monotonic()
        size = run._execution.log_size()
        if size == self._log_size:
            return
        begin = max(0, size - _TAIL_BYTES)
        data = run._execution.read_log(begin)[:_TAIL_BYTES]
        bars = _BAR.findall(data)
        if bars:
            self._bar_step, self._total_steps = map(int, bars[-1])
        index = LogIndex(BytesSource(data))
        index.update()
        first = max(2 if begin and index.total > 1 else 1, index.total - _MAX_LINES + 1)
        self._lines = tuple(line.text for line in index.lines(first, index.total))
        self._log_size = size

    def _sample(self, columns: MetricColumns) -> None:
        if columns.version == self._version or not columns.version:
            return
        self._version = columns.version
        curves = []
        for key in key_metrics(columns.names()):
            curve = columns.curve(key)
            sampled = sample(curve, _MAX_POINTS)
            steps, values = [], []
            for point in zip(sampled.x, sampled.low, sampled.high, sampled.y, strict=True):
                for value in dict.fromkeys(point[1:]):
                    if value is not None:
                        steps.append(point[0])
                        values.append(value)
            curves.append(Curve(key=key, steps=steps, values=values, last=curve.values[-1]))
        self._curves = tuple(curves)

    def _ends_at(self, columns: MetricColumns, step: int | None) -> float | None:
        """Return when the last step is expected to end, by the median time of the newest steps; None if unknown."""
        if self._total_steps is None or step is None or not self._curves:
            return None
        curve = columns.curve(self._curves[0].key)
        steps, times = curve.steps[-_TIMED_STEPS - 1 :], curve.times[-_TIMED_STEPS - 1 :]
        pairs = zip(itertools.pairwise(steps), itertools.pairwise(times), strict=True)
        seconds = [(t1 - t0) / (s1 - s0) for (s0, s1), (t0, t1) in pairs if s1 > s0 and t1 >= t0]
        return times[-1] + max(0, self._total_steps - steps[-1]) * median(seconds) if seconds else None


def _newest(columns: MetricColumns, key: str) -> float | None:
    values: array[float] = columns.curve(key).values
    return values[-1] if values and 0 <= values[-1] <= 100 else None


class Reader:
    """Reads the shown run and the list of active runs.

    Args:
        run_id: The id of the run that is shown first; None for the newest active one, else the newest one.

    Attributes:
        run_ids: The runs that can be shown: the active ones, the newest first, and those that were shown.
        shown: The id of the run that is shown.
        frame: What was read of it; None before the first look.
        error: What ended the thread; None if nothing has.

    Raises:
        SkyRLModalError: There is no run.
    """

    def __init__(self, run_id: str | None) -> None:
        self.run_ids: list[str] = []
        self.shown = run_id or ""
        self.frame: TopFrame | None = None
        self.error: BaseException | None = None
        self._sources: dict[str, _Source] = {}
        self._changed = threading.Event()
        self._listed_at = float("-inf")
        self._all_local = True
        if run_id is None:
            self._list()
            if not self.run_ids:
                raise SkyRLModalError("no run was started from this machine. `skyrl-modal submit COMMAND` starts one.")
            self.shown = self.run_ids[0]
        else:
            self.run_ids = [run_id]

    def _list(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `skyrl-modal ps` warns about records that cannot be read
            found = list_runs(RunFilter(limit=_LISTED))
        self._listed_at = time.monotonic()
        self._all_local = all(one.backend == "local" for one in found)
        active = [one.run_id for one in found if one.state in _ACTIVE]
        if not self.shown:
            self.run_ids = active or [one.run_id for one in found[:1]]
            return
        kept = [run_id for run_id in self.run_ids if run_id not in active and (run_id in self._sources)]
        self.run_ids = [*active, *kept]
        if self.shown not in self.run_ids:
            self.run_ids.append(self.shown)

    def read(self) -> TopFrame:
        """Return what the shown run has now."""
        run_id = self.shown
        source = self._sources.pop(run_id, None) or _Source(run_id)
        self._sources[run_id] = source  # the last one is the one that was shown last
        while len(self._sources) > _MAX_KEPT:
            del self._sources[next(iter(self._sources))]
        return source.read()

    def start(self, wake: Callable[[], None]) -> None:
        """Read in a thread from now on.

        Args:
            wake: Called when something was read.
        """

        def loop() -> None:
            while self.error is None:
                self._changed.clear()
                try:
                    run_id = self.shown
                    frame = self.read()
                    if run_id == self.shown:
                        self.frame = frame
                        wake()
                    age = time.monotonic() - self._listed_at
                    if age > (_LOCAL_LIST_INTERVAL if self._all_local else _REMOTE_LIST_INTERVAL):
                        self._list()
                        wake()
                    source = self._sources[run_id]
                    self._changed.wait(_LOCAL_LIST_INTERVAL if source.is_final else source.interval)
                except BaseException as error:  # raised in the main thread
                    self.error = error
                    wake()

        threading.Thread(target=loop, name="skyrl-modal-top", daemon=True).start()

    def switch(self, offset: int) -> None:
        """Show another run of the list."""
        ids = list(self.run_ids)
        position = ids.index(self.shown) if self.shown in ids else 0
        self.shown = ids[(position + offset) % len(ids)]
        if self.shown != ids[position]:
            self.frame = None
            self._changed.set()

    @property
    def position(self) -> tuple[int, int]:
        """Number of the shown run in the list, from 1, and the number of runs."""
        ids = list(self.run_ids)
        return (ids.index(self.shown) if self.shown in ids else 0) + 1, max(1, len(ids))


def frame_to_json(frame: TopFrame) -> Mapping[str, Any]:
    """Return a frame as data that ``json.dumps`` accepts, without control characters."""
    found: Mapping[str, Any] = plain(
        {
            "run_id": frame.run_id,
            "name": frame.name or None,
            "command": frame.command,
            "backend": frame.backend,
            "state": frame.state,
            "returncode": frame.returncode,
            "duration": frame.duration,
            "step": frame.step,
            "total_steps": frame.total_steps,
            "ends_at": frame.ends_at,
            "cost": frame.cost,
            "gpu_use": frame.gpu_use,
            "metrics": {curve.key: curve.last for curve in frame.curves},
            "lines": list(frame.lines),
            "message": escape_controls(frame.message) or None,
        }
    )
    return found
