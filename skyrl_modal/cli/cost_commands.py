"""The command that shows what runs have cost."""

from __future__ import annotations

import sys

import click

from skyrl_modal.cli.base import cli
from skyrl_modal.cli.output import print_error, print_line, print_rows
from skyrl_modal.views.text import StderrReporter, fit_columns


@cli.command()
@click.option("--since", metavar="TIME", help="Runs started in this time, such as 7d, or since a day. Default: all.")
@click.option(
    "--by",
    type=click.Choice(["script", "tag", "name", "backend", "day"]),
    help="Show groups of runs instead of single ones.",
)
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
def cost(since: str | None, by: str | None, is_json: bool) -> None:
    """Show what the runs have cost that were started from this machine: an estimate, in US dollars."""
    from skyrl_modal.run.spending import find_spending, group_spending, total_spending
    from skyrl_modal.views.costs import costs_to_json, group_rows, run_rows

    items = find_spending(since)
    groups = None if by is None else group_spending(items, by)
    total = total_spending(items)
    for item in items:
        if item.reason is not None:
            print_error(f"{item.run.id}: {item.reason}")
    if is_json:
        print_line(costs_to_json(items, groups, total))
        return
    last = group_rows([total])
    if groups is not None:
        print_rows((by or "", "cost", "runs"), [*group_rows(groups), *last])
        return
    rows = run_rows(items)
    headings = ("run", "cost", "state", "backend", "tags", "command")
    if sys.stdout is not None and sys.stdout.isatty():
        rows.append((*last[0][:2], "-", "-", "-", ""))
        print_line(fit_columns([heading.upper() for heading in headings], rows, droppable=("BACKEND", "STATE")))
    else:
        print_rows(headings, [*rows, (*last[0][:2], "", "", "", "")])
    if total.unknown:
        StderrReporter().info(f"the cost of {total.unknown} runs is not known, and not included")
