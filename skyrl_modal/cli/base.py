"""What the commands share: the group, commands with the options of a launcher, and the run with an id."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from skyrl_modal.protocol.exit_codes import BROKEN_PIPE
from skyrl_modal.views.standard_streams import discard_standard_output

if TYPE_CHECKING:
    from skyrl_modal.launcher import Launcher
    from skyrl_modal.run.handle import Run


class CommandGroup(click.Group):
    """The commands. A reader that closes the output, as with ``| head``, ends them like any other program."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the requested command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            discard_standard_output()
            sys.exit(BROKEN_PIPE)


class LauncherCommand(click.Command):
    """A command with an option for each field of Launcher that has one, and further ones of its own."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return all options and arguments. The launcher, which has the help texts, is loaded where they are needed."""
        from skyrl_modal.cli.launcher_options import launcher_options

        return [*launcher_options(), *super().get_params(ctx)]


def make_launcher(options: dict[str, Any]) -> Launcher:
    """Return the launcher for the values of its options."""
    from skyrl_modal.cli.launcher_options import make_launcher as make

    return make(**options)


def attach_run(run_id: str) -> Run:
    """Return the run with an id."""
    from skyrl_modal.run.handle import Run

    return Run.attach(run_id)


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="skyrl-modal")
def cli() -> None:
    """Run commands from a SkyRL checkout in Modal GPU containers, or on this machine at the same paths."""
