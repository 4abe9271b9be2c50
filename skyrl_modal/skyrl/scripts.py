"""Shell scripts that a command runs, read before the run starts."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

from skyrl_modal.gitfiles.files import read_regular_file
from skyrl_modal.skyrl.shell_commands import MAX_DEPTH, SHELLS, nested_texts, split_commands, strip_keywords

#: A call of Ray's own command line.
RAY_COMMAND_CALL = re.compile(r"(?:^|[\s;&|(])ray\s+(start|stop)(?![\w-])", re.MULTILINE)

#: Larger files are not scripts that a person has written.
MAX_SCRIPT_BYTES = 1_000_000

#: Scripts that are read for one command.
MAX_SCRIPTS = 50

#: Expansions at the beginning of a path. Command substitutions are read as ``$()``.
_EXPANSIONS = re.compile(r"^(?:\$(?:\w+|\{[^}]*\}|\(\)))+")
_STARTS_PYTHON = re.compile(r"\b(?:uv|python[\d.]*|torchrun|accelerate|deepspeed|ray)\b|\.py\b")
_SHELL_LINE = re.compile(r"\b(?:ba|da|z|k)?sh\b")
_COMMENT_LINE = re.compile(r"^[^\S\n]*#.*$", re.MULTILINE)


def find_ray_calls(text: str) -> frozenset[str]:
    """Return which of ``start`` and ``stop`` a shell script calls of Ray's command line.

    Example:
        >>> find_ray_calls("ray start --head && python train.py")
        frozenset({'start'})
    """
    return frozenset(match[1] for match in RAY_COMMAND_CALL.finditer(text))


def may_start_python(texts: Iterable[str]) -> bool:
    """Return whether one of some shell scripts may start a Python program.

    Example:
        >>> may_start_python(["nvidia-smi", "uv run x"]), may_start_python(["echo a"])
        (True, False)
    """
    return any(_STARTS_PYTHON.search(text) for text in texts)


def scripts_of_command(
    command: str, *, workdir: str, remote_path: str, root: Path, files: Container[str]
) -> Iterator[tuple[str, str]]:
    """Yield the mounted shell scripts that a command runs, with their text without comment lines.

    Scripts that these scripts run are included. A script is named by its path, also with ``source``, or after ``cd``.
    Of a path that begins with a variable or a substitution, such as ``$SCRIPT_DIR/x.sh``, the rest is searched in the
    folder of the script, in the working directory, and in the mount.

    Args:
        command: A shell string.
        workdir: The folder in the container that it runs in.
        remote_path: Path of the mount in the container.
        root: The mounted local folder.
        files: The mounted files, as paths relative to ``root``.
    """
    seen: set[str] = set()
    pending = [(command, workdir, workdir)]
    while pending and len(seen) < MAX_SCRIPTS:
        text, workdir, folder = pending.pop(0)
        for names, current in _named_files(text, workdir):
            places = [
                posixpath.join(place, name) for name in names for place in (current, workdir, folder, remote_path)
            ]
            paths = [posixpath.relpath(place, remote_path) for place in places]
            path = next((path for path in paths if path in files), None)
            if path is None or path in seen:
                continue
            seen.add(path)
            script = _read_text(root / path)
            if script is not None and _is_shell_script(path, script):
                pending.append((script, current, posixpath.join(remote_path, posixpath.dirname(path))))
                yield path, _COMMENT_LINE.sub("", script)


def _named_files(text: str, workdir: str, depth: int = 0) -> Iterator[tuple[list[str], str]]:
    """Yield the possible names of each file that a text may run, and the working directory at that point."""
    for tokens in split_commands(text):
        command = strip_keywords(tokens)
        if command[:1] == ["cd"] and len(command) > 1 and "$" not in command[1]:
            workdir = posixpath.join(workdir, command[1])
        for nested in nested_texts(command):
            if depth < MAX_DEPTH:
                yield from _named_files(nested, workdir, depth + 1)
        for number, word in enumerate(command):
            before = command[number - 1].rpartition("/")[2] if number else ""
            is_program = number == 0 and "/" in word
            if is_program or word.endswith((".sh", ".bash")) or before in (*SHELLS, "source", ".", "exec"):
                yield _possible_names(word), workdir


def _possible_names(word: str) -> list[str]:
    """Return a path without the variables and substitutions that it begins with, which may contain slashes."""
    if "$" not in word:
        return [word]
    known = word.replace("${SKYRL_REPO_ROOT}", "$SKYRL_REPO_ROOT").removeprefix("$SKYRL_REPO_ROOT/")
    rest = _EXPANSIONS.sub("", known).lstrip("/")
    return [rest] if rest and "$" not in rest else []


def _is_shell_script(path: str, text: str) -> bool:
    """Return whether a file is a shell script. One without an interpreter line is run by the shell."""
    first = text.partition("\n")[0]
    return path.endswith((".sh", ".bash")) or not first.startswith("#!") or _SHELL_LINE.search(first) is not None


def _read_text(path: Path) -> str | None:
    """Return the content of a regular file of moderate size; None for any other file.

    A named pipe would block the planner, and the file may have been removed since it was selected.
    """
    try:
        return read_regular_file(path, max_bytes=MAX_SCRIPT_BYTES).decode("utf-8", "replace")
    except OSError:
        return None
