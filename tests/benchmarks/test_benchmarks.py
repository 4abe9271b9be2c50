"""Tests of the benchmarks and the search for leaks: every row can be measured, and changes and leaks are found."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import soak, trees
from benchmarks.measure import SUBJECT, BenchmarkError, Goal, MissingTool, Row, Sample, Worker, close_workers
from benchmarks.page import page
from benchmarks.results import Report, Result, Series, compare

ROOT = Path(__file__).resolve().parents[2]


def make_report(*ratios: float, cpu: float = 1.0) -> Report:
    """Return the report of one row with these ratios in its rounds."""
    series = {
        SUBJECT: Series(list(ratios), [cpu] * len(ratios)),
        "cp": Series([1.0] * len(ratios), [1.0] * len(ratios)),
    }
    return Report({"date": "today"}, [Result("a.row", "copies", series, "cp", Goal("ratio", 0.6), "ratio")])


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_quick_run_measures_every_row(tmp_path: Path) -> None:
    """A quick run of all benchmarks ends without an error, and its measurements have a row for each goal."""
    argv = [sys.executable, "-m", "benchmarks", "--quick", "--json", str(tmp_path / "new.json")]

    done = subprocess.run(argv, cwd=ROOT, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)

    assert done.returncode == 0, done.stderr[-3000:]
    report = Report.read(tmp_path / "new.json")
    names = {result.name for result in report.results}
    assert {
        "launch.fresh",
        "launch.warm",
        "launch.parallel",
        "start.import",
        "start.help",
        "start.ps",
        "plan.warm",
    } <= names
    assert {"select.skyrl", "select.ignored", "select.kept", "snapshot.first", "output.file", "logs.lines"} <= names
    assert {"modal.skyrl", "modal.ignored", "modal.kept", "modal.first", "ray.driver"} <= names
    assert all(result.title in done.stdout for result in report.results)


def test_alternatives_are_measured_in_turns() -> None:
    """Each round measures every alternative once, every second round in the opposite order."""
    order: list[str] = []

    def measure(name: str) -> Sample:
        order.append(name)
        return Sample(1.0, 1.0)

    Row("a", "a", {SUBJECT: lambda: measure("x"), "other": lambda: measure("y")}).run(3)

    assert order == ["x", "y", "y", "x", "x", "y"]


def test_other_work_is_an_error() -> None:
    """Alternatives whose outcomes differ are not compared."""
    row = Row("a", "a", {SUBJECT: lambda: Sample(1.0, 1.0, 3), "other": lambda: Sample(1.0, 1.0, 4)})

    with pytest.raises(BenchmarkError, match="other did 4"):
        row.run(1)


def test_missing_tools_are_left_out_if_allowed() -> None:
    """An alternative whose tool is not installed is an error, except in a quick run."""

    def missing() -> Sample:
        raise MissingTool("torchx is not installed")

    with pytest.raises(MissingTool):
        Row("a", "a", {SUBJECT: lambda: Sample(1.0, 1.0), "torchx": missing}).run(1)

    row = Row("a", "a", {SUBJECT: lambda: Sample(1.0, 1.0), "torchx": missing}, baseline="torchx")
    row.run(1, skip_missing=True)
    assert Result.of(row).baseline is None
    assert Result.of(row).values() is None


def test_worker_measures_its_steps() -> None:
    """A worker returns what its steps return, with the processor time of the processes that they start."""
    worker = Worker("import subprocess\ndef step():\n    subprocess.run(['true'])\n    return [arguments[0], 1]", "x")

    try:
        samples = [worker(), worker()]
    finally:
        close_workers()

    assert [sample.outcome for sample in samples] == [("x", 1), ("x", 1)]
    assert all(sample.wall > 0 for sample in samples)


def test_changes_beyond_the_noise_are_reported() -> None:
    """A change is reported if the intervals of the medians do not overlap, for wall and processor time."""
    old = make_report(0.50, 0.52, 0.48, 0.51, 0.49)

    assert list(compare(old, make_report(0.51, 0.53, 0.47, 0.50, 0.52))) == []
    [line] = compare(old, make_report(0.60, 0.62, 0.58, 0.61, 0.59))
    assert "more" in line
    assert "wall time" in line
    [line] = compare(old, make_report(0.50, 0.52, 0.48, 0.51, 0.49, cpu=0.5))
    assert "less" in line
    assert "processor time" in line


def test_reports_are_read_as_they_were_written(tmp_path: Path) -> None:
    """The page of a report that was read from JSON is the same; it has the figures, the goal and the machine."""
    report = make_report(0.50, 0.52, 0.48)
    report.write(tmp_path / "report.json")

    text = page(Report.read(tmp_path / "report.json"))

    assert text == page(report)
    assert "| date | today |" in text
    json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))


def test_checkouts_are_the_same_each_time(tmp_path: Path) -> None:
    """Two checkouts have the same commits; git finds nothing changed, and ignores the ignored files."""
    roots = [trees.skyrl_tree(tmp_path / name, files=40, commits=7) for name in "ab"]
    trees.add_ignored(roots[1], 20)

    heads = [subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=root) for root in roots]
    status = subprocess.check_output(["git", "status", "--porcelain"], cwd=roots[1])
    listed = subprocess.check_output(["git", "ls-files"], cwd=roots[0]).splitlines()

    assert heads[0] == heads[1]
    assert status == b""
    assert len(listed) == 40


def steps(values: Iterator[float]) -> soak.Phase:
    """Return a phase in which the memory has these values, and nothing else changes."""
    phase = soak.Phase("a phase", 50)
    for position in range(50):
        usage = dict.fromkeys(soak.LIMITS, 1.0) | {"memory, MiB": next(values), soak.RECORDS: 0.0}
        phase.samples.append((position, soak.Usage(usage)))
    return phase


def test_growth_differs_from_noise_and_caches() -> None:
    """Memory that grows steadily is an error. Caches that are filled first, and single peaks, are not."""
    leak, peaks = (20.0 + 0.3 * number for number in itertools.count()), itertools.cycle([20.0, 20.0, 50.0])
    cache = (min(90.0, 20.0 + 10 * number) for number in itertools.count())

    assert [error for error in steps(leak).errors() if "memory" in error]
    assert steps(peaks).errors() == []
    assert steps(cache).errors() == []


@pytest.mark.slow
def test_soak_finds_no_leak_in_a_short_run(tmp_path: Path) -> None:
    """A short search for leaks finds none, and leaves no process and no file."""
    argv = [sys.executable, "-m", "benchmarks.soak", "--runs", "20", "--minutes", "0.2", "--index", "20"]
    env = {**os.environ, "TMPDIR": str(tmp_path)}

    done = subprocess.run(argv, cwd=ROOT, env=env, check=False, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert os.listdir(tmp_path) == []
