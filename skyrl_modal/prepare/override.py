"""The command of a run with other values of some overrides, which are proved to reach the trainer."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING

from skyrl_modal.dataclass import replace
from skyrl_modal.errors import SpecError
from skyrl_modal.prepare.command_starts import resolve_command
from skyrl_modal.prepare.fix import find_positions, has_same_form
from skyrl_modal.protocol.resume import insert_arguments
from skyrl_modal.skyrl.resolution.records import EntrypointKind, Resolution

if TYPE_CHECKING:
    from skyrl_modal.gitfiles.result_cache import ResultCache
    from skyrl_modal.prepare.plan import Plan

_KEY = re.compile(r"[^\s=]+")


def command_with(plan: Plan, overrides: Mapping[str, str], cache: ResultCache) -> str:
    """Return a command in which each override has another value.

    A value that the command's text contains is replaced. Others are inserted where they reach the trainer, which is
    proved by resolving the command again.

    Args:
        plan: The plan of the command.
        overrides: The values by their keys.
        cache: The user's cache of results.

    Raises:
        SpecError: It is not proved that a value would reach the trainer.
    """
    for key in overrides:
        if not _KEY.fullmatch(key):
            raise SpecError("overrides", key, "pass KEY=VALUE, where the key has no spaces")
    targets = _targets(plan.resolution, overrides)
    text = ", ".join(f"{key}={value}" for key, value in overrides.items())
    if not targets:
        remedy = "the command starts no program of SkyRL, and none with this override. Pass the whole command to run"
        raise SpecError("overrides", text, remedy)
    replaced = _replace_in_text(plan.job.command, overrides)
    if _reaches(plan, replaced, targets, overrides, cache):
        return replaced
    wanted = {number: dict(overrides) for number in targets}
    positions = find_positions(plan, cache, wanted).by_start
    if set(positions) != targets:
        names = ", ".join(plan.resolution.starts[number].program for number in sorted(targets - set(positions)))
        remedy = f"it is not proved that {names} would receive it: a script may not pass its arguments on"
        raise SpecError("overrides", text, f"{remedy}. Change the script, or pass the whole command to run")
    return insert_arguments(plan.job.command, {point: overrides.items() for point in positions.values()})


def _targets(resolution: Resolution, overrides: Mapping[str, str]) -> set[int]:
    """Return the numbers of the starts that receive the overrides: those that have one already, or all of SkyRL's."""
    numbered = list(enumerate(resolution.starts))
    having = {number for number, start in numbered if overrides.keys() & start.overrides.keys()}
    return having or {number for number, start in numbered if start.kind is not EntrypointKind.OTHER}


def _replace_in_text(command: str, overrides: Mapping[str, str]) -> str:
    """Return the command with the values of those overrides that are plain text in it."""
    for key, value in overrides.items():
        pattern = rf"(?<!\S){re.escape(key)}=[\w.,/:+\-]*(?=\s|$)"
        quoted = shlex.quote(f"{key}={value}").replace("\\", r"\\")  # a backslash has a meaning in re.sub
        command = re.sub(pattern, quoted, command)
    return command


def _reaches(plan: Plan, command: str, targets: set[int], overrides: Mapping[str, str], cache: ResultCache) -> bool:
    """Return whether the starts have the overrides with this command, and nothing else differs."""
    if command == plan.job.command:
        return False
    after = resolve_command(replace(plan.job, command=command), plan.spec, plan.selections, cache=cache)
    if not has_same_form(plan.resolution, after, set(overrides)):
        return False
    return all(
        after.starts[number].overrides.get(key) == value for number in targets for key, value in overrides.items()
    )
