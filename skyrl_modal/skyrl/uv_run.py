"""Commands that start their driver with ``uv run``, and so with the versions that the checkout pins."""

from __future__ import annotations

import re
from collections.abc import Sequence

from skyrl_modal.skyrl.shell_commands import (
    MAX_DEPTH,
    is_assignment,
    nested_texts,
    split_commands,
    strip_keywords,
)

#: uv's options before and after ``run`` that have a value in a word of its own (uv 0.13).
OPTIONS_WITH_VALUE = frozenset({
    "--directory", "--project", "--config-file", "--cache-dir", "--color", "--allow-insecure-host", "--extra",
    "--no-extra", "--group", "--no-group", "--only-group", "--env-file", "--with", "--with-editable",
    "--with-requirements", "--package", "--python", "-p", "--index", "--index-url", "-i", "--extra-index-url",
    "--find-links", "-f", "--index-strategy", "--keyring-provider", "--resolution", "--prerelease", "--exclude-newer",
    "--link-mode", "--refresh-package", "--upgrade-package", "-P", "--no-binary-package", "--no-build-package",
    "--config-setting", "-C", "--python-platform", "--reinstall-package", "--no-build-isolation-package",
    "--torch-backend",
})  # fmt: skip
#: Options with which ``uv run`` does not use the project's versions.
_OTHER_ENVIRONMENT = frozenset({"--no-project", "--script", "-s"})
_RAY_REQUIREMENT = re.compile(r"ray(?![\w.-])", re.IGNORECASE)
#: Programs whose arguments are text or patterns.
_PRINTERS = frozenset({"echo", "printf", ":", "#", "grep", "egrep", "sed", "awk", "man", "which", "cat", "git", "true"})


def calls_uv_run(text: str, depth: int = 0) -> bool:
    """Return whether a shell script calls ``uv run`` with the environment of the project.

    Example:
        >>> calls_uv_run("uv run --isolated --extra fsdp -m skyrl.train.entrypoints.main_base")
        True
        >>> calls_uv_run("echo uv run; uv run --no-project x.py; uvx ruff")
        False
    """
    if "uv" not in text or depth > MAX_DEPTH:
        return False
    return any(_is_uv_run(tokens, depth) for tokens in split_commands(text))


def _is_uv_run(tokens: Sequence[str], depth: int) -> bool:
    values = [word.partition("=")[2] for word in tokens if is_assignment(word)]
    command = strip_keywords(tokens)
    if any(calls_uv_run(text, depth + 1) for text in [*values, *nested_texts(command)]):
        return True
    if not command or command[0].rpartition("/")[2] in _PRINTERS:
        return False
    return any(
        word.rpartition("/")[2] == "uv" and _runs_in_project(command[number + 1 :])
        for number, word in enumerate(command)
    )


def _runs_in_project(arguments: Sequence[str]) -> bool:
    """Return whether the arguments of uv are those of a ``run`` with the project's own version of Ray."""
    is_run, number = False, 0
    while number < len(arguments):
        word = arguments[number]
        name, _, value = word.partition("=")
        if name in OPTIONS_WITH_VALUE and not value:
            number += 1
            value = arguments[number] if number < len(arguments) else ""
        if name in _OTHER_ENVIRONMENT or (name == "--with" and _RAY_REQUIREMENT.match(value)):
            return False
        if not word.startswith("-"):
            if is_run or word != "run":
                break
            is_run = True
        number += 1
    return is_run
