"""Output of runs: while they run, compared with tee; afterwards with ``logs``, compared with cat and tail."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.measure import (
    PROGRAM,
    SUBJECT,
    BenchmarkError,
    Goal,
    Row,
    Sample,
    process_sample,
    script_sample,
)
from benchmarks.session import Session
from skyrl_modal import Run

LINE = b"step %09d loss 0.123456 reward 0.543210 tokens/s 12345.67\n"
READ_SIZE = 1 << 20

STREAM = """
from skyrl_modal import Launcher
launcher = Launcher(backend="local", checkout=arguments[0], gpu=None, ray=None)
def step():
    sizes = []
    result = launcher.run("seq " + arguments[1], output=lambda data: sizes.append(len(data)), quiet=True)
    return [result.returncode, sum(sizes)]
"""

#: Prints the time repeatedly without a newline, as a progress bar does.
PROGRESS = """
import sys, time
for _ in range(int(sys.argv[1])):
    print(f"{time.time():.6f}", end="\\r", flush=True)
    time.sleep(0.05)
"""


def rows(session: Session) -> Iterator[Row]:
    """Yield the rows on output."""
    yield from streams(session)
    lines, size = session.sizes.log // len(LINE), session.sizes.log // len(LINE) * len(LINE)
    run = make_run(session, is_lines=True, size=size)
    yield from logs(run, "lines", size, [20, lines // 2])
    yield from logs(make_run(session, is_lines=False, size=size), "no newline", size, [])
    yield follow(session)


def streams(session: Session) -> Iterator[Row]:
    """Yield the rows on lines that a run prints. Both alternatives write output.log, and the output."""
    folder, count = session.folder, session.sizes.lines
    run = [*PROGRAM, "run", "--backend", "local", "--no-ray", "-q", "--checkout", session.checkout]
    size = int(subprocess.run(f"seq {count} | wc -c", shell=True, check=True, capture_output=True).stdout)  # noqa: S602  # constant
    megabytes = f"{size / 1e6:.0f} MB of lines"

    def to_file(argv: list[str | Path]) -> Sample:
        target = folder / "output"
        sample = process_sample(argv, stdout=target)
        return Sample(sample.wall, sample.cpu, target.stat().st_size)

    def with_run(lines: int) -> Sample:
        return to_file([*run, f"seq {lines}"])

    def with_tee(lines: int) -> Sample:
        return to_file(["sh", "-c", f"seq {lines} | tee '{folder}/tee.log'"])

    def without_start(measure: Callable[[int], Sample]) -> Sample:
        """Return the difference between all lines and one line."""
        start, whole = measure(1), measure(count)
        return Sample(whole.wall - start.wall, whole.cpu - start.cpu, whole.outcome)

    tee_to_file = "seq | tee output.log > file"
    for name, title, measures in (
        ("file", f"{megabytes} to a file, new process", (partial(with_run, count), partial(with_tee, count))),
        (
            "rate",
            f"{megabytes} to a file, without the launch: the difference to one line",
            (partial(without_start, with_run), partial(without_start, with_tee)),
        ),
    ):
        alternatives = dict(zip((SUBJECT, tee_to_file), measures, strict=True))
        yield Row(f"output.{name}", title, alternatives, tee_to_file, Goal("ratio", 1.2))

    def to_callable() -> Sample:
        sample = script_sample(STREAM, session.checkout, str(count))
        return Sample(sample.wall, sample.cpu, sample.outcome[1])  # type: ignore[index]  # a list of two numbers

    tee = ["sh", "-c", f"seq {count} | tee '{folder}/tee.log' | wc -c"]
    yield Row(
        "output.callable",
        f"{megabytes} to a callable, new process",
        {SUBJECT: to_callable, "seq | tee output.log | wc": lambda: process_sample(tee, outcome=int)},
        baseline="seq | tee output.log | wc",
    )


def make_run(session: Session, *, is_lines: bool, size: int) -> Run:
    """Return a run that has ended, with an output of a size."""
    run = session.launcher().submit("true")
    run.wait()
    block = LINE * 20_000 if is_lines else bytes(range(256)).replace(b"\n", b"\r") * 4096
    with open(run.log_path, "wb") as file:
        while size > 0:
            size -= file.write(block[:size])
    return run


def logs(run: Run, title: str, size: int, tails: list[int]) -> Iterator[Row]:
    """Yield the rows for an output."""
    path, gigabytes = run.log_path, f"{size / 2**30:.1f} GiB, {title}"
    start = [*PROGRAM, "logs", "-n", "0", run.id]
    if tails:
        nothing = {SUBJECT: lambda: reader_sample(start), "cat": lambda: reader_sample(["cat", "/dev/null"])}
        yield Row("logs.start", "`logs -n 0`, the start of `logs`", nothing, baseline="cat", kind="difference")
    name = "lines" if tails else "bytes"
    yield Row(
        f"logs.{name}",
        f"`logs`, {gigabytes}",
        {
            SUBJECT: lambda: reader_sample([*PROGRAM, "logs", run.id]),
            "skyrl-modal logs --follow": lambda: reader_sample([*PROGRAM, "logs", "--follow", run.id]),
            "cat": lambda: reader_sample(["cat", path]),
        },
        baseline="cat",
    )
    for count in tails:
        argv, tail = [*PROGRAM, "logs", "-n", str(count), run.id], ["tail", "-n", str(count), path]
        yield Row(
            f"logs.last-{count}",
            f"`logs -n {count}`, {gigabytes}",
            {
                SUBJECT: partial(reader_sample, argv),
                "tail -n": partial(reader_sample, tail),
            },
            baseline="tail -n",
            share=0.5,
        )


def reader_sample(argv: list[str]) -> Sample:
    """Run a program, and read its output from a pipe to the end. The outcome is the number of bytes."""
    begin = time.perf_counter()
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        received = 0
        while data := os.read(process.stdout.fileno(), READ_SIZE):
            received += len(data)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - begin
    if process.returncode:
        raise BenchmarkError(f"{argv} exited with {process.returncode}")
    return Sample(wall, usage.ru_utime + usage.ru_stime, received, usage.ru_maxrss / 1024)


def follow(session: Session) -> Row:
    """Return the row on the delay of a progress bar of a run, from its print to the reader."""
    script = session.folder / "progress.py"
    script.write_text(PROGRESS)

    def measure(*, is_tail: bool) -> Sample:
        run = session.launcher().submit([sys.executable, str(script), "60"])
        argv = ["tail", "-f", "-n", "+1", run.log_path] if is_tail else [*PROGRAM, "logs", "--follow", run.id]
        while is_tail and not os.path.exists(run.log_path):
            time.sleep(0.01)
        delays = _delays(argv, 55)[30:55]  # the first ones were printed before the program was ready
        run.cancel(now=True)
        run.wait()
        return Sample(statistics.median(delays), 0.0, len(delays))

    return Row(
        "logs.follow",
        "`logs --follow`, delay of a progress bar without newlines",
        {SUBJECT: lambda: measure(is_tail=False), "tail -f": lambda: measure(is_tail=True)},
        baseline="tail -f",
        kind="difference",
        share=0.5,
    )


def _delays(argv: list[str], count: int) -> list[float]:
    """Return how many seconds after it was printed each piece of a progress bar was received."""
    found: list[float] = []
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        rest = b""
        while len(found) < count and (data := os.read(process.stdout.fileno(), READ_SIZE)):
            now = time.time()
            *pieces, rest = (rest + data).split(b"\r")
            found += [now - float(piece) for piece in pieces if piece]
        process.kill()
    return found
