"""Compare ``skyrl-modal logs`` with cat, tail -n and tail -f: ``nox -s bench -- logs``.

Each round measures every candidate once, in turn, so that a temporary load of the machine affects all of them. Prints
medians, the spread, and the median of the ratios of each round. Processor time includes that of the system; the output
is read from a pipe, as by another program. The start of Python is included, and is measured alone by ``logs -n 0``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from skyrl_modal import Launcher, Run

#: A measurement returns seconds of wall time, seconds of processor time, and MiB of memory at most.
Measure = Callable[[], tuple[float, float, float]]

LINE = b"step %09d loss 0.123456 reward 0.543210 tokens/s 12345.67\n"
PROGRAM = [sys.executable, "-m", "skyrl_modal", "logs"]
READ_SIZE = 1 << 20

#: Prints the time repeatedly without a newline, as a progress bar does.
PROGRESS = """
import sys, time
for _ in range(int(sys.argv[1])):
    print(f"{time.time():.6f}", end="\\r", flush=True)
    time.sleep(0.05)
"""


def read_all(argv: list[str], size: int) -> tuple[float, float, float]:
    """Run a program, read its output to the end, and check the number of bytes."""
    begin = time.perf_counter()
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        received = 0
        while data := os.read(process.stdout.fileno(), READ_SIZE):
            received += len(data)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - begin
    if process.returncode or received != size:
        raise SystemExit(f"{argv} exited with {process.returncode} after {received} of {size} bytes")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


class Group:
    """Programs that do the same; all are compared with the first one."""

    def __init__(self, title: str, candidates: dict[str, Measure]) -> None:
        self.title = title
        self.candidates = candidates
        self.results: dict[str, list[tuple[float, float, float]]] = {name: [] for name in candidates}

    def run(self) -> None:
        """Measure all candidates once."""
        for name, measure in self.candidates.items():
            self.results[name].append(measure())

    def rows(self) -> Iterator[str]:
        """Yield the rows of the table."""
        base = next(iter(self.results.values()))
        yield self.title
        for name, results in self.results.items():
            walls = [wall for wall, _, _ in results]
            ratio = statistics.median(wall / first for (wall, _, _), (first, _, _) in zip(results, base, strict=True))
            cpu = statistics.median(cpu for _, cpu, _ in results)
            memory = max(memory for _, _, memory in results)
            yield (
                f"  {name:<34} {statistics.median(walls):>8.3f} s {ratio:>7.2f} x  {min(walls):>7.3f}-{max(walls):.3f}"
                f"  processor {cpu:.3f} s  memory {memory:.0f} MiB  n={len(walls)}"
            )


def make_run(checkout: Path, lines: bool, size: int) -> Run:
    """Return a run that has ended, with an output of a size."""
    launcher = Launcher(backend="local", checkout=checkout, gpu=None, ray=None)
    run = launcher.submit("true")
    run.wait()
    block = LINE * 20_000 if lines else bytes(range(256)).replace(b"\n", b"\r") * 4096
    with open(run.log_path, "wb") as file:
        while size > 0:
            size -= file.write(block[:size])
    return run


def groups_of(run: Run, title: str, size: int, tails: list[int]) -> Iterator[Group]:
    """Yield the groups for an output."""
    path = run.log_path
    yield Group(
        f"{title}: all",
        {
            "cat": lambda: read_all(["cat", path], size),
            "skyrl-modal logs": lambda: read_all([*PROGRAM, run.id], size),
            "skyrl-modal logs --follow": lambda: read_all([*PROGRAM, "--follow", run.id], size),
            "skyrl-modal logs -n 0 (its start)": lambda: read_all([*PROGRAM, "-n", "0", run.id], 0),
        },
    )
    for count in tails:
        expected = min(size, count * len(LINE))
        tail = ["tail", "-n", str(count), path]
        logs = [*PROGRAM, "-n", str(count), run.id]
        yield Group(
            f"{title}: the last {count:,} lines",
            {
                "tail -n": lambda argv=tail, bytes_=expected: read_all(argv, bytes_),  # type: ignore[misc]
                "skyrl-modal logs -n": lambda argv=logs, bytes_=expected: read_all(argv, bytes_),  # type: ignore[misc]
            },
        )


def delays(argv: list[str], count: int) -> list[float]:
    """Return how many seconds after it was printed each piece of a progress bar was received."""
    found: list[float] = []
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        rest = b""
        while len(found) < count and (data := os.read(process.stdout.fileno(), READ_SIZE)):
            now = time.time()
            *pieces, rest = (rest + data).split(b"\r")
            found += [now - float(piece) for piece in pieces if piece]
        process.kill()
    return found


def follow(checkout: Path, rounds: int) -> Iterator[str]:
    """Yield rows with the delays of a progress bar of a run."""
    script = checkout / "progress.py"
    script.write_text(PROGRESS)
    launcher = Launcher(backend="local", checkout=checkout, gpu=None, ray=None)
    found: dict[str, list[float]] = {"tail -f": [], "skyrl-modal logs --follow": []}
    for _ in range(rounds):
        for name in found:
            run = launcher.submit([sys.executable, "progress.py", "200"])
            argv = ["tail", "-f", "-n", "+1", run.log_path] if name == "tail -f" else [*PROGRAM, "--follow", run.id]
            while name == "tail -f" and not os.path.exists(run.log_path):
                time.sleep(0.01)
            found[name] += delays(argv, 190)[100:]  # the first ones were printed before the program was ready
            run.cancel(now=True)
            run.wait()
    yield "a progress bar without newlines: seconds from print to reader"
    for name, results in found.items():
        yield f"  {name:<34} {statistics.median(results):>8.3f} s            {min(results):>7.3f}-{max(results):.3f}"


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1 << 30, help="bytes of output (default: 1 GiB)")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
            os.environ[name] = str(Path(folder, name))
        checkout = Path(folder, "SkyRL")
        (checkout / "skyrl-gym").mkdir(parents=True)
        size = options.size // len(LINE) * len(LINE)
        groups = [
            *groups_of(make_run(checkout, True, size), "lines", size, [20, 10_000_000]),
            *groups_of(make_run(checkout, False, size), "no newline", size, []),
        ]
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
            for group in groups:
                group.run()
        for group in groups:
            print("\n".join(group.rows()))
        print("\n".join(follow(checkout, max(1, options.rounds // 2))))


if __name__ == "__main__":
    main()
