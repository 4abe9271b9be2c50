"""Commands that start runs, or plan them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

import click

from skyrl_modal.cli.base import LauncherCommand, cli, make_launcher, run_argument, verbose_option
from skyrl_modal.cli.confirm import confirm_cost, find_limit
from skyrl_modal.cli.notify import find_notify_url, notify_option, report_results
from skyrl_modal.cli.output import print_error, print_line, print_rows, print_text
from skyrl_modal.errors import SpecError, StorageError
from skyrl_modal.views.text import StderrReporter, warnings_as_messages

if TYPE_CHECKING:
    from skyrl_modal.launcher import Launcher
    from skyrl_modal.run.result import RunResult


def _to_command(arguments: Sequence[str]) -> str | list[str]:
    """Return a single argument as a shell string, and several as a list of arguments."""
    return arguments[0] if len(arguments) == 1 else list(arguments)


def _start_options(command: click.Command) -> click.Command:
    """Add the options of the commands that start runs."""
    if command.name != "map":
        command.params = [verbose_option(), *command.params]
    fix = click.Option(["--fix"], is_flag=True, help="Append the key=value arguments that remove findings.")
    strict = click.Option(["--strict"], is_flag=True, help="Refuse a command with a finding that is an error.")
    yes = click.Option(["--yes", "-y", "is_confirmed"], is_flag=True, help="Do not ask, whatever the run costs.")
    command.params = [fix, strict, yes, *command.params]
    return command


def _refuse_interactive(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        text = "standard input and the terminal are not forwarded to the command. Pass what it asks for as arguments, "
        raise click.UsageError(f"{text}as variables (--env), or in a file of the checkout, and omit -i")


@_start_options
@cli.command(cls=LauncherCommand)
@click.option(
    "-i", "--interactive", "-t", "--tty", is_flag=True, hidden=True, expose_value=False, callback=_refuse_interactive
)
@click.option("--quiet", "-q", is_flag=True, help="Suppress the launcher's own messages, except for errors.")
@notify_option
@click.argument("command", nargs=-1, required=True)
def run(
    quiet: bool,
    verbose: bool,
    strict: bool,
    fix: bool,
    is_confirmed: bool,
    notify: str | None,
    command: Sequence[str],
    **options: Any,
) -> None:
    """Run COMMAND and exit with its exit code. A single argument is a shell string; several, after --, are quoted."""
    launcher = make_launcher(options)
    url = find_notify_url(notify)
    confirm_cost(launcher, _to_command(command), is_confirmed=is_confirmed)
    result = launcher.run(_to_command(command), quiet=quiet, verbose=verbose, strict=strict, fix=fix)
    _end(result, launcher, " ".join(command), url, quiet=quiet)


def _end(result: RunResult, launcher: Launcher, command: str, url: str | None, *, quiet: bool) -> NoReturn:
    """Report the end of a run, and exit with its exit code."""
    from skyrl_modal.protocol.state import FailureCause, RunState

    report_results(url, [(result, {"command": command, "name": launcher.name, "tags": list(launcher.tags)})])
    is_own = result.cause in (None, FailureCause.COMMAND_FAILED)
    if quiet and not is_own and result.state in (RunState.FAILED, RunState.LOST, RunState.OVER_BUDGET):
        # The exit code, such as 125, would not explain itself: the command has printed nothing about it.
        print_error(result.detail or f"the run failed: {result.cause}")
    sys.exit(result.returncode)


@cli.command(cls=LauncherCommand)
@click.option("--check", is_flag=True, help="Ask the backend too, and exit with 1 if a finding is an error.")
@click.option("--files", is_flag=True, help="Also print the largest files, and what is excluded by which rule.")
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.argument("command", nargs=-1, required=True)
def plan(check: bool, files: bool, is_json: bool, command: Sequence[str], **options: Any) -> None:
    """Show where COMMAND would run and with which files. Nothing is started."""
    launcher = make_launcher(options)
    find_notify_url(None)  # as for a run, which would refuse an invalid value
    find_limit()
    made = launcher.plan(_to_command(command), check=check)
    if is_json:
        print_line(made.to_json())
    else:
        print_text(str(made), has_labels=True)
        for selection in made.selections if files else ():
            print_line()
            print_line(selection)
    if check:
        from skyrl_modal.findings import Severity

        sys.exit(1 if any(finding.severity is Severity.ERROR for finding in made.findings) else 0)


@_start_options
@cli.command(cls=LauncherCommand)
@click.argument("command", nargs=-1, required=True)
def submit(verbose: bool, strict: bool, fix: bool, is_confirmed: bool, command: Sequence[str], **options: Any) -> None:
    """Start COMMAND and print the run's id. The run continues after this program exits."""
    from skyrl_modal import launching

    launcher = make_launcher(options)
    confirm_cost(launcher, _to_command(command), is_confirmed=is_confirmed)
    with launching.open_display(StderrReporter(), is_verbose=verbose) as display:
        start = launching.StartOptions(strict=strict, fix=fix)
        run = launching.submit(launcher, _to_command(command), options=start, display=display)
    try:
        print_line(run.id)
    except (StorageError, BrokenPipeError):
        StderrReporter().info(f"the run {run.id} was started")
        raise
    StderrReporter().info(f"the run continues: `skyrl-modal attach {run.id}` shows it, and cancel stops it")


