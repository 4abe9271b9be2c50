"""Look for leaks: ``nox -s soak``, or ``python -m benchmarks.soak``.

Memory, file descriptors, processes, threads and disk are sampled during many short runs in one process, during a run
with steady output, and while the list of many runs is read repeatedly. The growth of each is the slope of its samples
(the median of the slopes of all pairs), times the length of the phase. The first fifth of the samples is not counted,
in which caches are filled. A growth above its limit is an error, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from attrs import asdict, define, field, frozen

from benchmarks.launch import FILL, RUN
from benchmarks.measure import Worker, close_workers
from benchmarks.results import describe_machine
from benchmarks.session import Session, Sizes

#: How much each quantity may grow in a phase. The records of runs are kept by design; they have a limit for each run.
LIMITS = {"memory, MiB": 8.0, "descriptors": 0.5, "processes": 0.5, "threads": 0.5, "disk without records, MiB": 1.0}
RECORDS, RECORDS_PER_RUN = "records, KiB per run", 64.0
PR_SET_CHILD_SUBREAPER = 36
SAMPLES = 60

#: A run that prints lines, whose number and bytes are counted. Arguments: the checkout, the command.
OUTPUT = """
import sys
from skyrl_modal import Launcher
sizes = [0]
def receive(data):
    if not sizes[0]:
        print("started", flush=True)
    sizes[0] += len(data)
launcher = Launcher(backend="local", checkout=sys.argv[1], gpu=None, ray=None)
result = launcher.run(sys.argv[2], output=receive, quiet=True)
print(result.returncode, sizes[0], result.log_path)
"""

#: Prints 100 lines in each second. Argument: the number of lines.
LINES = """
import sys, time
begin = time.monotonic()
for number in range(int(sys.argv[1])):
    print(f"step {number:09d} loss 0.123456 reward 0.543210 tokens/s 12345.67", flush=True)
    time.sleep(max(0, begin + number / 100 - time.monotonic()))
"""

INDEX = """
from skyrl_modal import runs
def step():
    return [run.state.value for run in runs(limit=None)].count("succeeded")
"""


@frozen
class Usage:
    """What processes use at one time, by the names of ``LIMITS``."""

    values: dict[str, float]

    @classmethod
    def of(cls, folder: Path) -> Usage:
        """Return what the processes that this one has started use, and the files in a folder."""
        memory = descriptors = threads = count = 0.0
        for pid in descendants(os.getpid()):
            with contextlib.suppress(OSError, StopIteration):
                # Without pages of files, whose share changes when other processes that use the same libraries end.
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
                memory += next(int(line.split()[1]) for line in rollup if line.startswith("Pss_Anon:")) / 1024
                descriptors += len(os.listdir(f"/proc/{pid}/fd"))
                threads += len(os.listdir(f"/proc/{pid}/task"))
                count += 1
        disk = {name: _size(folder / name) for name in os.listdir(folder) if (folder / name).is_dir()}
        records = disk.pop("XDG_DATA_HOME", 0) + disk.pop("XDG_STATE_HOME", 0)
        numbers = (memory, descriptors, count, threads, sum(disk.values()) / 2**20)
        return cls({**dict(zip(LIMITS, numbers, strict=True)), RECORDS: records / 2**10})


@define
class Phase:
    """The samples of one phase.

    Attributes:
        title: What was done.
        length: Its length: number of runs, or seconds.
        runs: The number of runs that it made.
        samples: When each sample was taken, in the unit of ``length``, and the usage.
        failure: What else was wrong; None for nothing.
    """

    title: str
    length: float
    runs: int = 0
    samples: list[tuple[float, Usage]] = field(factory=list)
    failure: str | None = None

    def add(self, position: float, folder: Path) -> None:
        """Take a sample."""
        self.samples.append((position, Usage.of(folder)))

    def growth(self, name: str) -> float:
        """Return by how much a quantity grew in the phase, without the first fifth."""
        kept = self.samples[len(self.samples) // 5 :]
        points = [(position, usage.values[name]) for position, usage in kept]
        slopes = [(b - a) / (y - x) for (x, a), (y, b) in itertools.combinations(points, 2) if y > x]
        return statistics.median(slopes) * (points[-1][0] - points[0][0]) if slopes else 0.0

    def rows(self) -> Iterator[tuple[str, float, float, float, float]]:
        """Yield name, first and last value, growth and limit of each quantity."""
        first, last = (self.samples[number][1].values for number in (len(self.samples) // 5, -1))
        for name, limit in LIMITS.items():
            yield name, first[name], last[name], self.growth(name), limit
        if self.runs:
            share = self.runs / self.length * (self.samples[-1][0] - self.samples[len(self.samples) // 5][0])
            yield RECORDS, first[RECORDS], last[RECORDS], self.growth(RECORDS) / max(1.0, share), RECORDS_PER_RUN

    def errors(self) -> list[str]:
        """Return a line for each limit that was exceeded."""
        found = [
            f"{self.title}: {name} grew by {growth:.2f}, more than {limit:g}"
            for name, _, _, growth, limit in self.rows()
            if growth > limit
        ]
        return [*found, f"{self.title}: {self.failure}"] if self.failure else found


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, directly or not. Processes that have exited are left out."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, parent = Path(entry.path, "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[:2]
                if state != "Z":
                    children.setdefault(int(parent), []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        new = children.get(todo.pop(), [])
        found += new
        todo += new
    return found


def _size(folder: Path) -> int:
    """Return the size of the files below a folder on the disk. Files that are removed meanwhile are not counted."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512
    return total


