"""Results of benchmarks as JSON, and their comparison with earlier ones."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import random
import re
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attrs import asdict, define, frozen

from benchmarks.measure import SUBJECT, Goal, Row

#: Packages whose versions are recorded.
PACKAGES = ("skyrl-modal", "modal", "ray", "torchx", "attrs", "click")
_RESAMPLES = 2_000
#: The part of the bootstrap medians that an interval contains.
_CONFIDENCE = 0.95


@frozen
class Series:
    """The measurements of one alternative: seconds of wall time and of processor time, and MiB of memory."""

    wall: Sequence[float]
    cpu: Sequence[float]
    memory: float | None = None


@frozen
class Result:
    """The measurements of one row. The alternatives were measured in turns, so the n-th ones belong together."""

    name: str
    title: str
    series: Mapping[str, Series]
    baseline: str | None
    goal: Goal | None
    kind: str

    @classmethod
    def of(cls, row: Row) -> Result:
        """Return the result of a row that was measured."""
        series = {}
        for name, samples in row.samples.items():
            memory = [sample.memory for sample in samples if sample.memory is not None]
            walls = [round(sample.wall, 6) for sample in samples]
            cpus = [round(sample.cpu, 6) for sample in samples]
            series[name] = Series(walls, cpus, max(memory) if memory else None)
        baseline = row.baseline if row.baseline in series else None
        return cls(row.name, row.title, series, baseline, row.goal, row.goal.kind if row.goal else row.kind)

    def values(self, name: str = SUBJECT, *, measure: str = "wall") -> list[float] | None:
        """Return the compared values of each round: ratios or differences to the baseline, or seconds.

        None if there is nothing to compare with.
        """
        measured: Sequence[float] = getattr(self.series[name], measure)
        if self.kind == "seconds":
            return list(measured)
        if self.baseline is None:
            return None
        base: Sequence[float] = getattr(self.series[self.baseline], measure)
        pairs = zip(measured, base, strict=True)
        if self.kind == "difference":
            return [value - other for value, other in pairs]
        return [value / other for value, other in pairs] if all(base) else None


@define
class Report:
    """The results of one run of benchmarks.

    Attributes:
        machine: Facts about the machine and the versions.
        results: The results.
    """

    machine: dict[str, str]
    results: list[Result]

    def write(self, path: Path) -> None:
        """Write the report as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Report:
        """Read a report."""
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        results = []
        for item in data["results"]:
            series = {name: Series(**values) for name, values in item.pop("series").items()}
            goal = item.pop("goal")
            results.append(Result(**item, series=series, goal=Goal(**goal) if goal else None))
        return cls(data["machine"], results)


def describe_machine() -> dict[str, str]:
    """Return facts about this machine and about the versions of the tools."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = re.search(r"^model name\s*: (.+)$", info, re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    git = subprocess.run(["git", "--version"], check=True, capture_output=True, text=True).stdout.split()[2]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], check=False, capture_output=True, text=True).stdout
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "processor": f"{model[1] if model else platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{memory:.0f} GiB",
        "load average at the start": f"{os.getloadavg()[0]:.1f}",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}, git {git}",
        "packages": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "commit": commit.strip() or "unknown",
    }


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the interval that contains the median with a probability of 95 % (bootstrap, the same for same values)."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    edge = int(_RESAMPLES * (1 - _CONFIDENCE) / 2)
    return medians[edge], medians[-1 - edge]


def compare(old: Report, new: Report) -> Iterator[str]:
    """Yield a line for each row that has changed by more than the noise.

    A row has changed if the 95 % bootstrap intervals of the old and of the new median do not overlap. The medians are
    those of the ratios or differences within each round, which do not depend on the load of the machine; where there is
    no alternative, those of the seconds. Wall time and processor time are compared separately.
    """
    earlier = {result.name: result for result in old.results}
    for result in new.results:
        other = earlier.get(result.name)
        if other is None:
            yield f"{result.name}: new"
            continue
        for measure, title in (("wall", "wall time"), ("cpu", "processor time")):
            before, after = other.values(measure=measure), result.values(measure=measure)
            if not before or not after or other.kind != result.kind:
                continue
            (low, high), (new_low, new_high) = interval(before), interval(after)
            if new_low > high or new_high < low:
                unit = "" if result.kind == "ratio" else " s"
                change = "less" if new_high < low else "more"
                yield (
                    f"{result.name}, {title}, {result.kind}: {statistics.median(before):.3f}{unit} -> "
                    f"{statistics.median(after):.3f}{unit} ({change}; intervals {low:.3f}-{high:.3f} and "
                    f"{new_low:.3f}-{new_high:.3f})"
                )
    yield from (f"{name}: not measured any more" for name in earlier if name not in {r.name for r in new.results})
