"""Overrides that remove findings, and the command with those of them that are proved to reach the trainer.

An argument that is appended to a command reaches a trainer only if all scripts between them pass their arguments on. So
the command is resolved again with the overrides, and only those are kept that change the values of the starts that need
them, and nothing else.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from attrs import frozen

from skyrl_modal.dataclass import replace
from skyrl_modal.findings import Finding, Severity
from skyrl_modal.prepare.command_starts import CheckedState, facts_of_run, resolve_command, schema_of_checkout
from skyrl_modal.protocol.resume import insert_arguments
from skyrl_modal.skyrl.resolution.insertion import insertion_points
from skyrl_modal.skyrl.resolution.programs import python_program
from skyrl_modal.skyrl.resolution.records import Call, Resolution, Start
from skyrl_modal.skyrl.rules.catalog import find_by_start

if TYPE_CHECKING:
    from skyrl_modal.gitfiles.result_cache import ResultCache
    from skyrl_modal.prepare.plan import Plan

#: An argument that no entrypoint has, to find out which starts a position reaches.
_PROBE = ("skyrl_modal_probe", "1")
#: Parts of a command that are tried. A resolution of each takes about 0.2 s.
_MAX_PARTS = 8
#: Resolutions until what remains is given up.
_MAX_ROUNDS = 4

#: A time zone in which dates differ from those of the first resolution, also if it was made in the same second.
_OTHER_TIME = {"TZ": "XXX-13:07:11"}

#: The values of keys, by the number of a start.
_Wanted = Mapping[int, Mapping[str, str]]
_Pairs = Iterable[tuple[str, str]]


@frozen
class Fix:
    """The overrides that remove findings of a plan.

    Attributes:
        command: The command with the overrides.
        overrides: The overrides, each once, in their order in the command.
        findings: Findings about overrides that would remove a finding, and do not reach the trainer.
    """

    command: str
    overrides: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


class _Trial:
    """A plan whose command is resolved with further arguments."""

    def __init__(self, plan: Plan, cache: ResultCache, state: CheckedState) -> None:
        self.plan, self._cache = plan, cache
        # Neither depends on the arguments.
        self._facts = facts_of_run(plan.job, plan.spec, plan.selections, state)
        self._schema = schema_of_checkout(plan.job, plan.selections)

    def resolve(self, insertions: Mapping[int, _Pairs], variables: Mapping[str, str] | None = None) -> Resolution:
        job = self.plan.job
        command = insert_arguments(job.command, insertions)
        job = replace(job, command=command, env={**(variables or {}), **job.env})
        return resolve_command(job, self.plan.spec, self.plan.selections, cache=self._cache)

    def find(self, resolution: Resolution) -> list[tuple[int, Finding]]:
        """Return the findings about each start, without notes."""
        found = find_by_start(resolution, self._facts, self._schema)
        return [(number, finding) for number, finding in found if finding.severity is not Severity.NOTE]


def find_fix(plan: Plan, cache: ResultCache, state: CheckedState | None = None) -> Fix:
    """Return the overrides that remove findings of a plan, and the command with them.

    Overrides of notes are left out: one of them deletes checkpoints, which its author may not want.

    Args:
        plan: The plan.
        cache: The user's cache of results.
        state: What the backend and earlier runs show; None if they were not asked.
    """
    command = plan.job.command
    if not any(finding.overrides and finding.severity is not Severity.NOTE for finding in plan.findings):
        return Fix(command)
    trial = _Trial(plan, cache, state or CheckedState())
    before = trial.find(plan.resolution)
    wanted: dict[int, dict[str, str]] = {}
    for number, finding in before:
        for override in finding.overrides:
            key, _, value = override.partition("=")
            wanted.setdefault(number, {}).setdefault(key, value)
    insertions, starts = _verified(trial, before, wanted, _place(trial, wanted))
    pairs = dict.fromkeys(pair for point in sorted(insertions) for pair in insertions[point])
    reached = _reached(starts, wanted) if insertions else {}
    missing = {number: {key for key in keys if key not in reached.get(number, ())} for number, keys in wanted.items()}
    return Fix(
        command=insert_arguments(command, insertions),
        overrides=tuple(f"{key}={value}" for key, value in pairs),
        findings=tuple(_not_reached(plan.resolution.starts, wanted, missing)),
    )


@frozen
class StartPositions:
    """Where arguments reach the starts of a command.

    Attributes:
        by_start: The positions in the command by the number of a start, as far as that is proved.
        varying: Keys, and variables, whose values differ each time the command is started, since they contain the time
            or a random number.
    """

    by_start: Mapping[int, int]
    varying: frozenset[str] = frozenset()


def find_positions(plan: Plan, cache: ResultCache, wanted: _Wanted) -> StartPositions:
    """Return the positions in a command at which arguments reach starts.

    Args:
        plan: The plan.
        cache: The user's cache of results.
        wanted: The arguments by the number of a start. A position that reaches several starts must have the same ones
            for all of them.
    """
    trial, before = _Trial(plan, cache, CheckedState()), plan.resolution
    varying = _varying_keys(before, trial.resolve({}, _OTHER_TIME))
    points = insertion_points(plan.job.command)[:_MAX_PARTS]
    positions: dict[int, int] = {}
    if len(points) == len(before.starts) == len(wanted) == 1:
        positions = dict.fromkeys(wanted, points[0])
    else:
        for point in points:
            reached = _reached_starts(before, trial.resolve({point: [_PROBE]}), varying)
            # Other programs must not receive them: they may refuse them.
            if reached and reached <= set(wanted) and len({tuple(wanted[number].items()) for number in reached}) == 1:
                positions |= {number: positions.get(number, point) for number in reached}
    insertions = {point: list(wanted[number].items()) for number, point in positions.items()}
    after = trial.resolve(insertions)
    keys = {key for pairs in insertions.values() for key, _ in pairs}
    if not insertions or not has_same_form(before, after, keys | varying):
        return StartPositions({}, varying)
    arrived = _reached(after.starts, wanted)
    proved = {number: point for number, point in positions.items() if arrived[number] == set(wanted[number])}
    return StartPositions(proved, varying)


def _varying_keys(one: Resolution, other: Resolution) -> frozenset[str]:
    """Return the keys and variables that differ between two resolutions of the same command."""
    if len(one.starts) != len(other.starts):
        return frozenset()
    return frozenset(
        key
        for start, again in zip(one.starts, other.starts, strict=True)
        for values, others in ((start.overrides, again.overrides), (start.env, again.env))
        for key in values.keys() | others.keys()
        if values.get(key) != others.get(key)
    )


def _place(trial: _Trial, wanted: _Wanted) -> dict[int, dict[str, str]]:
    """Return the overrides for each position that reaches starts, where all of them that are reached need the same."""
    insertions: dict[int, dict[str, str]] = {}
    open_starts = set(wanted)
    points = insertion_points(trial.plan.job.command)[:_MAX_PARTS]
    if len(points) == len(wanted) == 1:
        return {points[0]: dict(next(iter(wanted.values())))}  # the verification shows what it reaches
    for point in points:
        if not open_starts:
            break
        probed = trial.resolve({point: [_PROBE]})
        reached = _reached_starts(trial.plan.resolution, probed)
        if not reached or not reached & open_starts:
            continue
        common = [set(wanted.get(number, {}).items()) for number in sorted(reached)]
        pairs = set.intersection(*common)
        first = wanted[min(reached & open_starts)]
        insertions[point] = {key: value for key, value in first.items() if (key, value) in pairs}
        open_starts -= reached
    return insertions


def _reached_starts(before: Resolution, probed: Resolution, varying: Iterable[str] = ()) -> set[int]:
    """Return the numbers of the starts that the probe reaches; none if it changes anything else."""
    key, value = _PROBE
    if not has_same_form(before, probed, {key, *varying}):
        return set()
    return {number for number, start in enumerate(probed.starts) if start.overrides.get(key) == value}


def has_same_form(before: Resolution, after: Resolution, keys: set[str]) -> bool:
    """Return whether two resolutions differ in values of these keys only, and only where Python programs have them."""
    if (before.unresolved, len(before.starts)) != (after.unresolved, len(after.starts)):
        return False
    if len(before.recording.calls) != len(after.recording.calls):
        return False
    pairs = zip(before.starts, after.starts, strict=True)
    if any(_without(one, keys) != _without(other, keys) for one, other in pairs):
        return False
    calls = zip(before.recording.calls, after.recording.calls, strict=True)
    return all(_own_arguments(one, keys) == _own_arguments(other, keys) for one, other in calls)


def _without(start: Start, keys: set[str]) -> Start:
    overrides = {key: value for key, value in start.overrides.items() if key not in keys}
    return replace(
        start, overrides=overrides, env={name: value for name, value in start.env.items() if name not in keys}
    )


def _own_arguments(call: Call, keys: set[str]) -> list[str]:
    """Return the arguments of a call; of a Python program, those without the keys."""
    if python_program(call.argv) is None:
        return list(call.argv)
    return [word for word in call.argv if word.partition("=")[0] not in keys]


def _verified(
    trial: _Trial, before: Sequence[tuple[int, Finding]], wanted: _Wanted, insertions: Mapping[int, Mapping[str, str]]
) -> tuple[dict[int, list[tuple[str, str]]], Sequence[Start]]:
    """Return the insertions without what does not reach a start, does not remove a finding, or causes one.

    The second value are the starts of the command with these insertions.
    """
    kept = {point: list(pairs.items()) for point, pairs in insertions.items() if pairs}
    for _ in range(_MAX_ROUNDS):
        if not kept:
            break
        after = trial.resolve(kept)
        useless = _useless(trial, before, wanted, after, {pair for pairs in kept.values() for pair in pairs})
        if not useless:
            return kept, after.starts
        kept = {point: [pair for pair in pairs if pair[0] not in useless] for point, pairs in kept.items()}
        kept = {point: pairs for point, pairs in kept.items() if pairs}
    return {}, ()


def _useless(
    trial: _Trial,
    before: Sequence[tuple[int, Finding]],
    wanted: _Wanted,
    after: Resolution,
    pairs: set[tuple[str, str]],
) -> set[str]:
    """Return the keys whose overrides must not be used."""
    keys = {key for key, _ in pairs}
    if not has_same_form(trial.plan.resolution, after, keys):
        return keys
    useless = {key for key, value in pairs if not any(start.overrides.get(key) == value for start in after.starts)}
    for number, (old, new) in enumerate(zip(trial.plan.resolution.starts, after.starts, strict=True)):
        for key in keys:
            value = new.overrides.get(key)
            if value != old.overrides.get(key) and value != wanted.get(number, {}).get(key):
                useless.add(key)
    left = trial.find(after)
    if {(number, item.code) for number, item in left} - {(number, item.code) for number, item in before}:
        return keys  # they cause another problem
    for number, item in left:
        for override in item.overrides:
            key = override.partition("=")[0]
            if after.starts[number].overrides.get(key) == wanted.get(number, {}).get(key):
                useless |= {key} & keys
    return useless


def _reached(starts: Sequence[Start], wanted: _Wanted) -> dict[int, set[str]]:
    """Return the keys whose values each start has."""
    return {
        number: {key for key, value in keys.items() if starts[number].overrides.get(key) == value}
        for number, keys in wanted.items()
    }


def _not_reached(starts: Sequence[Start], wanted: _Wanted, missing: Mapping[int, set[str]]) -> Iterable[Finding]:
    found: dict[Finding, None] = {}
    for number, keys in missing.items():
        arguments = [f"{key}={value}" for key, value in wanted[number].items() if key in keys]
        if arguments:
            finding = Finding(
                code="fix-without-effect",
                severity=Severity.WARNING,
                message=f"{shlex.join(arguments)} cannot be passed to {starts[number].program} with the command: a "
                "script does not pass its arguments on, or several programs would get them",
                remedy="Change the script.",
            )
            found[finding] = None
    return found
