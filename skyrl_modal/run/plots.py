"""Charts of the metrics of runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from skyrl_modal.errors import SpecError
from skyrl_modal.views.chart import Chart, Curve
from skyrl_modal.views.metrics import important_keys
from skyrl_modal.views.text import escape_controls

if TYPE_CHECKING:
    from skyrl_modal.run.metrics import Metrics

NO_METRICS = "no metrics are recorded: the command has logged none, or not yet (docs/metrics.md lists what is recorded)"


def plot_metrics(metrics: Metrics, keys: Sequence[str]) -> Chart:
    """Return a chart with one plot for each key.

    Args:
        metrics: The metrics.
        keys: Those to plot; empty for those that show whether a training learns.

    Raises:
        SpecError: A key was not logged.
    """
    check_keys(metrics, keys)
    if not len(metrics):
        return Chart({}, NO_METRICS)
    return Chart({key: [Curve(*metrics.series(key))] for key in keys or important_keys(metrics.keys)})


def check_keys(metrics: Metrics, keys: Sequence[str]) -> None:
    """Check that metrics were logged. Nothing is checked as long as there are none.

    Raises:
        SpecError: One of them was not. It contains similar names.
    """
    known = metrics.keys
    for key in keys:
        if not isinstance(key, str):
            raise SpecError("key", key, 'pass names of metrics, such as "reward/avg_raw_reward"')
        if key not in known and known:
            import difflib  # imported here, since it takes time

            similar = difflib.get_close_matches(key, known, 3, 0.4) or known[:3]
            raise SpecError("key", key, f"it was not logged. Similar ones: {', '.join(map(escape_controls, similar))}")