def short_runs(session: Session, folder: Path, count: int) -> Phase:
    """Make short runs in one process."""
    phase = Phase(f"{count} runs of `true` in one process", count, runs=count)
    return _repeat(phase, Worker(RUN, session.checkout, warm_up=1), 0, folder)


def read_index(session: Session, folder: Path, count: int) -> Phase:
    """Read the list of many runs repeatedly, in one process."""
    subprocess.run([sys.executable, "-c", FILL, session.checkout, str(count)], check=True)
    phase = Phase(f"list of {count:,} runs, read {SAMPLES} times in one process", SAMPLES)
    return _repeat(phase, Worker(INDEX, warm_up=1), None, folder)


def _repeat(phase: Phase, worker: Worker, expected: object, folder: Path) -> Phase:
    """Execute the steps of a phase in a worker. Its outcome has to be the expected one; None for any of the first."""
    count = int(phase.length)
    try:
        for number in range(1, count + 1):
            outcome = worker().outcome
            expected = outcome if expected is None else expected
            if outcome != expected:
                phase.failure = f"step {number} returned {outcome}, and not {expected}"
                break
            if number % max(1, count // SAMPLES) == 0:
                phase.add(number, folder)
    finally:
        close_workers()
    return phase


def steady_output(session: Session, folder: Path, seconds: float) -> Phase:
    """Make one run with steady output."""
    script = folder / "lines.py"
    script.write_text(LINES)
    phase = Phase(f"a run that prints for {seconds:g} s", seconds)
    argv = [sys.executable, "-c", OUTPUT, str(session.checkout), f"{sys.executable} {script} {int(seconds * 100)}"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        begin = time.monotonic()
        interval = max(0.1, seconds / SAMPLES)
        while time.monotonic() < begin + seconds - interval:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(interval)
                break
            phase.add(time.monotonic() - begin, folder)
        returncode, received, path = process.stdout.read().split() or ("none", "0", argv[0])
    stored = os.path.getsize(path)
    if returncode != "0" or int(received) != stored or not stored:
        phase.failure = f"exit code {returncode}; {received} bytes were received, and output.log has {stored}"
    return phase


def report(phases: Sequence[Phase]) -> Iterator[str]:
    """Yield the lines of the report as Markdown."""
    for phase in phases:
        yield f"\n## {phase.title}\n"
        yield "| quantity | after the first fifth | at the end | growth | limit |\n|---|---|---|---|---|"
        for name, first, last, growth, limit in phase.rows():
            yield f"| {name} | {first:.2f} | {last:.2f} | {growth:+.2f} | {limit:g} |"


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="nox -s soak --", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=500, help="short runs (default: 500)")
    parser.add_argument("--minutes", type=float, default=60.0, help="minutes of steady output (default: 60)")
    parser.add_argument("--index", type=int, default=1_000, help="runs in the index (default: 1000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples to this file")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the phases, and print the report."""
    options = parse(argv)
    # Processes whose parents have exited become children of this one, and are counted.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    machine, phases = describe_machine(), []
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as name:
        folder = Path(name) / "runs"
        (folder / "tmp").mkdir(parents=True)
        Session(folder, Sizes()).use_own_folders()
        os.environ["TMPDIR"] = str(folder / "tmp")
        session = Session(Path(name), Sizes())
        steps: list[Callable[[], Phase]] = [
            lambda: short_runs(session, folder, options.runs),
            lambda: steady_output(session, folder, options.minutes * 60),
            lambda: read_index(session, folder, options.index),
        ]
        for step in steps:
            phases.append(step())
            print("\n".join(report(phases[-1:])), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "phases": [asdict(phase) for phase in phases]}))
    errors = [error for phase in phases for error in phase.errors()]
    print("\n" + ", ".join(f"{name} {value}" for name, value in machine.items()))
    print("\n".join(errors) if errors else "nothing grew by more than its limit")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
