"""Shell scripts that a command runs, read before the run starts."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Container, Iterator
from pathlib import Path

from skyrl_modal.gitfiles.files import read_regular_file

#: A call of Ray's own command line.
RAY_COMMAND_CALL = re.compile(r"(?:^|[\s;&|(])ray\s+(start|stop)(?![\w-])", re.MULTILINE)

#: Larger files are not scripts that a person has written.
MAX_SCRIPT_BYTES = 1_000_000

_COMMENT_LINE = re.compile(r"^[^\S\n]*#.*$", re.MULTILINE)


def find_ray_calls(text: str) -> frozenset[str]:
    """Return which of ``start`` and ``stop`` a shell script calls of Ray's command line.

    Example:
        >>> find_ray_calls("ray start --head && python train.py")
        frozenset({'start'})
    """
    return frozenset(match[1] for match in RAY_COMMAND_CALL.finditer(text))


def scripts_of_command(
    command: str, *, workdir: str, remote_path: str, root: Path, files: Container[str]
) -> Iterator[tuple[str, str]]:
    """Yield the mounted shell scripts that a command names, with their text without comment lines.

    Args:
        command: A shell string.
        workdir: The folder in the container that it runs in.
        remote_path: Path of the mount in the container.
        root: The mounted local folder.
        files: The mounted files, as paths relative to ``root``.
    """
    try:
        arguments = shlex.split(command, comments=True)
    except ValueError:  # bash reports the syntax error when the command runs
        return
    for argument in arguments:
        path = posixpath.relpath(posixpath.join(workdir, argument), remote_path)
        if argument.endswith((".sh", ".bash")) and path in files:
            text = _read_text(root / path)
            if text is not None:
                yield path, _COMMENT_LINE.sub("", text)


def _read_text(path: Path) -> str | None:
    """Return the content of a regular file of moderate size; None for any other file.

    A named pipe would block the planner, and the file may have been removed since it was selected.
    """
    try:
        return read_regular_file(path, max_bytes=MAX_SCRIPT_BYTES).decode("utf-8", "replace")
    except OSError:
        return None
