"""The commands: their options, arguments and help texts.

What a command does is imported in its function, so that `--help` and the other commands do not load it.
"""

from __future__ import annotations

from skyrl_modal.cli import machine_commands, metrics_commands, run_commands, start_commands, volume_commands
from skyrl_modal.cli.base import cli

__all__ = ["cli", "machine_commands", "metrics_commands", "run_commands", "start_commands", "volume_commands"]
