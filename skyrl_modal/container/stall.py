"""Find out that an attempt is stalled: for some time there was neither output nor a new training step.

Imported only if the run has such a limit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from skyrl_modal.container.environment import stacks_path
from skyrl_modal.container.output import OutputRecorder
from skyrl_modal.container.stacks import create_stacks_file, read_stacks
from skyrl_modal.container.training_steps import StepFiles
from skyrl_modal.dataclass import dataclass, field
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.rank_config import RankConfig

#: Limit of the text with the stacks of all ranks, in characters. Each rank limits its own text too.
MAX_STACK_TEXT = 2 << 20


@dataclass(slots=True)
class StallWatch:
    """Measures the time since the last output and the last step of an attempt.

    Attributes:
        limit: Seconds without output and without a new step.
        output: Records the output of the command.
        last_step: Returns the time of ``time.monotonic()`` of the newest step; 0 for none.
        read_stacks: Returns the stacks of the Python processes by rank.
        stacks: The text of the stacks, after ``write_stacks``; empty before.
    """

    limit: float
    output: OutputRecorder
    last_step: Callable[[], float]
    read_stacks: Callable[[], Mapping[int, str]]
    stacks: str = ""
    _begin: float = field(default=0.0)

    def begin(self) -> float:
        """Start to measure, and return the time of ``time.monotonic()`` at which the limit ends without activity."""
        self._begin = time.monotonic()
        return self._begin + self.limit

    def deadline(self) -> float:
        """Return the time of ``time.monotonic()`` at which the limit ends, unless there is activity until then."""
        last = max(self._begin, self.output.last_output)
        if last + self.limit > time.monotonic():
            return last + self.limit  # the steps need not be read
        return max(last, self.last_step()) + self.limit

    @property
    def text(self) -> str:
        """What has happened, for a message."""
        return f"neither output nor a new step for {self.limit:,.10g} s"

    def write_stacks(self) -> None:
        """Read the stacks of the Python processes of all ranks. They are part of the output later."""
        texts = [f"stacks of rank {rank}:\n{text.rstrip()}" for rank, text in sorted(self.read_stacks().items())]
        self.stacks = "\n".join(texts)[:MAX_STACK_TEXT]


class OtherRanks(Protocol):
    """What is known of the other ranks of a run."""

    @property
    def steps(self) -> Mapping[int, tuple[int, float]]:
        """The newest step of each, and the time of ``time.monotonic()`` at which it was reported."""

    def read_stacks(self) -> dict[int, str]:
        """Return the stacks of the Python processes of each."""


class StallDetector:
    """Creates the file for stacks before the first process starts, and the watch of each attempt.

    Args:
        job: The run, which has a limit for stalled attempts.
        config: Rank 0.
        output: Records the output of the command.
        processes: Returns all processes of the run on this rank.
    """

    def __init__(self, job: Job, config: RankConfig, output: OutputRecorder, processes: Callable[[], set[int]]) -> None:
        self._job = job
        self._rank = config.rank
        self._output = output
        self._processes = processes
        self._path = stacks_path(job, config)
        create_stacks_file(self._path)

    def watch(self, ranks: OtherRanks, keep: Callable[[str], None]) -> StallWatch:
        """Return the watch of an attempt.

        Args:
            ranks: The other ranks.
            keep: Receives the stacks of this rank, which are kept with its logs.
        """
        files = StepFiles(self._job.run_folder, self._rank)

        def last_step() -> float:
            return max([files.last_change(), *(reported_at for _, reported_at in ranks.steps.values())])

        def stacks() -> dict[int, str]:
            text = read_stacks(self._path, self._processes())
            keep(text)
            return {0: text, **ranks.read_stacks()}

        return StallWatch(self._job.limits.stall or 0.0, self._output, last_step, stacks)
