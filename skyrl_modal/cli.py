"""The command line: parses options, calls Launcher and Run, and prints the results."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import click

from skyrl_modal.errors import SkyRLModalError, StorageError, translate_system_errors
from skyrl_modal.launcher import Launcher
from skyrl_modal.protocol.exit_codes import BROKEN_PIPE, INTERRUPTED, LAUNCHER_FAILED
from skyrl_modal.protocol.state import FailureCause, RunState
from skyrl_modal.run.cleanup import clean_up
from skyrl_modal.run.foreground import report_end, show_events
from skyrl_modal.run.handle import Run, runs
from skyrl_modal.run.output_sink import open_sink
from skyrl_modal.spec.fields import OPTION_HELP
from skyrl_modal.spec.mount import MountSpec
from skyrl_modal.spec.ray import RaySpec
from skyrl_modal.spec.secret import SecretSpec
from skyrl_modal.spec.volume import VolumeSpec
from skyrl_modal.views.standard_streams import (
    accept_any_text,
    discard_standard_output,
    exit_when_output_is_closed,
    open_missing_descriptors,
)
from skyrl_modal.views.text import StderrReporter, escape_controls, format_columns, warnings_as_messages

#: Number of runs that ``ps`` lists without ``--all``.
_LISTED_RUNS = 20
#: Length of a command in the list of runs.
_LISTED_COMMAND_LENGTH = 80


def _parse_pairs(values: Sequence[str], option: str) -> dict[str, str]:
    pairs = {}
    for value in values:
        name, equals, content = value.partition("=")
        if not equals:
            raise click.UsageError(f"{option} requires NAME=VALUE, not {value!r}")
        pairs[name] = content
    return pairs


def _field_option(field: str, flag: str | None = None, **settings: Any) -> Callable[..., Any]:
    """Return the option for a field of Launcher, with the help text of the field."""
    text = getattr(attrs.fields(Launcher), field).metadata[OPTION_HELP]
    return click.option(flag or f"--{field.replace('_', '-')}", field, help=text, **settings)


def _launcher_options(function: Callable[..., Any]) -> Callable[..., Any]:
    options = [
        _field_option("backend"),
        _field_option("gpu"),
        _field_option("nodes", type=int),
        _field_option("timeout"),
        _field_option("retries", type=int),
        _field_option("start_deadline"),
        _field_option("lease"),
        _field_option("workdir"),
        _field_option("checkout"),
        click.option(
            "--mount", multiple=True, metavar="PATH=FOLDER", help="A further folder, at PATH in the container."
        ),
        click.option("--volume", multiple=True, metavar="PATH=NAME", help="Volumes instead of /root/data=skyrl-data."),
        click.option("--env", multiple=True, metavar="NAME=VALUE", help="A variable for the command."),
        click.option(
            "--secret",
            multiple=True,
            metavar="NAME",
            help="A variable of your environment whose value is kept out of all records.",
        ),
        click.option(
            "--secret-if-set",
            multiple=True,
            metavar="NAME",
            help="As --secret, but the run starts without the variable if it is not set.",
        ),
        click.option("--ray/--no-ray", default=True, help="Whether Ray is running when the command starts."),
        click.option("--dashboard", is_flag=True, help="Also start Ray's dashboard."),
        _field_option("app_name"),
        _field_option("name"),
        _field_option("tags", "--tag", multiple=True, metavar="TAG"),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _make_launcher(**options: Any) -> Launcher:
    """Return the launcher for the values of ``_launcher_options``. An omitted option leaves the field's default."""
    mount, volume = options.pop("mount"), options.pop("volume")
    ray, dashboard = options.pop("ray"), options.pop("dashboard")
    env, secret, if_set = options.pop("env"), options.pop("secret"), options.pop("secret_if_set")
    optional = [SecretSpec(name, source="environment", optional=True) for name in if_set]
    fields = {name: value for name, value in options.items() if value is not None}
    if "gpu" in fields:
        fields["gpu"] = None if fields["gpu"].lower() == "none" else fields["gpu"].split(",")
    if mount:
        others = [
            MountSpec(remote_path=path, local_path=folder) for path, folder in _parse_pairs(mount, "--mount").items()
        ]
        fields["mounts"] = [MountSpec(), *others]
    if volume:
        pairs = _parse_pairs(volume, "--volume")
        fields["volumes"] = [VolumeSpec(mount_path=path, name=name) for path, name in pairs.items()]
    fields |= {"env": _parse_pairs(env, "--env"), "secrets": [*secret, *optional]}
    with warnings_as_messages():
        return Launcher(**fields, ray=RaySpec(dashboard=dashboard) if ray else None)


