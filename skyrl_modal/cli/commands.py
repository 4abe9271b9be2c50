"""The commands: their options, arguments and help texts.

What a command does is imported in its function, so that `--help` and the other commands do not load it.
"""

from __future__ import annotations

from importlib import import_module

from skyrl_modal.cli.base import cli

__all__ = ["cli"]

#: The modules whose commands are registered when they are imported.
_MODULES = (
    "config_commands",
    "cost_commands",
    "machine_commands",
    "metrics_commands",
    "ps_command",
    "rollouts_command",
    "run_commands",
    "start_commands",
    "top_command",
    "volume_commands",
    "web_commands",
)
for _name in _MODULES:
    import_module(f"skyrl_modal.cli.{_name}")
