"""The list of runs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from skyrl_modal.cli.base import cli, parse_time
from skyrl_modal.cli.output import print_error, print_line
from skyrl_modal.protocol.state import RunState
from skyrl_modal.views.colors import STATE_COLORS, has_colors
from skyrl_modal.views.text import first_line, fit_columns, format_columns, warnings_as_messages

if TYPE_CHECKING:
    from skyrl_modal.run.listing import RunFilter, RunSummary

#: Number of runs that are listed without ``--limit``.
_LISTED_RUNS = 20
#: Length of a command in the list.
_COMMAND_LENGTH = 80
#: Seconds between two lists with ``--watch``.
_WATCH_INTERVAL = 2.0
_CLEAR_SCREEN = "\x1b[H\x1b[2J\x1b[3J"
#: Columns that a narrow terminal does not have, in the order in which they are left out.
_DROPPABLE = ("NODES", "GPU", "COST", "STARTED")
_HEADINGS = ("RUN", "NAME", "STATE", "EXIT", "STARTED", "DURATION", "GPU", "NODES", "COST", "COMMAND")


@cli.command()
@click.option(
    "--state",
    "states",
    multiple=True,
    metavar="STATE",
    type=click.Choice([str(state) for state in RunState]),
    help="List runs in this state, such as running or failed. Can be repeated.",
)
@click.option("--since", metavar="TIME", help="List runs that were created since then: 2h, 7d, or 2026-01-31.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="List runs with this tag.")
@click.option("--backend", metavar="NAME", help="List runs of this backend; with --volume, the backend that has it.")
@click.option("--limit", type=click.IntRange(min=1), default=_LISTED_RUNS, help="List this number of runs at most.")
@click.option("--all", "show_all", is_flag=True, help=f"List all runs instead of the newest {_LISTED_RUNS}.")
@click.option("--volume", metavar="NAME", help="List runs with records on a volume, also of other machines.")
@click.option("--watch", is_flag=True, help="Show the list again every 2 seconds, until Ctrl-C.")
@click.option("--json", "is_json", is_flag=True, help="Print a JSON array, the newest run first.")
def ps(
    states: Sequence[str],
    since: str | None,
    tags: Sequence[str],
    backend: str | None,
    limit: int,
    show_all: bool,
    volume: str | None,
    watch: bool,
    is_json: bool,
) -> None:
    """List the runs that were started from this machine, the newest first."""
    from skyrl_modal.run.listing import RunFilter

    wanted = RunFilter(
        states=tuple(map(RunState, states)),
        since=None if since is None else parse_time(since),
        tags=tags,
        backend=backend,
        limit=None if show_all else limit,
    )
    if not watch:
        _show(_find(wanted, volume), is_json=is_json)
        return
    if is_json or sys.stdout is None or not sys.stdout.isatty():
        raise click.UsageError("--watch requires a terminal, and does not print JSON")
    while True:
        found = _find(wanted, volume)
        print_line(_CLEAR_SCREEN)
        _show(found, is_json=False)
        time.sleep(_WATCH_INTERVAL)


def _find(wanted: RunFilter, volume: str | None) -> list[RunSummary]:
    from skyrl_modal.run.listing import list_runs, list_runs_on_volume

    with warnings_as_messages():
        if volume is None:
            return list_runs(wanted)
        backend = wanted.backend
        if backend is None:
            from skyrl_modal.cli.launcher_options import configuration  # loads the launcher

            configured = configuration({}).values.get("backend")
            backend = "modal" if configured is None else str(configured.value)
        return list_runs_on_volume(backend, volume, wanted)


def _show(found: Sequence[RunSummary], *, is_json: bool) -> None:
    _report_unreachable(found)
    if is_json:
        print_line(json.dumps([one.to_json() for one in found], indent=2))
    else:
        rows = [_cells(one) for one in found]
        is_terminal = sys.stdout is not None and sys.stdout.isatty()
        colors = STATE_COLORS if has_colors(sys.stdout) else None
        print_line(
            fit_columns(_HEADINGS, rows, droppable=_DROPPABLE, colors=colors)
            if is_terminal
            else format_columns([_HEADINGS, *rows], colors)
        )


def _report_unreachable(found: Sequence[RunSummary]) -> None:
    """Print one line for each reason for which the state of runs is not known."""
    runs_of: dict[tuple[str, str], list[str]] = {}
    for one in found:
        if one.unavailable_reason is not None:
            runs_of.setdefault((one.backend, one.unavailable_reason), []).append(one.run_id)
    for (backend, reason), ids in runs_of.items():
        subject = ids[0] if len(ids) == 1 else f"{len(ids)} runs on {backend}"
        print_error(f"{subject}: {' '.join(reason.split())}")


def _cells(one: RunSummary) -> tuple[str, ...]:
    from datetime import datetime

    from skyrl_modal.views.money import format_money

    begin = datetime.fromisoformat(one.started_at or one.created_at).astimezone()
    return (
        one.run_id,
        one.name or "-",
        one.state,
        "-" if one.returncode is None else str(one.returncode),
        f"{begin:%Y-%m-%d %H:%M}",
        "-" if one.duration is None else _short_duration(one.duration),
        " or ".join(one.gpu) or "-",
        str(one.nodes),
        "-" if one.cost == 0 else format_money(one.cost),
        first_line(one.command, _COMMAND_LENGTH),
    )


def _short_duration(seconds: float) -> str:
    """Return a duration with its two largest units.

    Example:
        >>> _short_duration(5.24), _short_duration(3725), _short_duration(200_000)
        ('5.2s', '1h02m', '2d07h')
    """
    if seconds < 60:
        return f"{max(seconds, 0):.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02}h"
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"
