"""Commands about what a training has logged."""

from __future__ import annotations

from collections.abc import Sequence

import click

from skyrl_modal.cli.base import attach_run, cli, run_argument
from skyrl_modal.protocol.exit_codes import BROKEN_PIPE
from skyrl_modal.views.standard_streams import exit_when_output_is_closed


@cli.command()
@click.option("--key", "-k", "keys", multiple=True, metavar="KEY", help="Show this metric. It can be repeated.")
@click.option("--follow", "-f", is_flag=True, help="Print a line for each step until the run has ended.")
@click.option("--json", "is_json", is_flag=True, help="Print a line of JSON for each step.")
@click.option("--path", help="Read this file of a volume instead: lines of JSON, such as metrics.jsonl.")
@run_argument
def metrics(keys: Sequence[str], follow: bool, is_json: bool, path: str | None, run_id: str) -> None:
    """Show the metrics that a run has logged: plots, and a table of their last values."""
    from skyrl_modal.cli.metrics import print_metrics

    found = attach_run(run_id).metrics(follow, path=path)
    if follow:
        exit_when_output_is_closed(BROKEN_PIPE)
    print_metrics(found, keys, follow=follow, is_json=is_json)
