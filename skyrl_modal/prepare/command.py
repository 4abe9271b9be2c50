"""Commands as shell strings."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence

from skyrl_modal.errors import SpecError

#: Size of a command as JSON. Records of a run contain it, and have a limit themselves (``MAX_RECORD_BYTES``).
MAX_COMMAND_BYTES = 24 << 20
#: Size of an emoji in JSON: two escape sequences.
_MAX_BYTES_OF_CHARACTER = 12
#: Number of characters of a command that errors, plans and the header of a run contain.
SHOWN_CHARACTERS = 2000


def normalize_command(command: str | Sequence[str]) -> str:
    """Return a command as a shell string.

    Args:
        command: A shell string, or a list of arguments, which are quoted.

    Raises:
        SpecError: The command is empty or too large, or contains something other than strings, or a character that no
            command can contain.

    Example:
        >>> normalize_command(["echo", "two parts"])
        "echo 'two parts'"
    """
    if not isinstance(command, str):
        arguments = list(command) if isinstance(command, Iterable) else [command]
        if not all(isinstance(argument, str) for argument in arguments):
            raise SpecError("command", command, "pass a shell string, or a list of strings")
        command = shlex.join(arguments)
    if not command.strip():
        raise SpecError("command", command, 'pass a shell command, for example "python train.py"')
    problem = "a null character" if "\0" in command else None
    try:
        command.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        problem = "a character that cannot be encoded as UTF-8"
    if problem is not None:
        raise SpecError("command", shorten_command(command), f"it contains {problem}; remove it")
    if len(command) > MAX_COMMAND_BYTES // _MAX_BYTES_OF_CHARACTER and len(json.dumps(command)) > MAX_COMMAND_BYTES:
        remedy = f"a command has at most {MAX_COMMAND_BYTES >> 20} MiB in the run's records; write it to a script"
        raise SpecError("command", shorten_command(command), remedy)
    return command


def shorten_command(command: str) -> str:
    """Return a command for people: without its end, if that would hide everything else.

    Example:
        >>> shorten_command("x" * 3000)[-24:]
        'xx... (3,000 characters)'
    """
    if len(command) <= SHOWN_CHARACTERS:
        return command
    return f"{command[:SHOWN_CHARACTERS]}... ({len(command):,} characters)"
