"""The command that shows rollouts."""

from __future__ import annotations

import click

from skyrl_modal.cli.base import attach_run, cli, run_argument
from skyrl_modal.cli.output import print_line
from skyrl_modal.views.text import StderrReporter

#: Rollouts that are printed without ``--best``, ``--worst``, ``--all`` or ``--json``, and characters of a message.
_SHOWN, _CHARACTERS = 8, 2_000


@cli.command()
@click.option("--step", type=click.IntRange(0), metavar="N", help="Show only those of this step.")
@click.option("--best", type=click.IntRange(0), metavar="N", help="Show so many with the highest rewards.")
@click.option("--worst", type=click.IntRange(0), metavar="N", help="Show so many with the lowest rewards.")
@click.option("--source", help="Show only these: train, eval, eval/NAME, printed or file.")
@click.option("--path", help="Read this file or folder of a volume instead: lines of JSON with rollouts.")
@click.option("--all", "is_all", is_flag=True, help="Show all of them, with complete texts.")
@click.option("--json", "is_json", is_flag=True, help="Print a line of JSON for each rollout.")
@run_argument
def rollouts(
    step: int | None,
    best: int | None,
    worst: int | None,
    source: str | None,
    path: str | None,
    is_all: bool,
    is_json: bool,
    run_id: str,
) -> None:
    """Show prompts, responses and rewards of a run. Without options: the newest ones."""
    from skyrl_modal.views.rollouts import rollout_to_json, rollout_to_text

    found = attach_run(run_id).rollouts(step, best, worst, source=source, path=path)
    reporter = StderrReporter()
    if is_json:
        for rollout in found:
            print_line(rollout_to_json(rollout))
    else:
        is_short = not is_all and best is None and worst is None
        for rollout in found[-_SHOWN:] if is_short else found:
            print_line(rollout_to_text(rollout, max_characters=None if is_all else _CHARACTERS))
        if is_short and len(found) > _SHOWN:
            options = "--all, --step, --best or --worst shows others"
            reporter.info(f"{len(found):,} rollouts, of which the newest {_SHOWN} are shown; {options}")
    if not found:
        reporter.info("there are no such rollouts, or not yet (docs/rollouts.md lists what is recorded)")
    if found.skipped:
        reporter.info(f"{found.skipped:,} lines or files could not be read")
    if found.left_out:
        reporter.info(f"{found.left_out:,} rollouts are left out, since there are too many: pass --step or --source")