@_start_options
@cli.command()
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Replace or add this override. Can be repeated."
)
@click.option("--name", help="Name of the new run. Default: that of the earlier one.")
@click.option("--quiet", "-q", is_flag=True, help="Suppress the launcher's own messages, except for errors.")
@notify_option
@run_argument
def rerun(
    overrides: Sequence[str],
    name: str | None,
    quiet: bool,
    verbose: bool,
    strict: bool,
    fix: bool,
    is_confirmed: bool,
    notify: str | None,
    run_id: str,
) -> None:
    """Run the command of an earlier run again, with the same settings, and exit with its exit code.

    The files are those that the checkout has now; a warning reports whether they differ. With --set, the command gets
    another value of an override, if it is proved that the value reaches the trainer.
    """
    from skyrl_modal.declaration import evolve
    from skyrl_modal.launcher import Launcher

    pairs, url = dict(map(_parse_override, overrides)), find_notify_url(notify)
    with warnings_as_messages():
        launcher, command = Launcher.from_run(run_id)
        if name is not None:
            launcher = evolve(launcher, name=name)
        if pairs:
            command = launcher.plan(command).command_with(pairs)
    confirm_cost(launcher, command, is_confirmed=is_confirmed)
    result = launcher.run(command, quiet=quiet, verbose=verbose, strict=strict, fix=fix)
    _end(result, launcher, command, url, quiet=quiet)


def _parse_override(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.UsageError(f"--set requires KEY=VALUE, not {text!r}")
    return key, value


@_start_options
@cli.command("map", cls=LauncherCommand)
@click.option("--max-parallel", type=click.IntRange(min=1), help="Number of commands that may run at the same time.")
@click.option("--quiet", "-q", is_flag=True, help="Suppress the progress.")
@click.option("--json", "is_json", is_flag=True, help="Print the results as JSON.")
@notify_option
@click.argument("file", type=click.File("rb"))
def map_command(
    max_parallel: int | None,
    quiet: bool,
    is_json: bool,
    strict: bool,
    fix: bool,
    is_confirmed: bool,
    notify: str | None,
    file: BinaryIO,
    **options: Any,
) -> None:
    """Run the commands in FILE, one on each line, several at the same time. FILE can be -, for standard input.

    Empty lines, and lines that begin with #, are skipped. A failure does not stop the others. The exit code is 0 if
    all commands succeeded, and otherwise 1.
    """
    commands = _read_commands(file)
    names = None if sys.stderr is not None and sys.stderr.isatty() else [f"line {line}" for line, _ in commands]
    launcher = make_launcher(options)
    url = find_notify_url(notify)
    texts = [command for _, command in commands]
    confirm_cost(launcher, texts[0], is_confirmed=is_confirmed, parallel=min(len(texts), max_parallel or len(texts)))
    results = launcher.map(texts, max_parallel=max_parallel, names=names, quiet=quiet, strict=strict, fix=fix)
    facts = {"name": launcher.name, "tags": list(launcher.tags)}
    report_results(url, [(one, {"command": text, **facts}) for text, one in zip(texts, results, strict=True)])
    if is_json:
        from skyrl_modal.run.result import result_to_json

        rows = [{"command": text, **result_to_json(one)} for text, one in zip(texts, results, strict=True)]
        print_line(json.dumps(rows, indent=2))
    else:
        cells = [
            (one.run_id or "-", one.state, str(one.returncode), f"{one.duration:.1f} s", text)
            for text, one in zip(texts, results, strict=True)
        ]
        print_rows(("run", "state", "exit code", "duration", "command"), cells)
    sys.exit(0 if all(one.succeeded for one in results) else 1)


def _read_commands(file: BinaryIO) -> list[tuple[int, str]]:
    """Return the commands of a file, each with the number of its line."""
    try:
        lines = file.read().decode().splitlines()
    except UnicodeDecodeError as error:
        raise SpecError("file", file.name, f"it is not UTF-8 (byte {error.start})") from None
    found = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    commands = [(number, line) for number, line in found if line and not line.startswith("#")]
    if not commands:
        raise SpecError("file", file.name, "it has no command")
    return commands
