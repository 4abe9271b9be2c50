"""The commands: their options, arguments and help texts.

What a command does is imported in its function, so that `--help` and the other commands do not load it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from skyrl_modal.cli.output import print_error, print_line, print_rows, write_output
from skyrl_modal.errors import PathNotFound, StorageError
from skyrl_modal.protocol.exit_codes import BROKEN_PIPE, LAUNCHER_FAILED
from skyrl_modal.views.standard_streams import discard_standard_output, exit_when_output_is_closed
from skyrl_modal.views.text import StderrReporter, warnings_as_messages

if TYPE_CHECKING:
    from skyrl_modal.launcher import Launcher
    from skyrl_modal.run.handle import Run
    from skyrl_modal.run.kept_logs import KeptLog

#: Number of runs that ``ps`` lists without ``--all``.
_LISTED_RUNS = 20
#: Length of a command in the list of runs.
_LISTED_COMMAND_LENGTH = 80


class _LauncherCommand(click.Command):
    """A command with an option for each field of Launcher that has one, and further ones of its own."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return all options and arguments. The launcher, which has the help texts, is loaded where they are needed."""
        from skyrl_modal.cli.launcher_options import launcher_options

        return [*launcher_options(), *super().get_params(ctx)]


def _make_launcher(options: dict[str, Any]) -> Launcher:
    from skyrl_modal.cli.launcher_options import make_launcher

    return make_launcher(**options)


def _attach(run_id: str) -> Run:
    from skyrl_modal.run.handle import Run

    return Run.attach(run_id)


def _to_command(arguments: Sequence[str]) -> str | list[str]:
    """Return a single argument as a shell string, and several as a list of arguments."""
    return arguments[0] if len(arguments) == 1 else list(arguments)


def _start_options(command: click.Command) -> click.Command:
    """Add the options of the commands that start runs."""
    fix = click.Option(["--fix"], is_flag=True, help="Append the key=value arguments that remove findings.")
    strict = click.Option(["--strict"], is_flag=True, help="Refuse a command with a finding that is an error.")
    command.params = [fix, strict, *command.params]
    return command


class _CommandGroup(click.Group):
    """The commands. A reader that closes the output, as with ``| head``, ends them like any other program."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the requested command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            discard_standard_output()
            sys.exit(BROKEN_PIPE)


@click.group(cls=_CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="skyrl-modal")
def cli() -> None:
    """Run commands from a SkyRL checkout in Modal GPU containers, or on this machine at the same paths."""


@_start_options
@cli.command(cls=_LauncherCommand)
@click.option("--quiet", "-q", is_flag=True, help="Suppress the launcher's own messages, except for errors.")
@click.argument("command", nargs=-1, required=True)
def run(quiet: bool, strict: bool, fix: bool, command: Sequence[str], **options: Any) -> None:
    """Run COMMAND and exit with its exit code. A single argument is a shell string; several, after --, are quoted."""
    from skyrl_modal.protocol.state import FailureCause, RunState

    result = _make_launcher(options).run(_to_command(command), quiet=quiet, strict=strict, fix=fix)
    is_own = result.cause in (None, FailureCause.COMMAND_FAILED)
    if quiet and not is_own and result.state in (RunState.FAILED, RunState.LOST):
        # The exit code, such as 125, would not explain itself: the command has printed nothing about it.
        print_error(result.detail or f"the run failed: {result.cause}")
    sys.exit(result.returncode)


@cli.command(cls=_LauncherCommand)
@click.option("--check", is_flag=True, help="Ask the backend too, and exit with 1 if a finding is an error.")
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.argument("command", nargs=-1, required=True)
def plan(check: bool, is_json: bool, command: Sequence[str], **options: Any) -> None:
    """Show where COMMAND would run and with which files. Nothing is started."""
    made = _make_launcher(options).plan(_to_command(command), check=check)
    if is_json:
        print_line(made.to_json())
    else:
        print_line(made)
        for selection in made.selections:
            print_line()
            print_line(selection)
    if check:
        from skyrl_modal.findings import Severity

        sys.exit(1 if any(finding.severity is Severity.ERROR for finding in made.findings) else 0)


@_start_options
@cli.command(cls=_LauncherCommand)
@click.argument("command", nargs=-1, required=True)
def submit(strict: bool, fix: bool, command: Sequence[str], **options: Any) -> None:
    """Start COMMAND and print the run's id. The run continues after this program exits."""
    run = _make_launcher(options).submit(_to_command(command), strict=strict, fix=fix)
    try:
        print_line(run.id)
    except (StorageError, BrokenPipeError):
        StderrReporter().info(f"the run {run.id} was started")
        raise


