"""Measurement of alternatives that do the same work, in turns.

A row has several alternatives. Each round measures every alternative once, so that a temporary load of the machine
affects all of them; every second round measures them in the opposite order. All alternatives of a row have to report
the same outcome: the same files, the same output, the same exit code.
"""

from __future__ import annotations

import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from attrs import define, field, frozen

BIN = Path(sys.executable).parent
#: The command line of the package.
PROGRAM = [str(BIN / "skyrl-modal")]
#: The name of the package among the alternatives of a row.
SUBJECT = "skyrl-modal"


class BenchmarkError(Exception):
    """An alternative failed, or did other work than the others."""


class MissingTool(Exception):
    """A program or package that an alternative needs is not installed."""


@frozen
class Sample:
    """One measurement.

    Attributes:
        wall: Elapsed seconds.
        cpu: Seconds of processor time, of all processes; those that outlive their parent are not included.
        outcome: What was done, which has to be equal for all alternatives of a row.
        memory: The largest memory in MiB of the measured process; None if it is not known.
    """

    wall: float
    cpu: float
    outcome: Hashable = None
    memory: float | None = None


Measure = Callable[[], Sample]


@frozen
class Goal:
    """What a row should reach.

    Attributes:
        kind: ``"ratio"`` to the baseline, ``"difference"`` in seconds to the baseline, or ``"seconds"``.
        limit: The largest value.
    """

    kind: str
    limit: float


@define
class Row:
    """Alternatives that do the same work.

    Attributes:
        name: Identifies the row, such as ``"launch.warm"``.
        title: What is measured.
        alternatives: A measurement for each name. One of them is ``SUBJECT``.
        baseline: The alternative that the subject is compared with; None for no comparison.
        goal: What the subject should reach; None for no goal.
        kind: How the subject is compared with the baseline, if there is no goal: as in ``Goal``.
        share: Which share of the rounds is made, for rows that take long.
        least: How many rounds are made at least, for rows that take minutes; None for the usual number.
    """

    name: str
    title: str
    alternatives: dict[str, Measure]
    baseline: str | None = None
    goal: Goal | None = None
    kind: str = "ratio"
    share: float = 1.0
    least: int | None = None
    samples: dict[str, list[Sample]] = field(factory=dict)

    def run(self, rounds: int, *, least: int = 3, seconds: float = math.inf, skip_missing: bool = False) -> None:
        """Measure all alternatives.

        Args:
            rounds: Number of measurements of each alternative.
            least: Number of measurements of a row that takes long, at least.
            seconds: The time after which no further round begins.
            skip_missing: Whether to leave out alternatives whose tools are not installed.

        Raises:
            BenchmarkError: An alternative failed, or did other work than the others.
            MissingTool: A tool is not installed.
        """
        least = least if self.least is None else min(least, self.least)
        count = max(min(rounds, least), round(rounds * self.share))
        begin = time.monotonic()
        try:
            for number in range(count):
                if number >= least and time.monotonic() - begin > seconds:
                    break
                names = list(self.alternatives)
                for name in names if number % 2 == 0 else reversed(names):
                    self._measure(name, f"{number + 1}/{count}", skip_missing=skip_missing)
        finally:
            close_workers()

    def _measure(self, name: str, number: str, *, skip_missing: bool) -> None:
        try:
            sample = self.alternatives[name]()
        except MissingTool as error:
            if not skip_missing:
                raise
            print(f"  {self.name}: {name} is left out: {error}", file=sys.stderr, flush=True)
            del self.alternatives[name]
            return
        print(f"  {self.name} {number}: {name} {sample.wall:.3f} s", file=sys.stderr, flush=True)
        self.samples.setdefault(name, []).append(sample)
        for other, samples in self.samples.items():
            if samples[0].outcome != sample.outcome:
                done = f"{name} did {sample.outcome!r:.300}, and {other} {samples[0].outcome!r:.300}"
                raise BenchmarkError(f"{self.name}: {done}")


