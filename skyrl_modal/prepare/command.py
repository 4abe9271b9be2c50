"""Commands as shell strings."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from skyrl_modal.errors import SpecError


def normalize_command(command: str | Sequence[str]) -> str:
    """Return a command as a shell string.

    Args:
        command: A shell string, or a list of arguments, which are quoted.

    Raises:
        SpecError: The command is empty, or contains something other than strings.

    Example:
        >>> normalize_command(["echo", "two parts"])
        "echo 'two parts'"
    """
    if not isinstance(command, str):
        arguments = list(command)
        if not all(isinstance(argument, str) for argument in arguments):
            raise SpecError("command", command, "pass a shell string, or a list of strings")
        command = shlex.join(arguments)
    if not command.strip() or "\0" in command:
        raise SpecError("command", command, 'pass a shell command, for example "python train.py"')
    return command
