"""The rollouts of a run for the page: filtered, sorted by groups, and in parts."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from skyrl_modal.errors import SpecError
from skyrl_modal.web.plain import plain

if TYPE_CHECKING:
    from skyrl_modal.formats.rollout import Rollout
    from skyrl_modal.web.observed_run import ObservedRun

#: Seconds after which the rollouts of a run that has not ended are read again.
_AGE = 10.0
#: Characters of a message that are shown.
_MAX_CHARACTERS = 32_000
_ORDERS = {"": 0, "reward_desc": -1, "reward_asc": 1}


def rollouts_of(
    observed: ObservedRun, *, step: int | None, source: str, order: str, offset: int, limit: int
) -> dict[str, Any]:
    """Return a part of the rollouts of a run as JSON. Those of a group, which answer the same prompt, are together.

    Args:
        observed: The run.
        step: Only those of this step; None for all.
        source: Only those of this source, or of those that begin with it and a slash; empty for all.
        order: ``reward_desc`` for the groups with the best member first, ``reward_asc`` for those with the worst
            member first; empty for the order of the steps.
        offset: Number of rollouts to leave out.
        limit: Number of rollouts to return.

    Raises:
        SpecError: There is no such order.
    """
    if order not in _ORDERS:
        raise SpecError("order", order, "pass reward_desc or reward_asc, or omit it")
    found, skipped = read(observed)
    wanted = [
        each
        for each in found
        if step in (None, each.step) and (each.source == source or not source or each.source.startswith(f"{source}/"))
    ]
    if _ORDERS[order]:
        wanted = _by_reward(wanted, _ORDERS[order])
    return {
        "total": len(wanted),
        "steps": sorted({each.step for each in found}),
        "sources": plain(sorted({each.source for each in found})),
        "rollouts": [_to_json(each) for each in wanted[offset : offset + limit]],
        "skipped": skipped,
    }


def read(observed: ObservedRun) -> tuple[Sequence[Rollout], int]:
    """Return the rollouts of a run, and the number of those that could not be read or kept."""
    known = observed.rollouts
    if known is None or (not observed.has_ended and time.monotonic() - known[0] > _AGE):
        found = observed.run.rollouts()
        known = observed.rollouts = time.monotonic(), found, found.skipped + found.left_out
    return known[1], known[2]


def _by_reward(found: Sequence[Rollout], sign: int) -> list[Rollout]:
    groups: dict[object, list[Rollout]] = {}
    for number, each in enumerate(found):
        groups.setdefault(number if each.group is None else (each.step, each.source, each.group), []).append(each)

    def rank(each: Rollout) -> float:
        return math.inf if each.reward is None or math.isnan(each.reward) else sign * each.reward

    ordered = sorted(groups.values(), key=lambda group: min(map(rank, group)))
    return [each for group in ordered for each in group]


def _to_json(rollout: Rollout) -> dict[str, Any]:
    values = rollout.to_json()
    for message in (*values["prompt"], *values["response"]):
        if len(message["content"]) > _MAX_CHARACTERS:
            message["content"] = f"{message['content'][:_MAX_CHARACTERS]}…"
            values["truncated"] = True
    result: dict[str, Any] = plain(values)
    return result