def children_seconds() -> float:
    """Return the processor time of the child processes that have ended, with their own children."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def process_sample(
    argv: Sequence[str | os.PathLike[str]],
    *,
    outcome: Callable[[bytes], Hashable] = len,
    stdout: Path | None = None,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> Sample:
    """Run a program to its end.

    Args:
        argv: The program and its arguments.
        outcome: Called with the output, after the measurement. The exit code has to be 0.
        stdout: A file that receives the output; ``outcome`` is called with an empty output then.
        env: The environment.
        cwd: The working directory.
    """
    cpu, begin = children_seconds(), time.perf_counter()
    if stdout is None:
        done = subprocess.run(argv, check=False, capture_output=True, env=env, cwd=cwd)
    else:
        with open(stdout, "wb") as file:
            done = subprocess.run(argv, check=False, stdout=file, stderr=subprocess.PIPE, env=env, cwd=cwd)
    wall = time.perf_counter() - begin
    if done.returncode:
        raise BenchmarkError(f"{list(argv)} exited with {done.returncode}:\n{done.stderr.decode()[-3000:]}")
    return Sample(wall, children_seconds() - cpu, outcome(done.stdout or b""))


def no_outcome(output: bytes) -> None:
    """Accept any output: the exit code alone is compared."""


def call_sample(function: Callable[[], Any], *, outcome: Callable[[Any], Hashable] = lambda value: value) -> Sample:
    """Measure a function in this process. ``outcome`` is called with its result, after the measurement."""
    begin_usage, begin = _own_seconds() + children_seconds(), time.perf_counter()
    value = function()
    wall = time.perf_counter() - begin
    return Sample(wall, _own_seconds() + children_seconds() - begin_usage, outcome(value))


def _own_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


#: Executes a step for each line of its input, and prints wall time, processor time and the outcome.
_WORKER = """
import json, resource, sys, time
def seconds():
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
arguments = sys.argv[1:]
{code}
for _ in sys.stdin:
    cpu, begin = seconds(), time.perf_counter()
    outcome = step()
    wall = time.perf_counter() - begin
    print("@" + json.dumps([wall, seconds() - cpu, outcome]), flush=True)
"""


class Worker:
    """A Python process that repeats a step, for measurements without the start of Python.

    Args:
        code: Defines a function ``step``, which returns the outcome as a JSON value. ``arguments`` are the arguments.
        arguments: The arguments.
        warm_up: How often the step is executed before the first measurement.
    """

    running: ClassVar[set[Worker]] = set()

    def __init__(self, code: str, *arguments: str | os.PathLike[str], warm_up: int = 2) -> None:
        self._argv = [sys.executable, "-c", _WORKER.format(code=code), *map(str, arguments)]
        self._process: subprocess.Popen[str] | None = None
        self._warm_up = warm_up

    def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._process = None

    def __call__(self) -> Sample:
        """Execute the step once."""
        if self._process is None:
            Worker.running.add(self)
            self._process = subprocess.Popen(self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(self._warm_up):
                self._step()
        return self._step()

    def _step(self) -> Sample:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("@"):
                wall, cpu, outcome = json.loads(line[1:])
                return Sample(wall, cpu, _hashable(outcome))
        raise BenchmarkError(f"a process ended with {self._process.wait()}: {self._argv[3:]}")


def _hashable(value: Any) -> Hashable:
    return tuple(_hashable(item) for item in value) if isinstance(value, list) else value


def script_sample(code: str, *arguments: str | os.PathLike[str]) -> Sample:
    """Execute the step of a ``Worker`` once in a new process, and measure the process from its start to its end."""
    cpu, begin = children_seconds(), time.perf_counter()
    argv = [sys.executable, "-c", _WORKER.format(code=code), *map(str, arguments)]
    done = subprocess.run(argv, check=False, input="\n", capture_output=True, text=True)
    wall = time.perf_counter() - begin
    lines = [line for line in done.stdout.splitlines() if line.startswith("@")]
    if done.returncode or len(lines) != 1:
        raise BenchmarkError(f"a process ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return Sample(wall, children_seconds() - cpu, _hashable(json.loads(lines[0][1:])[2]))


def close_workers() -> None:
    """End the processes of all workers."""
    while Worker.running:
        Worker.running.pop().close()


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the first quartile, the median and the third quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
