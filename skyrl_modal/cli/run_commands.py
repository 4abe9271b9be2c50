"""Commands about runs that were started: output, end, cause of a failure."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from skyrl_modal.cli.base import attach_run, cli, parse_time, run_argument, verbose_option
from skyrl_modal.cli.notify import facts_of, find_notify_url, notify_option, report_results
from skyrl_modal.cli.output import print_line, print_rows, print_text, write_output
from skyrl_modal.errors import PathNotFound, SkyRLModalError, SpecError
from skyrl_modal.protocol.exit_codes import BROKEN_PIPE
from skyrl_modal.views.standard_streams import exit_when_output_is_closed
from skyrl_modal.views.text import StderrReporter, warnings_as_messages

if TYPE_CHECKING:
    from skyrl_modal.run.handle import Run
    from skyrl_modal.run.kept_logs import KeptLog
    from skyrl_modal.run.log_filter import LineFilter


@cli.command()
@click.option("--follow", "-f", is_flag=True, help="Continue until the run has ended.")
@click.option("--tail", "-n", type=click.IntRange(min=0), help="Number of existing lines to print.")
@click.option("--rank", type=int, help="Print the kept logs of this rank instead of the output.")
@click.option("--attempt", type=int, help="Print the kept logs of this attempt instead of the output.")
@click.option("--file", "pattern", metavar="PATTERN", help="Print the kept logs with such a name, as 'ray/*.err'.")
@click.option("--grep", metavar="PATTERN", help="Print the lines in which this regular expression of Python is found.")
@click.option("--since", metavar="TIME", help="Print the lines that were written since then: 10m, 2h, or 2026-01-31.")
@click.option("--timestamps", "-t", is_flag=True, help="Print the time in UTC, to a second, before each line.")
@click.option("--list", "is_list", is_flag=True, help="List the kept logs instead of printing them.")
@run_argument
def logs(
    follow: bool,
    tail: int | None,
    rank: int | None,
    attempt: int | None,
    pattern: str | None,
    grep: str | None,
    since: str | None,
    timestamps: bool,
    is_list: bool,
    run_id: str,
) -> None:
    """Print a run's output, byte for byte, or its kept logs. Ctrl-C does not stop the run."""
    is_kept = is_list or rank is not None or attempt is not None or pattern is not None
    if is_kept and (since is not None or timestamps):
        raise click.UsageError("only the times of the output are recorded; omit --since and --timestamps")
    wanted = _line_filter(grep, since, tail, timestamps=timestamps)
    run = attach_run(run_id)
    if is_list or attempt is not None or pattern is not None:
        if follow:
            raise click.UsageError("--follow prints the output; omit --list, --attempt and --file")
        kept = run.kept_logs(rank=rank, attempt=attempt, pattern=pattern or "*")
        if is_list:
            rows = [(str(log.rank), f"{log.size:>11,}", log.title) for log in kept]
            print_rows(("rank", "bytes".rjust(11), "file"), rows)
            return
        pieces = _read_kept_logs(kept, tail if wanted is None else None)
    elif wanted is None or rank is not None:
        pieces = run.log_bytes(follow, tail if wanted is None else None, rank=rank)
    else:
        pieces = run.log_bytes(follow)
    if wanted is not None:
        pieces = _select_lines(run, pieces, wanted, follow=follow, is_output=not is_kept)
    if follow:
        exit_when_output_is_closed(BROKEN_PIPE)
    with warnings_as_messages(), _run_continues(run) if follow else contextlib.nullcontext():
        for data in pieces:
            write_output(data)


def _line_filter(grep: str | None, since: str | None, tail: int | None, *, timestamps: bool) -> LineFilter | None:
    """Return which lines are requested; None for all of them as they are."""
    if grep is None and since is None and not timestamps:
        return None
    from skyrl_modal.run.log_filter import LineFilter, compile_pattern

    return LineFilter(
        pattern=None if grep is None else compile_pattern(grep),
        since=None if since is None else parse_time(since).timestamp(),
        tail=tail,
        has_timestamps=timestamps,
    )


def _select_lines(
    run: Run, pieces: Iterator[bytes], wanted: LineFilter, *, follow: bool, is_output: bool
) -> Iterator[bytes]:
    import math
    import time

    from skyrl_modal.run.log_filter import OutputIndex, read_times, select_lines

    if not is_output:
        return select_lines(pieces, wanted, OutputIndex((), ()))
    times = read_times(run._execution) if wanted.since is not None or wanted.has_timestamps else OutputIndex((), ())
    is_active = not run.state.is_final
    if wanted.since is not None and not times.positions and not is_active:
        raise SpecError("since", None, "the run has not recorded the times of its output", source=f"run {run.id}")
    end = run._execution.log_size() if follow and is_active else math.inf
    return select_lines(pieces, wanted, times, end=end, now=time.time if follow and is_active else None)


