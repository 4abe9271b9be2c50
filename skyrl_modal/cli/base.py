"""What the commands share: the group, commands with the options of a launcher, and the run with an id."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from skyrl_modal.errors import SpecError
from skyrl_modal.protocol.exit_codes import BROKEN_PIPE
from skyrl_modal.views.colors import BOLD, has_colors, paint
from skyrl_modal.views.standard_streams import discard_standard_output

if TYPE_CHECKING:
    from datetime import datetime

    from skyrl_modal.launcher import Launcher
    from skyrl_modal.run.handle import Run


#: Number of runs that are offered for completion, from the newest one.
_COMPLETED_RUNS = 100


class _HelpFormatter(click.HelpFormatter):
    """Writes help texts, with bold headings where there are colors."""

    def write_heading(self, heading: str) -> None:
        """Write a heading."""
        bold = paint(f"{heading}:", BOLD) if has_colors(sys.stdout) else f"{heading}:"
        self.write(f"{'':>{self.current_indent}}{bold}\n")


class _Context(click.Context):
    """The context of a command."""

    formatter_class = _HelpFormatter


class Command(click.Command):
    """A command whose errors name the option or argument with the invalid value."""

    context_class = _Context

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except SpecError as error:
            raise self._located(error, ctx) from None

    def _located(self, error: SpecError, ctx: click.Context) -> SpecError:
        """Return an error that names where its value was passed, if that is known."""
        if error.source:
            return error
        for parameter in self.params:
            if parameter.name == error.field:
                name = parameter.opts[0] if isinstance(parameter, click.Option) else error.field.upper()
                return error.located(f"{name} {error.value!r}")
        return error.located()


class LauncherCommand(Command):
    """A command with an option for each setting of the launcher, and further ones of its own."""

    #: The settings that have options; empty for all.
    settings: tuple[str, ...] = ()

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return all options and arguments. The launcher, which has the help texts, is loaded where they are needed."""
        from skyrl_modal.cli.launcher_options import launcher_options

        return [*super().get_params(ctx), *launcher_options(self.settings)]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options, then those of the launcher below headings."""
        headings = ("Options", "Hardware", "Limits", "Files", "Environment", "Names")
        sections: dict[str, list[tuple[str, str]]] = {heading: [] for heading in headings}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                sections.setdefault(getattr(parameter, "section", "Options"), []).append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)

    def _located(self, error: SpecError, ctx: click.Context) -> SpecError:
        from skyrl_modal.cli.launcher_options import located

        return super()._located(located(error, ctx), ctx)


class VolumeCommand(LauncherCommand):
    """A command about the files of volumes."""

    settings = ("backend", "volumes", "buckets")


class CommandGroup(click.Group):
    """The commands. A reader that closes the output, as with ``| head``, ends them like any other program."""

    command_class = Command
    context_class = _Context

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the requested command. Earlier versions of click do not name the nearest one for an unknown name."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            from difflib import get_close_matches  # imported here, since it is needed for errors only

            near = get_close_matches(name, list(self.commands), n=1)
            ctx.fail(f"No such command {name!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, each with the whole first sentence of its help text, which click would cut."""
        rows = [(name, self.commands[name].get_short_help_str(formatter.width * 4)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the requested command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            discard_standard_output()
            sys.exit(BROKEN_PIPE)


def make_launcher(options: Mapping[str, Any]) -> Launcher:
    """Return the launcher for the values of its options, the environment and the configuration files."""
    from skyrl_modal.cli.launcher_options import make_launcher as make

    return make(options)


def attach_run(run_id: str) -> Run:
    """Return the run with an id."""
    from skyrl_modal.run.handle import Run

    return Run.attach(run_id)


def parse_time(text: str) -> datetime:
    """Return a time in UTC: a duration before now, or a date, with or without the time of day."""
    from datetime import UTC, datetime, timedelta

    from skyrl_modal.spec.duration import parse_duration

    try:
        return datetime.now(UTC) - timedelta(seconds=parse_duration(text, name="since"))
    except (SpecError, OverflowError):
        try:
            return datetime.fromisoformat(text).astimezone(UTC)
        except (ValueError, OverflowError):
            raise SpecError("since", text, "pass a duration such as 2h or 7d, or a date such as 2026-01-31") from None


def complete_run(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the ids and the names of runs that begin with a text, for completion by the shell."""
    from itertools import islice

    from skyrl_modal.run.index import LATEST, RunIndex

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a warning would be displayed in the command line that is typed
        jobs = [record.job for record in islice(RunIndex().newest_first(), _COMPLETED_RUNS)]
    texts = [LATEST, *(job.run_id for job in jobs), *(job.name for job in jobs if job.name is not None)]
    return [text for text in dict.fromkeys(texts) if text.startswith(incomplete)]


#: The argument of commands about a run.
run_argument = click.argument("run_id", metavar="RUN", shell_complete=complete_run)


def verbose_option() -> click.Option:
    """Return the option of commands that wait for a run."""
    text = "Print what happens before the command runs as lines: each phase, and the build of the image."
    return click.Option(["--verbose", "-v"], is_flag=True, help=text)


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="skyrl-modal")
def cli() -> None:
    """Run commands from a SkyRL checkout in Modal GPU containers, or on this machine at the same paths."""
