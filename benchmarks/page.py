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

## What limits the figures

**First snapshot.** Each content is written once to the store and linked once into the snapshot, so that snapshots of
different states and checkouts share contents; `cp -a` only writes. On ext4, which cannot share blocks between files,
neither can avoid this. A program in C that does nothing else took, for 50,000 files and 2.4 s of `cp -a`: 1.0 s to
create the files, 1.85 s to create and link them, and 1.05 s to do so in two processes on two cores. The row "only
creating and linking each file" is the same in Python. The rest of a snapshot is the selection, SHA-256, and stamps by
which unchanged files are recognised, about 0.4 s.

**Unchanged run.** It has to ask for the status of every file, since a change inside a file changes no folder: with
50,000 files 0.1 to 0.2 s, of which most is spent in the kernel, and 0.05 to 0.1 s to list 5,000 folders. git does the
same on another core. What remains are rules, sorting and comparison, about 0.1 s, and the launch itself.

**Selection.** The ratios depend on the processor, since git reads its index in C and asks for the status of files with
several threads: the three rows had 1.17, 1.12 and 1.43 on an AMD EPYC, and 1.42, 1.60 and 2.06 on the Xeon below, with
the same code within 6 %.

**Launch in a new process.** [](launch-time.md) has the timeline. The least is a Python process that imports the modules
of the standard library that are used here, and the end of Python: about half of the time of a launch.

**Output.** A run in a new process begins with its launch, which tee does not have. The row "without the launch" shows
the copying alone.
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