@cli.command()
@click.option("--follow", "-f", is_flag=True, help="Continue until the run has ended.")
@click.option("--tail", "-n", type=click.IntRange(min=0), help="Number of existing lines to print.")
@click.option("--rank", type=int, help="Print the kept logs of this rank instead of the output.")
@click.option("--attempt", type=int, help="Print the kept logs of this attempt instead of the output.")
@click.option("--file", "pattern", metavar="PATTERN", help="Print the kept logs with such a name, as 'ray/*.err'.")
@click.option("--list", "is_list", is_flag=True, help="List the kept logs instead of printing them.")
@click.argument("run_id")
def logs(
    follow: bool,
    tail: int | None,
    rank: int | None,
    attempt: int | None,
    pattern: str | None,
    is_list: bool,
    run_id: str,
) -> None:
    """Print a run's output, byte for byte, or its kept logs. Ctrl-C does not stop the run."""
    run = _attach(run_id)
    if is_list or attempt is not None or pattern is not None:
        if follow:
            raise click.UsageError("--follow prints the output; omit --list, --attempt and --file")
        kept = run.kept_logs(rank=rank, attempt=attempt, pattern=pattern or "*")
        if is_list:
            rows = [(str(log.rank), f"{log.size:>11,}", log.title) for log in kept]
            print_rows(("rank", "bytes".rjust(11), "file"), rows)
            return
        pieces = _read_kept_logs(kept, tail)
    else:
        pieces = run.log_bytes(follow, tail, rank=rank)
    if follow:
        exit_when_output_is_closed(BROKEN_PIPE)
    with warnings_as_messages():
        for data in pieces:
            write_output(data)


def _read_kept_logs(kept: Sequence[KeptLog], tail: int | None) -> Iterator[bytes]:
    from skyrl_modal.run.kept_logs import read_logs

    if not kept:
        raise PathNotFound("no kept log matches; --list shows those that exist")
    return read_logs(kept, tail)


@cli.command()
@click.option("--all", "show_all", is_flag=True, help=f"List all runs instead of the newest {_LISTED_RUNS}.")
def ps(show_all: bool) -> None:
    """List the runs that were started from this machine, the newest first."""
    from skyrl_modal.run.handle import runs

    rows = [_describe_run(one) for one in runs(limit=None if show_all else _LISTED_RUNS)]
    print_rows(("run", "state", "backend", "name", "tags", "command"), rows)


def _describe_run(one: Run) -> tuple[str, ...]:
    """Return the cells of a run. An error about one run is printed, and does not affect the others."""
    from skyrl_modal.protocol.state import RunState

    reason = one.unavailable_reason
    state = RunState.UNKNOWN
    if reason is None:
        try:
            state = one.state
        except Exception as error:  # any error of a backend that another package may provide
            reason = str(error)
    if reason is not None:
        print_error(f"{one.id}: {reason}")
    command = (one.job.command.strip().splitlines() or [""])[0][:_LISTED_COMMAND_LENGTH]
    return one.id, state, one.backend, one.job.name or "-", ",".join(one.job.tags) or "-", command


@cli.command()
@click.argument("run_id")
def attach(run_id: str) -> None:
    """Show a run's output from beginning to end, and exit with its exit code. Ctrl-C does not stop the run."""
    from skyrl_modal.run.foreground import show_events
    from skyrl_modal.run.output_sink import open_sink

    run = _attach(run_id)
    reporter = StderrReporter()
    write = open_sink(None, reporter)
    show_events(run, write, reporter)
    sys.exit(run.wait().returncode)


@cli.command()
@click.option("--timeout", type=float, help="Seconds to wait at most. The run continues.")
@click.argument("run_id")
def wait(timeout: float | None, run_id: str) -> None:
    """Wait for the end of a run, and exit with its exit code."""
    from skyrl_modal.run.foreground import report_end

    result = _attach(run_id).wait(timeout)
    report_end(result, StderrReporter())
    sys.exit(result.returncode)


@cli.command()
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.argument("run_id")
def why(is_json: bool, run_id: str) -> None:
    """Show why a run failed: cause, lines of its logs, and remedy. A run that succeeded has no diagnosis."""
    from skyrl_modal.views.diagnosis import diagnosis_to_json, format_diagnosis

    diagnosis = _attach(run_id).result().diagnosis
    if is_json:
        print_line(diagnosis_to_json(diagnosis))
    else:
        print_line("the run succeeded" if diagnosis is None else format_diagnosis(diagnosis))


@cli.command()
@click.option("--now", is_flag=True, help="Kill it immediately, without a grace period.")
@click.argument("run_id")
def cancel(now: bool, run_id: str) -> None:
    """Stop a run."""
    _attach(run_id).cancel(now=now)


@cli.command(cls=_LauncherCommand)
@click.argument("path", default="/root/data")
def ls(path: str, **options: Any) -> None:
    """List a folder of a volume, by its path in the container."""
    entries = _make_launcher(options).ls(path)
    rows = [(entry.type, f"{entry.size:>14,}", entry.path) for entry in entries]
    print_rows(("type", "bytes".rjust(14), "path"), rows)


@cli.command(cls=_LauncherCommand)
@click.argument("path")
@click.argument("local", default=".")
def pull(path: str, local: str, **options: Any) -> None:
    """Copy PATH of a volume to LOCAL."""
    with warnings_as_messages():
        print_line(_make_launcher(options).pull(path, local))


@cli.command(cls=_LauncherCommand)
@click.argument("local")
@click.argument("path")
def push(local: str, path: str, **options: Any) -> None:
    """Copy LOCAL to PATH on a volume."""
    with warnings_as_messages():
        _make_launcher(options).push(local, path)


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
def doctor() -> None:
    """Check what is available on this machine, and how to get what is missing."""
    from skyrl_modal.doctor import run_checks

    checks = list(run_checks())
    rows = [("ok" if check.ok else "no", check.subject, check.detail) for check in checks]
    print_rows(("ok", "subject", "detail"), rows)
    sys.exit(0 if all(check.ok or check.optional for check in checks) else 1)
