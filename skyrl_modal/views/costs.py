"""Costs of runs as rows and as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from skyrl_modal.views.money import format_money
from skyrl_modal.views.text import first_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from skyrl_modal.run.spending import RunSpending, SpendingGroup

#: Length of a command in a list.
_COMMAND_LENGTH = 80


def run_rows(items: Sequence[RunSpending]) -> list[tuple[str, ...]]:
    """Return a row for each run: id, cost, state, backend, tags and command."""
    return [
        (
            item.run.id,
            format_money(item.cost),
            item.state,
            item.run.backend,
            ",".join(item.run.job.tags) or "-",
            first_line(item.run.job.command, _COMMAND_LENGTH),
        )
        for item in items
    ]


def group_rows(groups: Sequence[SpendingGroup]) -> list[tuple[str, ...]]:
    """Return a row for each group: key, cost and number of runs."""
    return [(group.key, format_money(group.cost), _describe_runs(group)) for group in groups]


def _describe_runs(group: SpendingGroup) -> str:
    return f"{group.runs:,}" if not group.unknown else f"{group.runs:,}, of which {group.unknown:,} unknown"


def costs_to_json(items: Sequence[RunSpending], groups: Sequence[SpendingGroup] | None, total: SpendingGroup) -> str:
    """Return the costs as JSON: the runs, or the groups if there are any, and the total. Amounts are US dollars."""
    values: dict[str, object] = {"total": total.cost, "runs": total.runs, "unknown": total.unknown}
    if groups is not None:
        values["groups"] = [
            {"key": group.key, "cost": group.cost, "runs": group.runs, "unknown": group.unknown} for group in groups
        ]
    else:
        values["costs"] = [
            {
                "run_id": item.run.id,
                "cost": item.cost,
                "state": item.state,
                "backend": item.run.backend,
                "name": item.run.job.name,
                "tags": list(item.run.job.tags),
                "command": item.run.job.command,
                "created_at": item.run.job.created_at,
                "rate": None if item.run.job.rate is None else item.run.job.rate.per_hour,
            }
            for item in items
        ]
    return json.dumps(values, indent=2)
