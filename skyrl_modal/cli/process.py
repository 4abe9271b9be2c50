"""The command line as a process: its standard streams, its errors and its exit code."""

from __future__ import annotations

import contextlib
import sys

import click

from skyrl_modal.cli.commands import cli
from skyrl_modal.cli.output import print_error
from skyrl_modal.errors import SkyRLModalError, translate_system_errors
from skyrl_modal.protocol.exit_codes import BROKEN_PIPE, INTERRUPTED, LAUNCHER_FAILED
from skyrl_modal.views.colors import color_override
from skyrl_modal.views.standard_streams import accept_any_text, discard_standard_output, open_missing_descriptors


def run_process() -> int:
    """Run the command line. Print an error of the launcher as a message. Return the exit code of the process."""
    open_missing_descriptors()
    accept_any_text()
    return _flush_output(_run_command_line())


def _run_command_line() -> int:
    """Run the requested command and return the exit code."""
    try:
        with translate_system_errors():
            cli(standalone_mode=False, color=color_override())
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0
    except click.ClickException as error:
        with contextlib.suppress(OSError):
            error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except SkyRLModalError as error:
        print_error(str(error))
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
        print_error(f"standard output: {error.strerror}")
        return exit_code or LAUNCHER_FAILED
    return exit_code
