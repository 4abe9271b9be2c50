"""Metrics of runs: reading of a long run, compared with other ways to read it, and a call of ``Tracking.log``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import SUBJECT, Goal, Measure, Row, Sample, call_sample, script_sample
from benchmarks.session import Session
from skyrl_modal.backends.base import StoredFile
from skyrl_modal.formats import hook
from skyrl_modal.formats.metrics_writer import METRICS_FOLDER, MetricsFile
from skyrl_modal.run.metrics import Metrics, RunFiles

KEYS = [f"group/{number}/metric_name" for number in range(60)]

#: Logs steps with a class like SkyRL's, and returns the median of the seconds of a call.
LOG = """
import os, statistics, sys, time
if arguments[2]:
    os.environ["SKYRL_MODAL_RUN_FOLDER"] = arguments[2]
    sys.path.insert(0, arguments[3])
    try:
        import sitecustomize
    except ImportError:
        pass
    sys.path.remove(arguments[3]) if arguments[3] in sys.path else None
sys.path.insert(0, arguments[0])
from skyrl.train.utils.tracking import Tracking
tracker, durations = Tracking(), []
for number in range(int(arguments[1])):
    data = {f"group/{key}/metric_name": number / (key + 3) for key in range(60)}
    begin = time.perf_counter()
    tracker.log(data, step=number, commit=True)
    durations.append(time.perf_counter() - begin)
def step():
    return statistics.median(durations)
"""
#: What SkyRL does for its console: it formats all values. It writes nothing here.
TRACKING = """
import pprint
class Tracking:
    def log(self, data, step, commit=False):
        return pprint.pformat({key: f"{value:.4f}" for key, value in data.items()})
"""


class FolderExecution:
    """The files of a run in a folder, as a backend returns them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def list_files(self, folder: str) -> list[StoredFile]:
        """Return the files."""
        return [StoredFile(path.name, path.stat().st_size) for path in sorted((self._folder / folder).iterdir())]

    def read_part(self, path: str, offset: int, limit: int) -> bytes:
        """Return a part of a file."""
        with (self._folder / path).open("rb") as file:
            file.seek(offset)
            return file.read(limit)


def rows(session: Session) -> Iterator[Row]:
    """Yield the rows on metrics."""
    steps = session.sizes.steps
    folder = session.folder / "metrics-run"
    folder.mkdir()
    file = MetricsFile(str(folder), attempt=1, started_at=1.0, rank=0)
    for step in range(steps):
        file.append("tracker", step, {key: step / (number + 3) for number, key in enumerate(KEYS)})
    execution: Any = FolderExecution(folder)

    def read(use: Callable[[Metrics], object]) -> Measure:
        def work() -> int:
            metrics = Metrics(RunFiles(execution))
            use(metrics)
            return len(metrics)

        return lambda: call_sample(work)

    title = f"{steps:,} steps with {len(KEYS)} metrics"
    decimals: dict[str, Measure] = {"json.loads of the decimals": lambda: call_sample(lambda: read_decimals(folder))}
    name = "json.loads of the decimals"
    yield Row(
        "metrics.read",
        f"`run.metrics()`: {title}",
        {SUBJECT: read(len), **decimals},
        name,
        Goal("seconds", 1.0),
        share=0.5,
    )
    yield Row("metrics.rows", f"all rows as dicts: {title}", {SUBJECT: read(list), **decimals}, name, share=0.5)
    yield Row("metrics.pandas", f"`to_pandas()`: {title}", {SUBJECT: read(Metrics.to_pandas)}, share=0.5)
    yield log_calls(session)


def read_decimals(folder: Path) -> int:
    """Read the same files as a program without this package does."""
    count = 0
    for path in (folder / METRICS_FOLDER).iterdir():
        keys: list[str] = []
        for line in path.open():
            record = json.loads(line)
            if "keys" in record:
                keys = record["keys"]
            else:
                count += bool(dict(zip(keys, record["values"], strict=True)))
    return count


def log_calls(session: Session) -> Row:
    """Return the row on calls of a tracker that formats its values, with the hook and without it."""
    packages = session.folder / "metrics-packages"
    path = packages / "skyrl" / "train" / "utils" / "tracking.py"
    path.parent.mkdir(parents=True)
    path.write_text(TRACKING)
    run_folder = session.folder / "metrics-hook"
    run_folder.mkdir()

    def measure(folder: str) -> Sample:
        arguments = (str(packages), "1000", folder, str(Path(hook.__file__).parent))
        seconds = script_sample(LOG, *arguments).outcome
        assert isinstance(seconds, float)
        return Sample(seconds, seconds)

    alternatives: dict[str, Measure] = {
        SUBJECT: lambda: measure(str(run_folder)),
        "without the hook": lambda: measure(""),
    }
    title = f"a call of `Tracking.log` with {len(KEYS)} values: median of 1,000 calls"
    return Row("metrics.log", title, alternatives, "without the hook", kind="difference")
