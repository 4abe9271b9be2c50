"""Choose rollouts while they are read, and keep no more of them than the memory has space for."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable

from skyrl_modal.formats.rollout import Rollout

#: Number of rollouts that are kept, and their characters together.
MAX_ROLLOUTS, MAX_CHARACTERS = 200_000, 128 << 20


class RolloutSelection:
    """Collects rollouts.

    Args:
        step: Only those of this step; None for all.
        best: Only so many with the highest rewards; None for all.
        worst: Only so many with the lowest rewards, after the best ones; None for all.

    Attributes:
        left_out: Number of rollouts for which there was no space.
    """

    def __init__(self, *, step: int | None = None, best: int | None = None, worst: int | None = None) -> None:
        self.left_out = 0
        self._step = step
        self._count = 0
        self._characters = 0
        self._all: list[tuple[int, Rollout]] = []
        self._best = None if best is None else _Extremes(best, lambda reward: reward)
        self._worst = None if worst is None else _Extremes(worst, lambda reward: -reward)

    def wants(self, step: int) -> bool:
        """Return whether rollouts of a step are to be returned."""
        return self._step in (None, step)

    def add(self, rollout: Rollout) -> None:
        """Keep a rollout if it is to be returned."""
        if not self.wants(rollout.step):
            return
        self._count += 1
        if self._best is not None or self._worst is not None:
            for extremes in filter(None, (self._best, self._worst)):
                extremes.add(self._count, rollout)
            return
        size = len(rollout.prompt) + len(rollout.response)
        if len(self._all) >= MAX_ROLLOUTS or self._characters + size > MAX_CHARACTERS:
            self.left_out += 1
            return
        self._characters += size
        self._all.append((self._count, rollout))

    def result(self) -> list[Rollout]:
        """Return the best ones, then the worst ones; without these, all by step and source, groups together."""
        if self._best is None and self._worst is None:
            return sort_rollouts(rollout for _, rollout in self._all)
        found: dict[int, Rollout] = {}
        for extremes in filter(None, (self._best, self._worst)):
            found.update({number: rollout for number, rollout in extremes.sorted() if number not in found})
        return list(found.values())


class _Extremes:
    """The rollouts with the highest values of a function of the reward. Those without a reward are left out."""

    def __init__(self, size: int, value_of: Callable[[float], float]) -> None:
        self._size = size
        self._value_of = value_of
        self._heap: list[tuple[float, int, Rollout]] = []

    def add(self, number: int, rollout: Rollout) -> None:
        if rollout.reward is None or math.isnan(rollout.reward):
            return
        heapq.heappush(self._heap, (self._value_of(rollout.reward), -number, rollout))
        if len(self._heap) > self._size:
            heapq.heappop(self._heap)

    def sorted(self) -> list[tuple[int, Rollout]]:
        return [(-number, rollout) for _, number, rollout in sorted(self._heap, key=lambda item: item[:2])[::-1]]


def sort_rollouts(rollouts: Iterable[Rollout]) -> list[Rollout]:
    """Return rollouts by step and source, in their order otherwise, with the members of a group together."""
    groups: dict[tuple[int, str], dict[str | int, list[Rollout]]] = {}
    for number, rollout in enumerate(rollouts):
        members = groups.setdefault((rollout.step, rollout.source), {})
        members.setdefault(number if rollout.group is None else rollout.group, []).append(rollout)
    return [rollout for key in sorted(groups) for members in groups[key].values() for rollout in members]
