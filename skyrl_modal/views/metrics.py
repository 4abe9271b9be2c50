"""Metrics for people: on a terminal, as lines of JSON, and in a notebook."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from skyrl_modal.views.plot import format_number
from skyrl_modal.views.text import escape_controls

#: Rows of a table in a notebook.
_HTML_ROWS = 20
#: What shows whether a training learns, in SkyRL's names. The first that are there are plotted.
_IMPORTANT = (
    "reward/avg_raw_reward",
    "eval/all/avg_score",
    "reward/avg_pass_at_",
    "policy/final_loss",
    "policy_loss",
    "train/loss",
    "reward",
    "loss",
)
#: Number of metrics that are plotted if none was requested.
_PLOTTED = 3


def important_keys(keys: Sequence[str]) -> list[str]:
    """Return the metrics to show if none was requested.

    Example:
        >>> important_keys(["a", "loss", "reward/avg_raw_reward"])
        ['reward/avg_raw_reward', 'loss']
    """
    found: dict[str, None] = {}
    for name in _IMPORTANT:
        found.update(dict.fromkeys(key for key in keys if key == name or (name.endswith("_") and key.startswith(name))))
    others = [key for key in keys if key not in found and not key.startswith(("timing/", "ray/", "vllm/", "trainer/"))]
    return [*found, *([] if found else others)][:_PLOTTED]


def row_to_json(row: Mapping[str, float]) -> str:
    """Return a row as a line of JSON. Values that are not finite are strings, as in the files.

    Example:
        >>> row_to_json({"step": 1, "time": 2.5, "loss": math.nan})
        '{"step": 1, "time": 2.5, "loss": "NaN"}'
    """
    return json.dumps({key: value if math.isfinite(value) else _not_finite(value) for key, value in row.items()})


def _not_finite(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def row_to_text(row: Mapping[str, float], keys: Sequence[str]) -> str:
    """Return step and values of a row as one line."""
    values = [f"{escape_controls(key)} {format_number(row[key])}" for key in keys if key in row]
    return "  ".join([f"step {row['step']:,.0f}", *values])


def summary_row(key: str, values: Sequence[float]) -> tuple[str, ...]:
    """Return the cells of a metric in the table of all metrics: last, lowest and highest value."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (math.nan, math.nan)
    return escape_controls(key), *(f"{format_number(number):>10}" for number in (values[-1], low, high))


def metrics_to_html(title: str, row: Mapping[str, float]) -> str:
    """Return the newest row as a small table for a notebook."""
    from skyrl_modal.views.notebook import escape, rows_to_html  # imported here, since only notebooks need it

    items = [(key, value) for key, value in row.items() if key not in ("step", "time")]
    table = rows_to_html((key, format_number(value)) for key, value in items[:_HTML_ROWS])
    more = f"<p>and {len(items) - _HTML_ROWS:,} more</p>" if len(items) > _HTML_ROWS else ""
    return f"<p>{escape(title)}</p>{table}{more}"