def _read_kept_logs(kept: Sequence[KeptLog], tail: int | None) -> Iterator[bytes]:
    from skyrl_modal.run.kept_logs import read_logs

    if not kept:
        raise PathNotFound("no kept log matches; --list shows those that exist")
    return read_logs(kept, tail)


@contextlib.contextmanager
def _run_continues(run: Run) -> Iterator[None]:
    """Report at Ctrl-C that the run continues, and how it is stopped."""
    try:
        yield
    except KeyboardInterrupt:
        StderrReporter().info(
            f"the run {run.id} continues: `skyrl-modal attach {run.id}` shows it again, and "
            f"`skyrl-modal cancel {run.id}` stops it"
        )
        raise


@cli.command(params=[verbose_option()])
@notify_option
@run_argument
def attach(verbose: bool, notify: str | None, run_id: str) -> None:
    """Show a run's output from beginning to end, and exit with its exit code. Ctrl-C does not stop the run."""
    from skyrl_modal.run.foreground import report_end, show_events
    from skyrl_modal.run.output_sink import open_sink
    from skyrl_modal.views.waiting import WaitingDisplay

    url, run = find_notify_url(notify), attach_run(run_id)
    reporter = StderrReporter()
    with _run_continues(run), WaitingDisplay(reporter, is_verbose=verbose) as display:
        display.begin("waiting for output", is_command=True)
        display.watch(run._execution)
        show_events(run, open_sink(None, display), display)
        result = run.wait()
    report_end(result, reporter)
    report_results(url, [(result, facts_of(run.job))])
    sys.exit(result.returncode)


@cli.command()
@click.option("--timeout", type=float, help="Seconds to wait at most. The run continues.")
@notify_option
@run_argument
def wait(timeout: float | None, notify: str | None, run_id: str) -> None:
    """Wait for the end of a run, and exit with its exit code. Ctrl-C does not stop the run."""
    from skyrl_modal.run.foreground import report_end

    url, run = find_notify_url(notify), attach_run(run_id)
    with _run_continues(run):
        result = run.wait(timeout)
    report_end(result, StderrReporter())
    report_results(url, [(result, facts_of(run.job))])
    sys.exit(result.returncode)


@cli.command()
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@run_argument
def why(is_json: bool, run_id: str) -> None:
    """Show why a run failed: cause, lines of its logs, and remedy. A run that succeeded has no diagnosis."""
    from skyrl_modal.views.diagnosis import diagnosis_to_json, format_diagnosis

    diagnosis = attach_run(run_id).result(0).diagnosis
    if is_json:
        print_line(diagnosis_to_json(diagnosis))
    else:
        print_text("the run succeeded" if diagnosis is None else format_diagnosis(diagnosis))


@cli.command()
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@run_argument
def checkpoints(is_json: bool, run_id: str) -> None:
    """List the checkpoints in a run's folders: which are complete, and what the others lack."""
    from skyrl_modal.views.checkpoints import checkpoint_rows, checkpoints_to_json

    run = attach_run(run_id)
    found = run.checkpoints()
    if is_json:
        print_line(checkpoints_to_json(found))
        return
    if not run.job.checkpoint_folders:
        StderrReporter().info(f"it is not known to which folder on a volume the run {run.id} writes checkpoints")
    headings: tuple[str, ...] = ("step", "complete", "bytes".rjust(18), "path", "missing")
    rows = checkpoint_rows(found)
    if sys.stdout is not None and sys.stdout.isatty() and not any(row[-1] for row in rows):
        headings, rows = headings[:-1], [row[:-1] for row in rows]  # the column would take space from the paths
    print_rows(headings, rows)


@cli.command()
@click.option("--now", is_flag=True, help="Kill it immediately, without a grace period.")
@run_argument
def cancel(now: bool, run_id: str) -> None:
    """Stop a run. Its grace period begins; `wait` waits for its end."""
    from skyrl_modal.run.foreground import report_end

    run = attach_run(run_id)
    reporter = StderrReporter()
    result = None
    with contextlib.suppress(SkyRLModalError):  # it has not ended, or its state cannot be read: it is requested to stop
        result = run.result(0)
    if result is not None:
        reporter.info(f"the run {run.id} has ended already")
        report_end(result, reporter)
        return
    run.cancel(now=now)
    reporter.info(f"the run {run.id} was requested to stop: `skyrl-modal wait {run.id}` waits for its end")
