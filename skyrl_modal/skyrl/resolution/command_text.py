"""The calls in the text of a command and its scripts, for machines on which nothing can be executed in a sandbox."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from skyrl_modal.skyrl.resolution.programs import python_program
from skyrl_modal.skyrl.resolution.records import Call, Recording
from skyrl_modal.skyrl.shell_commands import is_assignment, split_commands, strip_keywords

#: What only a shell can evaluate. `split_commands` reads a substitution as ``$()``.
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
_DEFAULT = re.compile(r"\$\{(\w+):?=")
_MAX_EXPANDED_LENGTH = 10_000


def parse_calls(texts: Sequence[str], workdir: str, env: Mapping[str, str]) -> Recording:
    """Return the calls of Python programs in texts of shell scripts.

    Variables are replaced where the text assigns them once, or the run sets them. An argument with another expansion is
    listed as unknown.

    Args:
        texts: The command and the scripts that it runs.
        workdir: The folder that it runs in.
        env: The variables that the run sets.
    """
    calls: list[Call] = []
    has_arguments = "=" in texts[0]  # as far as overrides are concerned
    for text in texts:
        commands = split_commands(text)
        values = {**env, **_assigned_values(commands, env)}
        for tokens in commands:
            parts = list(strip_keywords(tokens))
            expanded = [expand(word, values) for word in parts]
            known = [word for word in expanded if word is not None]
            if not known or python_program(known) is None:
                continue
            unknown = [word for word, value in zip(parts, expanded, strict=True) if value is None]
            if not has_arguments:
                unknown = [word for word in unknown if word not in ("$@", "$*", "${@}")]
            own = [word for word in tokens[: len(tokens) - len(parts)] if is_assignment(word)]
            pairs = [word.partition("=") for word in own]
            variables = {name: value for name, _, text in pairs if (value := expand(text, values)) is not None}
            calls.append(Call(argv=tuple(known), cwd=workdir, env=variables, unknown=tuple(unknown)))
    return Recording(calls=tuple(calls))


def _assigned_values(commands: Sequence[Sequence[str]], env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that are assigned once, with a known value."""
    values: dict[str, str] = {}
    unknown: set[str] = set()
    for tokens in commands:
        # One that may have a value already (`: "${LOGGER:=wandb}"`) depends on the environment.
        unknown.update(name for word in tokens for name in _DEFAULT.findall(word))
        parts = [word for word in tokens if word not in ("export", "readonly", "declare", "local")]
        if not parts or not all(is_assignment(word) for word in parts):
            continue
        for word in parts:
            name, _, text = word.partition("=")
            value = expand(text, {**env, **values})
            if value is None or name in values:
                unknown.add(name)
            else:
                values[name] = value
    return {name: value for name, value in values.items() if name not in unknown}


def expand(word: str, values: Mapping[str, str]) -> str | None:
    """Return a word with its variables replaced; None if it has an expansion whose value is not known.

    Example:
        >>> expand("trainer.ckpt_path=$HOME/x", {"HOME": "/root"})
        'trainer.ckpt_path=/root/x'
        >>> expand("n=$(nproc)", {}) is None
        True
    """
    names = [match[1] or match[2] for match in _VARIABLE.finditer(word)]
    if "$" in _VARIABLE.sub("", word) or any(name not in values for name in names):
        return None
    expanded = _VARIABLE.sub(lambda match: values[match[1] or match[2]], word)
    return expanded if len(expanded) <= _MAX_EXPANDED_LENGTH else None
