"""What ``skyrl-modal metrics`` prints."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from skyrl_modal.cli.output import print_line, print_rows
from skyrl_modal.run.plots import NO_METRICS, check_keys
from skyrl_modal.views.metrics import important_keys, row_to_json, row_to_text, summary_row
from skyrl_modal.views.plot import plot_lines
from skyrl_modal.views.text import StderrReporter, escape_controls

if TYPE_CHECKING:
    from skyrl_modal.run.metrics import Metrics

#: Columns of a plot.
_WIDTH = 80


def print_metrics(metrics: Metrics, keys: Sequence[str], *, follow: bool, is_json: bool) -> None:
    """Print metrics as plots, as lines while they are followed, or as lines of JSON.

    Args:
        metrics: The metrics.
        keys: Those to print; empty for all of them as JSON, else for the most important ones.
        follow: Whether ``metrics`` follows a run.
        is_json: Whether to print lines of JSON.

    Raises:
        SpecError: A key was never logged.
    """
    if not follow:
        check_keys(metrics, keys)
    if is_json:
        wanted = {"step", "time", *keys}
        for row in metrics:
            if not keys or any(key in row for key in keys):
                print_line(row_to_json({key: value for key, value in row.items() if not keys or key in wanted}))
    elif follow:
        for row in metrics:
            shown = keys or important_keys(sorted(row.keys() - {"step", "time"}))
            if any(key in row for key in shown):
                print_line(row_to_text(row, shown))
    elif len(metrics):
        _print_plots(metrics, keys)
    if not len(metrics):
        StderrReporter().info(NO_METRICS)
    if metrics.skipped:
        StderrReporter().info(f"{metrics.skipped:,} lines of the metrics files could not be read")


def _print_plots(metrics: Metrics, keys: Sequence[str]) -> None:
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower()
    for key in keys or important_keys(metrics.keys):
        steps, values = metrics.series(key)
        print_line(f"{escape_controls(key)}  (step {steps[-1]:,}: {values[-1]:.6g})")
        for line in plot_lines(steps, values, width=_WIDTH, is_ascii=not encoding.startswith("utf")):
            print_line(line)
        print_line()
    if not keys:
        rows = [summary_row(key, metrics.series(key)[1]) for key in metrics.keys]
        print_line(repr(metrics))
        print_rows(("metric", "last".rjust(10), "lowest".rjust(10), "highest".rjust(10)), rows)
