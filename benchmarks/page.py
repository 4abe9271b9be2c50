"""The page docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.measure import SUBJECT, quartiles
from benchmarks.results import Report, Result

INTRODUCTION = """\
# Benchmarks

`nox -s bench` measures the package next to other tools that do the same work, on the same machine and in the same run.
Each round measures every alternative once, in turns, and checks that all of them had the same result: the same files,
the same output, the same exit code. The checkouts are generated: 1,061 files of 22 MB in total with 400 commits, as
SkyRL has them, and larger ones. Modal is the local stand-in for its servers (`tests/support/loopback`), for both
alternatives; there is no network.

| column | meaning |
|---|---|
| this | median of the seconds with skyrl-modal |
| beside | median of the seconds of the alternative |
| compared | median of the ratio to the alternative in each round; with a unit: of the difference, or of the seconds |
| quartiles | first and third quartile of the same |
| processor time | the same as "compared", for the processor time of all processes |
| n | number of rounds |

`nox -s bench` writes this page, and all measurements to `docs/generated/benchmarks.json`. `nox -s bench -- NAME...`
measures some rows, such as `launch` or `launch.warm`. `--rounds N` sets the number of rounds (11), and `--json FILE`
writes the measurements to a file. A row begins no further round after a minute, but has three rounds in any case, and
the two slowest rows have two.
`--compare OLD.json` reports the changes since an earlier run: rows whose 95 % bootstrap intervals of the compared
median do not overlap. `--quick` runs every row with small inputs, to test the benchmarks.

Files are removed at the end only, and need about 6 GB in the temporary folder: on ext4, the creation of many files
takes several times as long in the minutes after many others were removed.

[](launch-time.md) shows what a launch does, and where its time goes.

`nox -s soak` looks for leaks: memory, file descriptors, processes, threads and disk during 500 short runs, an hour of
output, and readings of the list of 1,000 runs.
"""

#: The first part of the names of rows, and the title of their table.
SECTIONS = {
    "launch": "Launches on this machine",
    "start": "Start of Python",
    "plan": "Plan",
    "select": "Selection of files",
    "snapshot": "Snapshots",
    "output": "Output of runs",
    "logs": "Output of ended runs",
    "modal": "Launches on Modal",
    "masking": "Masking of secrets",
    "metrics": "Metrics",
    "ray": "Ray",
}
_COLUMNS = ("what", "alternative", "this", "beside", "compared", "quartiles", "processor time", "goal", "n")
_HEADER = "| " + " | ".join(_COLUMNS) + " |\n" + "|---" * len(_COLUMNS) + "|"


def page(report: Report) -> str:
    """Return the page as Markdown."""
    parts = [INTRODUCTION, "## Machine\n", "| | |\n|---|---|"]
    parts += [f"| {name} | {value} |" for name, value in report.machine.items()]
    for prefix, title in SECTIONS.items():
        found = [result for result in report.results if result.name.partition(".")[0] == prefix]
        if found:
            parts += [f"\n## {title}\n", _HEADER]
            parts += [row for result in found for row in _rows(result)]
    return "\n".join(parts) + "\n"


def _rows(result: Result) -> Iterator[str]:
    """Yield the row of the package next to the baseline, and one for each further alternative next to the baseline."""
    others = [name for name in result.series if name not in (SUBJECT, result.baseline)]
    for name in [SUBJECT, *others]:
        title = result.title if name == SUBJECT else f"... {name}"
        cells = [cell.replace("|", "\\|") for cell in (title, *_cells(result, name))]
        yield "| " + " | ".join(cells) + " |"


def _cells(result: Result, name: str) -> list[str]:
    series = result.series[name]
    base = result.series.get(result.baseline or "")
    values, cpu = result.values(name), result.values(name, measure="cpu")
    cells = [
        result.baseline or "-",
        _seconds(quartiles(series.wall)[1]),
        _seconds(quartiles(base.wall)[1]) if base else "-",
    ]
    if values:
        low, middle, high = quartiles(values)
        cells += [_unit(middle, result.kind), f"{_unit(low, result.kind)} to {_unit(high, result.kind)}"]
    else:
        cells += ["-", "-"]
    cells.append(_unit(quartiles(cpu)[1], result.kind) if cpu and any(series.cpu) else "-")
    goal = result.goal if name == SUBJECT else None
    cells.append(_unit(goal.limit, goal.kind) if goal else "-")
    return [*cells, str(len(series.wall))]


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def _unit(value: float, kind: str) -> str:
    if kind == "ratio":
        return f"{value:.2f}"
    return f"{value * 1000:+.0f} ms" if kind == "difference" else _seconds(value)
