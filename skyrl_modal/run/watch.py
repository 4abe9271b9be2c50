"""A view of a run that is updated until the run ends."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from skyrl_modal.dataclass import replace
from skyrl_modal.errors import RunTimeout, translate_system_errors
from skyrl_modal.run.log_lines import TAIL_BYTES, last_lines
from skyrl_modal.run.plots import plot_metrics
from skyrl_modal.skyrl.failures.log_line import without_escapes
from skyrl_modal.views.live_view import LiveView, RunStatus
from skyrl_modal.views.money import format_money
from skyrl_modal.views.waiting import format_elapsed

if TYPE_CHECKING:
    from skyrl_modal.protocol.state import RunState
    from skyrl_modal.run.handle import Run
    from skyrl_modal.run.metrics import Metrics

#: Seconds between two updates: of a run on this machine, and of others, where each update costs some requests.
_LOCAL_INTERVAL, _REMOTE_INTERVAL = 1.0, 10.0
#: Number of lines of the output, and of characters of each.
_LINES, _MAX_LINE = 10, 300
_INTERRUPTED = "interrupted: the run continues, and run.watch() shows it again"


def watch_run(run: Run, keys: Sequence[str]) -> None:
    """Show a run until it ends, or until Ctrl-C is pressed.

    Args:
        run: The run.
        keys: The metrics to plot; empty for those that show whether a training learns.
    """
    view = LiveView()
    interval = _LOCAL_INTERVAL if run.backend == "local" else _REMOTE_INTERVAL
    status = RunStatus(state="", row={})
    try:
        with translate_system_errors():
            metrics = run.metrics()
            for number in itertools.count():
                has_ended = number > 0 and _wait(run, interval)
                state = run.state  # it is read first: what is read of a run that has ended is complete
                status = _status(run, state, metrics, keys)
                view.show(status)
                if has_ended or state.is_final:
                    return
    except KeyboardInterrupt:
        view.show(replace(status, note=_INTERRUPTED))


def _wait(run: Run, seconds: float) -> bool:
    """Wait for the end of a run. Return whether it has ended."""
    try:
        run._execution.wait(seconds)
    except TimeoutError:
        return False
    return True


def _status(run: Run, state: RunState, metrics: Metrics, keys: Sequence[str]) -> RunStatus:
    metrics.update()
    known = [key for key in keys if key in metrics.keys]
    chart = plot_metrics(metrics, known) if len(metrics) and (known or not keys) else None
    row = metrics[-1] if len(metrics) else {}
    rows = [
        ("run", run.id),
        ("name", run.job.name or ""),
        ("elapsed", _elapsed(run) if not state.is_final else ""),
        *(_result_rows(run) if state.is_final else ()),
        ("cost", format_money(run.cost_at(state) or None) if run.job.rate is not None else ""),
        ("step", f"{row['step']:,.0f}" if row else ""),
        ("not logged", ", ".join(str(key) for key in keys if key not in known)),
    ]
    return RunStatus(state=str(state), rows=rows, row=row, chart=chart, lines=_last_lines(run))


def _elapsed(run: Run) -> str:
    if not run.job.created_at:  # a run that another machine has started
        return ""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(run.job.created_at)).total_seconds()
    return format_elapsed(max(0.0, seconds))


def _result_rows(run: Run) -> Sequence[tuple[str, str]]:
    with suppress(RunTimeout):  # its supervisor still removes files
        result = run.result(0)
        texts = (str(result.returncode), result.detail, format_elapsed(result.duration))
        return tuple(zip(("exit code", "detail", "duration"), texts, strict=True))
    return ()


def _last_lines(run: Run) -> Sequence[str]:
    r"""Return the last lines without colors. Of a line that a progress bar rewrites, what follows the last ``\r``."""
    try:
        data = run._output(lambda text: None).read_end(TAIL_BYTES)
    except FileNotFoundError:  # it was removed
        return ()
    lines = [without_escapes(line).rstrip("\r").rpartition("\r")[2] for line in last_lines(data, _LINES)]
    return [line if len(line) <= _MAX_LINE else f"{line[: _MAX_LINE - 1]}…" for line in lines]
