"""Commands about this machine: what is installed, and what can be removed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click

from skyrl_modal.cli.base import attach_run, cli
from skyrl_modal.cli.output import print_error, print_line, print_rows
from skyrl_modal.protocol.codec import encode
from skyrl_modal.protocol.exit_codes import LAUNCHER_FAILED
from skyrl_modal.views.text import StderrReporter


@cli.command()
@click.option(
    "--older-than",
    metavar="DURATION",
    help="Keep snapshots that were used more recently, and also remove records of runs that are older, such as 30d.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be removed, and remove nothing.")
def clean(older_than: str | None, dry_run: bool) -> None:
    """Remove what is not needed any more from this machine.

    Snapshots, scratch folders of runs that were killed, half-written files, and with --older-than records of runs.
    Volumes, results and logs are kept, and so is everything that is in use.
    """
    from skyrl_modal.run.cleanup import clean_up

    report = clean_up(older_than=older_than, dry_run=dry_run)
    rows = [(entry.kind, f"{entry.number:>8,}", f"{entry.bytes:>18,}") for entry in report.removed]
    print_rows(("would be removed" if dry_run else "removed", "number".rjust(8), "bytes".rjust(18)), rows)
    for text in report.kept:
        StderrReporter().info(text)
    for text in report.failures:
        print_error(text)
    sys.exit(LAUNCHER_FAILED if report.failures else 0)


@cli.command()
@click.option("--backend", help="The backend to use. Default: $SKYRL_MODAL_BACKEND; without it, none is required.")
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.option(
    "--bundle",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Also write a .tar.gz for a bug report, without secrets: checks, versions, variables.",
)
@click.option("--run", "run_id", metavar="RUN", help="Include the records and logs of this run in the archive.")
def doctor(backend: str | None, is_json: bool, bundle: Path | None, run_id: str | None) -> None:
    """Check what is available on this machine, and how to get what is missing.

    Exit with 1 if something that every run needs is missing, or something that the backend needs.
    """
    from skyrl_modal.doctor import run_checks

    if run_id is not None and bundle is None:
        raise click.UsageError("--run is for the archive; add --bundle FILE")
    checks = list(run_checks(backend or os.environ.get("SKYRL_MODAL_BACKEND")))
    if bundle is not None:
        from skyrl_modal.support_archive import write_support_archive

        names = write_support_archive(bundle, checks, None if run_id is None else attach_run(run_id))
        StderrReporter().info(f"wrote {bundle}: {', '.join(names)}. Look at it before you send it")
    if is_json:
        print_line(json.dumps([encode(check) for check in checks], indent=2))
        sys.exit(0 if all(check.ok or check.optional for check in checks) else 1)
    rows = [("ok" if check.ok else "no", check.subject, check.detail) for check in checks]
    print_rows(("ok", "subject", "detail"), rows)
    sys.exit(0 if all(check.ok or check.optional for check in checks) else 1)