def _to_command(arguments: Sequence[str]) -> str | list[str]:
    """Return a single argument as a shell string, and several as a list of arguments."""
    return arguments[0] if len(arguments) == 1 else list(arguments)


def _print(text: object = "") -> None:
    """Print a line on standard output.

    Raises:
        BrokenPipeError: The reader has closed the pipe.
        StorageError: It cannot be written to, for example since its disk is full.
    """
    with _output_errors():
        click.echo(text)


def _write_output(data: bytes) -> None:
    """Write output of a command to standard output, unchanged and immediately. The errors are those of ``_print``."""
    if sys.stdout is not None:
        with _output_errors():
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()


@contextlib.contextmanager
def _output_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_standard_output()
        raise StorageError("standard output", error.strerror or str(error)) from error


def _print_rows(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on a terminal, and plain columns without headings to a pipe or a file."""
    if sys.stdout is not None and sys.stdout.isatty():
        from skyrl_modal.views.table import print_table  # imported here, since a pipe needs no table

        print_table(headings, rows)
    elif rows:
        _print(format_columns(rows))


def _print_error(text: str) -> None:
    """Print an error on standard error. If that fails, the exit code is all that remains."""
    with contextlib.suppress(OSError, ValueError):
        click.echo(f"skyrl-modal: {escape_controls(text, multiline=True)}", err=True)


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


@cli.command()
@_launcher_options
@click.option("--quiet", "-q", is_flag=True, help="Suppress the launcher's own messages, except for errors.")
@click.argument("command", nargs=-1, required=True)
def run(quiet: bool, command: Sequence[str], **options: Any) -> None:
    """Run COMMAND and exit with its exit code. A single argument is a shell string; several, after --, are quoted."""
    result = _make_launcher(**options).run(_to_command(command), quiet=quiet)
    is_own = result.cause in (None, FailureCause.COMMAND_FAILED)
    if quiet and not is_own and result.state in (RunState.FAILED, RunState.LOST):
        # The exit code, such as 125, would not explain itself: the command has printed nothing about it.
        _print_error(result.detail or f"the run failed: {result.cause}")
    sys.exit(result.returncode)


@cli.command()
@_launcher_options
@click.argument("command", nargs=-1, required=True)
def plan(command: Sequence[str], **options: Any) -> None:
    """Show where COMMAND would run and with which files. Nothing is started."""
    made = _make_launcher(**options).plan(_to_command(command))
    _print(made)
    for selection in made.selections:
        _print()
        _print(selection)


@cli.command()
@_launcher_options
@click.argument("command", nargs=-1, required=True)
def submit(command: Sequence[str], **options: Any) -> None:
    """Start COMMAND and print the run's id. The run continues after this program exits."""
    run = _make_launcher(**options).submit(_to_command(command))
    try:
        _print(run.id)
    except (StorageError, BrokenPipeError):
        StderrReporter().info(f"the run {run.id} was started")
        raise


@cli.command()
@click.option("--follow", "-f", is_flag=True, help="Continue until the run has ended.")
@click.option("--tail", "-n", type=click.IntRange(min=0), help="Number of existing lines to print.")
@click.option("--rank", type=int, help="Print the logs of this rank's supervisor and Ray instead of the output.")
@click.argument("run_id")
def logs(follow: bool, tail: int | None, rank: int | None, run_id: str) -> None:
    """Print a run's output, byte for byte. Ctrl-C does not stop the run."""
    run = Run.attach(run_id)
    if follow:
        exit_when_output_is_closed(BROKEN_PIPE)
    with warnings_as_messages():
        for data in run.log_bytes(follow, tail, rank=rank):
            _write_output(data)


@cli.command()
@click.option("--all", "show_all", is_flag=True, help=f"List all runs instead of the newest {_LISTED_RUNS}.")
def ps(show_all: bool) -> None:
    """List the runs that were started from this machine, the newest first."""
    rows = [_describe_run(one) for one in runs(limit=None if show_all else _LISTED_RUNS)]
    _print_rows(("run", "state", "backend", "name", "tags", "command"), rows)


def _describe_run(one: Run) -> tuple[str, ...]:
    """Return the cells of a run. An error about one run is printed, and does not affect the others."""
    reason = one.unavailable_reason
    state = RunState.UNKNOWN
    if reason is None:
        try:
            state = one.state
        except Exception as error:  # any error of a backend that another package may provide
            reason = str(error)
    if reason is not None:
        _print_error(f"{one.id}: {reason}")
    command = (one.job.command.strip().splitlines() or [""])[0][:_LISTED_COMMAND_LENGTH]
    return one.id, state, one.backend, one.job.name or "-", ",".join(one.job.tags) or "-", command


@cli.command()
@click.argument("run_id")
def attach(run_id: str) -> None:
    """Show a run's output from beginning to end, and exit with its exit code. Ctrl-C does not stop the run."""
    run = Run.attach(run_id)
    reporter = StderrReporter()
    write = open_sink(None, reporter)
    show_events(run, write, reporter)
    sys.exit(run.wait().returncode)


@cli.command()
@click.option("--timeout", type=float, help="Seconds to wait at most. The run continues.")
@click.argument("run_id")
def wait(timeout: float | None, run_id: str) -> None:
    """Wait for the end of a run, and exit with its exit code."""
    result = Run.attach(run_id).wait(timeout)
    report_end(result, StderrReporter())
    sys.exit(result.returncode)


@cli.command()
@click.option("--now", is_flag=True, help="Kill it immediately, without a grace period.")
@click.argument("run_id")
def cancel(now: bool, run_id: str) -> None:
    """Stop a run."""
    Run.attach(run_id).cancel(now=now)


@cli.command()
@_launcher_options
@click.argument("path", default="/root/data")
def ls(path: str, **options: Any) -> None:
    """List a folder of a volume, by its path in the container."""
    entries = _make_launcher(**options).ls(path)
    rows = [(entry.type, f"{entry.size:>14,}", entry.path) for entry in entries]
    _print_rows(("type", "bytes".rjust(14), "path"), rows)


@cli.command()
@_launcher_options
@click.argument("path")
@click.argument("local", default=".")
def pull(path: str, local: str, **options: Any) -> None:
    """Copy PATH of a volume to LOCAL."""
    with warnings_as_messages():
        _print(_make_launcher(**options).pull(path, local))


@cli.command()
@_launcher_options
@click.argument("local")
@click.argument("path")
def push(local: str, path: str, **options: Any) -> None:
    """Copy LOCAL to PATH on a volume."""
    with warnings_as_messages():
        _make_launcher(**options).push(local, path)


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
    report = clean_up(older_than=older_than, dry_run=dry_run)
    rows = [(entry.kind, f"{entry.number:>8,}", f"{entry.bytes:>18,}") for entry in report.removed]
    _print_rows(("would be removed" if dry_run else "removed", "number".rjust(8), "bytes".rjust(18)), rows)
    for text in report.kept:
        StderrReporter().info(text)
    for text in report.failures:
        _print_error(text)
    sys.exit(LAUNCHER_FAILED if report.failures else 0)


@cli.command()
def doctor() -> None:
    """Check what is available on this machine, and how to get what is missing."""
    from skyrl_modal.doctor import run_checks

    checks = list(run_checks())
    rows = [("ok" if check.ok else "no", check.subject, check.detail) for check in checks]
    _print_rows(("ok", "subject", "detail"), rows)
    sys.exit(0 if all(check.ok or check.optional for check in checks) else 1)


def main() -> None:
    """Run the command line. Print an error of the launcher as a message and exit with 125."""
    open_missing_descriptors()
    accept_any_text()
    sys.exit(_flush_output(_run_command_line()))


def _run_command_line() -> int:
    """Run the requested command and return the exit code."""
    try:
        with translate_system_errors():
            cli(standalone_mode=False)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0
    except click.ClickException as error:
        with contextlib.suppress(OSError):
            error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except SkyRLModalError as error:
        _print_error(str(error))
        return LAUNCHER_FAILED
    return 0


def _flush_output(exit_code: int) -> int:
    """Write what standard output has not written yet. Return the exit code: the given one, unless that was 0."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        discard_standard_output()
        return exit_code or BROKEN_PIPE
    except OSError as error:
        discard_standard_output()
        _print_error(f"standard output: {error.strerror}")
        return exit_code or LAUNCHER_FAILED
    return exit_code
