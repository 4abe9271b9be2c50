"""The file that the programs of the sandbox write their calls to. A script can write anything to it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from attrs import define, field

from skyrl_modal.skyrl.resolution.records import Call

#: Calls that are read, and variables of each.
MAX_CALLS = 500
MAX_VARIABLES = 500

_LINE = re.compile(rb"([\w-]{1,40}) ([A-Z])(\+?) (.*)")
_ESCAPE = re.compile(rb"\\(.)")
_ESCAPES = {b"n": b"\n", b"r": b"\r"}
#: Variables that a shell sets by itself.
_OF_THE_SHELL = frozenset({"_", "SHLVL", "PWD", "OLDPWD", "BASH_ENV", "COLUMNS", "LINES"})


@define
class _OpenCall:
    arguments: list[str] = field(factory=list)
    variables: list[str] = field(factory=list)
    cwd: str = "/"
    is_background: bool = False
    is_complete: bool = False
    parts: dict[str, bytes] = field(factory=dict)


def read_calls(content: bytes, base_env: Mapping[str, str]) -> tuple[Call, ...]:
    """Return the complete calls in the content of the file.

    Args:
        content: The content.
        base_env: The variables that the command was started with. Those that have the same value are left out.
    """
    calls: dict[bytes, _OpenCall] = {}
    for line in content.split(b"\n"):
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        identifier, kind, continues, text = match[1], match[2].decode(), match[3], match[4]
        if identifier not in calls and len(calls) >= MAX_CALLS:
            continue
        call = calls.setdefault(identifier, _OpenCall())
        text = call.parts.pop(kind, b"") + text
        if continues:
            call.parts[kind] = text
        elif not call.is_complete:
            _add(call, kind, _unescape(text))
    return tuple(
        Call(
            argv=tuple(call.arguments),
            cwd=call.cwd,
            env=_new_variables(call, base_env),
            is_background=call.is_background,
        )
        for call in calls.values()
        if call.is_complete and call.arguments
    )


def _add(call: _OpenCall, kind: str, text: str) -> None:
    match kind:
        case "C" | "A":
            call.arguments.append(text)
        case "D":
            call.cwd = text
        case "B":
            call.is_background = text == "1"
        case "E":
            if len(call.variables) < MAX_VARIABLES:
                call.variables.append(text)
        case "X":
            call.is_complete = True


def _unescape(text: bytes) -> str:
    unescaped = _ESCAPE.sub(lambda match: _ESCAPES.get(match[1], match[1]), text)
    return unescaped.decode("utf-8", "replace")


def _new_variables(call: _OpenCall, base_env: Mapping[str, str]) -> dict[str, str]:
    pairs = (text.partition("=") for text in call.variables)
    return {
        name: value
        for name, _, value in pairs
        if name not in _OF_THE_SHELL and not name.startswith("BASH_FUNC_") and base_env.get(name) != value
    }
