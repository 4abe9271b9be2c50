"""What happens to a local run if one of its processes is killed: the expected end of the run for every process.

    python -m tests.support.kill_table | tee kills.log
    python -m tests.support.kill_table --page kills.log

The first command kills each process in each phase of a real run, on one and two nodes, with and without Ray, and
compares. The second one writes ``docs/generated/kill_table.md`` from the output of one or several of them.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import enum
import queue
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs

from skyrl_modal.protocol.state import FailureCause, RunState

PAGE = Path(__file__).resolve().parents[2] / "docs" / "generated" / "kill_table.md"


class Target(enum.StrEnum):
    """A process of a run."""

    CALLER = "caller"
    WRAPPER = "wrapper shell"
    CLEANER = "cleanup shell"
    BUBBLEWRAP = "bubblewrap"
    SUPERVISOR = "supervisor"
    SHELL = "shell"
    COMMAND = "command"
    RAY_START = "ray start"
    GCS_SERVER = "gcs_server"
    RAYLET = "raylet"
    DASHBOARD_AGENT = "dashboard agent"
    RUNTIME_ENV_AGENT = "runtime env agent"
    DASHBOARD = "dashboard"
    MONITOR = "monitor"
    LOG_MONITOR = "log monitor"
    PROBE = "readiness probe"


class Phase(enum.StrEnum):
    """When the process is killed."""

    #: Without Ray: before the supervisor is ready. With Ray: before Ray is ready.
    START = "start"
    COMMAND = "command"
    #: The run was cancelled, and the command ignores the signals.
    GRACE = "grace period"
    #: The command has succeeded, and a process that it left in the background is being ended.
    AFTER = "after the command"


@attrs.frozen
class Ending:
    """How a run ends.

    Attributes:
        state: Its state; None for a run that was not started: ``Launcher.run`` raises, and no process finds a run.
        returncode: Its exit code.
        cause: Its cause.
    """

    state: RunState | None
    returncode: int | None = None
    cause: FailureCause | None = None

    def __str__(self) -> str:
        if self.state is None:
            return "not started"
        return f"{self.state} {self.returncode}" + (f" {self.cause}" if self.cause else "")


NOT_STARTED = Ending(None)
SUCCEEDED = Ending(RunState.SUCCEEDED, 0)
LOST = Ending(RunState.LOST, 125, FailureCause.SUPERVISOR_DIED)
#: The command was not started yet.
CANCELLED_EARLY = Ending(RunState.CANCELLED, 130, FailureCause.STOPPED)
#: The command exits with the first signal, SIGINT.
CANCELLED = Ending(RunState.CANCELLED, 130, FailureCause.STOPPED)
#: The command ignores the signals until SIGKILL, or was the process that was killed.
CANCELLED_BY_KILL = Ending(RunState.CANCELLED, 137, FailureCause.STOPPED)
COMMAND_KILLED = Ending(RunState.FAILED, 137, FailureCause.COMMAND_FAILED)
RAY_NOT_READY = Ending(RunState.FAILED, 125, FailureCause.RAY_NOT_READY)
#: The command exits with SIGTERM.
RAY_EXITED = Ending(RunState.FAILED, 143, FailureCause.RAY_EXITED)
RANK_LOST = Ending(RunState.FAILED, 143, FailureCause.RANK_LOST)
RANK_LOST_EARLY = Ending(RunState.FAILED, 125, FailureCause.RANK_LOST)

Expectations = dict[Phase, tuple[Ending, ...]]

_CALLER: Expectations = {
    Phase.START: (NOT_STARTED, CANCELLED_EARLY),
    Phase.COMMAND: (CANCELLED,),
    Phase.GRACE: (CANCELLED_BY_KILL,),
    Phase.AFTER: (SUCCEEDED,),
}
#: Without the supervisor the result is not known, whatever the command does.
_RANK_ZERO: Expectations = {
    Phase.START: (NOT_STARTED, LOST),
    Phase.COMMAND: (LOST,),
    Phase.GRACE: (LOST,),
    Phase.AFTER: (LOST,),
}
_OTHER_RANK: Expectations = {
    Phase.START: (NOT_STARTED, RANK_LOST_EARLY),
    Phase.COMMAND: (RANK_LOST,),
    Phase.GRACE: (CANCELLED_BY_KILL,),
    Phase.AFTER: (SUCCEEDED,),
}
#: It only removes files that another process removes too.
_CLEANER: Expectations = {
    Phase.START: (SUCCEEDED,),
    Phase.COMMAND: (SUCCEEDED,),
    Phase.GRACE: (CANCELLED_BY_KILL,),
    Phase.AFTER: (SUCCEEDED,),
}
_COMMAND: Expectations = {Phase.COMMAND: (COMMAND_KILLED,), Phase.GRACE: (CANCELLED_BY_KILL,)}
#: What Ray does without one of its helpers is Ray's decision: it exits, or it continues.
_RAY: Expectations = {
    Phase.START: (RAY_NOT_READY,),
    Phase.COMMAND: (RAY_EXITED,),
    Phase.GRACE: (CANCELLED_BY_KILL,),
    Phase.AFTER: (SUCCEEDED,),
}
#: They start so late that Ray may be ready.
_RAY_HELPER: Expectations = {
    Phase.START: (RAY_NOT_READY, RAY_EXITED, SUCCEEDED),
    Phase.COMMAND: (RAY_EXITED, SUCCEEDED),
    Phase.GRACE: (CANCELLED_BY_KILL,),
    Phase.AFTER: (SUCCEEDED,),
}
_PROBE: Expectations = {Phase.START: (RAY_NOT_READY,)}

#: The processes of rank 0, and those of every other rank.
RANK_ZERO: dict[Target, Expectations] = {
    Target.CALLER: _CALLER,
    Target.WRAPPER: _RANK_ZERO,
    Target.CLEANER: _CLEANER,
    Target.BUBBLEWRAP: _RANK_ZERO,
    Target.SUPERVISOR: _RANK_ZERO,
    Target.SHELL: _COMMAND,
    Target.COMMAND: _COMMAND,
}
OTHER_RANK: dict[Target, Expectations] = {
    Target.WRAPPER: _OTHER_RANK,
    Target.BUBBLEWRAP: _OTHER_RANK,
    Target.SUPERVISOR: _OTHER_RANK,
}
RAY_ON_RANK_ZERO: dict[Target, Expectations] = {
    Target.RAY_START: _RAY,
    Target.GCS_SERVER: _RAY,
    Target.RAYLET: _RAY,
    Target.DASHBOARD_AGENT: _RAY_HELPER,
    Target.RUNTIME_ENV_AGENT: _RAY_HELPER,
    Target.DASHBOARD: _RAY_HELPER,
    Target.MONITOR: _RAY_HELPER,
    Target.LOG_MONITOR: _RAY_HELPER,
    Target.PROBE: _PROBE,
}
RAY_ON_OTHER_RANK: dict[Target, Expectations] = {
    Target.RAY_START: _RAY,
    Target.RAYLET: _RAY,
    Target.DASHBOARD_AGENT: _RAY_HELPER,
    Target.RUNTIME_ENV_AGENT: _RAY_HELPER,
    Target.LOG_MONITOR: _RAY_HELPER,
}


@attrs.frozen
class Cell:
    """A process that is killed in a phase of a run.

    Attributes:
        target: The process.
        rank: Its rank.
        phase: When it is killed.
        nodes: Number of nodes of the run.
        ray: Whether the run has Ray.
        expected: How the run may end.
    """

    target: Target
    rank: int
    phase: Phase
    nodes: int
    ray: bool
    expected: tuple[Ending, ...]

    @property
    def name(self) -> str:
        """The process with its rank."""
        return f"{self.target} of rank 1" if self.rank else str(self.target)

    @property
    def environment(self) -> str:
        """The kind of run."""
        return f"{self.nodes} node{'s' if self.nodes > 1 else ''}, {'Ray' if self.ray else 'no Ray'}"

    def __str__(self) -> str:
        return f"{self.environment}: {self.name}, {self.phase}"


def _cells() -> Iterator[Cell]:
    for ray in (False, True):
        for nodes in (1, 2):
            tables = [(0, RANK_ZERO | (RAY_ON_RANK_ZERO if ray else {}))]
            if nodes > 1:
                tables.append((1, OTHER_RANK | (RAY_ON_OTHER_RANK if ray else {})))
            for rank, table in tables:
                for target, expectations in table.items():
                    for phase, endings in expectations.items():
                        # Without Ray there is no step to wait for: the command may have started.
                        later = expectations[Phase.COMMAND] if phase is Phase.START and not ray else ()
                        if expectations is _RANK_ZERO and later and nodes == 1:
                            later = (*later, SUCCEEDED)  # processes that were started early are replaced
                        yield Cell(target, rank, phase, nodes, ray, (*endings, *later))


CELLS = tuple(_cells())


@attrs.frozen
class Finding:
    """What was seen in a cell.

    Attributes:
        cell: The cell.
        seen: How the run ended, as another process of the user reads it, as text.
        seconds: Seconds from the kill to the end of the run.
        violations: What should not have happened.
    """

    cell: Cell
    seen: str
    seconds: float
    violations: tuple[str, ...] = ()


def select(
    nodes: int | None, ray: bool | None, targets: Iterable[str], phases: Iterable[str], rank: int | None
) -> list[Cell]:
    """Return the cells with these properties; None and empty collections select all."""
    targets, phases = set(targets), set(phases)
    return [
        cell
        for cell in CELLS
        if nodes in (None, cell.nodes)
        and ray in (None, cell.ray)
        and rank in (None, cell.rank)
        and (not targets or cell.target in targets)
        and (not phases or cell.phase in phases)
    ]


def run_cells(cells: list[Cell], folder: Path, *, jobs: int) -> Iterator[Finding]:
    """Make the run of each cell, `jobs` at the same time. Yield the findings as they arrive."""
    from tests.support.kill_runner import KillEnvironment  # it imports this module

    free: queue.SimpleQueue[KillEnvironment] = queue.SimpleQueue()
    environments = [KillEnvironment(folder / f"env-{number}") for number in range(jobs)]
    for environment in environments:
        free.put(environment)

    def run(cell: Cell) -> Finding:
        environment = free.get()
        try:
            return environment.run(cell)
        finally:
            free.put(environment)

    pool = concurrent.futures.ThreadPoolExecutor(jobs)
    try:
        for done in concurrent.futures.as_completed([pool.submit(run, cell) for cell in cells]):
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)
        for environment in environments:
            environment.close()


_TEMPLATE = """\
<!-- Generated by `python -m tests.support.kill_table --page`; do not edit. -->
{count} runs, in each of which one process was killed by SIGKILL. Each entry is the state, the exit code and the cause
of the run, and the largest number of seconds from the kill to the end of the run.
{tables}"""


def render(findings: Iterable[Finding]) -> str:
    """Return the page with a table for each kind of run: processes and phases."""
    seen: dict[str, dict[str, dict[Phase, list[Finding]]]] = {}
    count = 0
    for finding in sorted(findings, key=lambda finding: CELLS.index(finding.cell)):
        count += 1
        rows = seen.setdefault(finding.cell.environment, {})
        rows.setdefault(finding.cell.name, {}).setdefault(finding.cell.phase, []).append(finding)
    tables = []
    for environment, rows in seen.items():
        tables.append(f"\n**{environment}**\n\n| process | {' | '.join(Phase)} |\n|---|{'---|' * len(Phase)}")
        for name, phases in rows.items():
            entries = (_entry(phases.get(phase, [])) for phase in Phase)
            tables.append(f"| {name} | {' | '.join(entries)} |")
    return _TEMPLATE.format(count=count, tables="\n".join(tables) + "\n")


def _entry(findings: list[Finding]) -> str:
    slowest: dict[str, float] = {}
    for finding in findings:
        slowest[finding.seen] = max(slowest.get(finding.seen, 0.0), finding.seconds)
    return "<br>".join(f"{ending}, {seconds:.1f} s" for ending, seconds in sorted(slowest.items()))


def parse(output: str) -> Iterator[Finding]:
    """Yield the findings in the output of this program.

    Raises:
        ValueError: There was a violation, or a cell that does not exist any more.
    """
    cells = {str(cell): cell for cell in CELLS}
    if "VIOLATION" in output:
        raise ValueError("there were violations")
    for match in re.finditer(r"^ *\d+ s +\d+/\d+  (.+): (.+), ([\d.]+) s$", output, re.MULTILINE):
        if match[1] not in cells:
            raise ValueError(f"{match[1]} does not exist any more")
        yield Finding(cells[match[1]], match[2], float(match[3]))


def main() -> int:
    """Kill the processes of the selected cells. Return 1 if there was a violation."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.kill_table", description=__doc__)
    parser.add_argument("--times", type=int, default=2, help="number of runs for each cell (default: 2)")
    parser.add_argument("--nodes", type=int, choices=(1, 2), help="runs on this number of nodes only")
    parser.add_argument("--rank", type=int, choices=(0, 1), help="processes of this rank only")
    parser.add_argument("--ray", action=argparse.BooleanOptionalAction, help="only runs with (without) Ray")
    parser.add_argument("--target", action="append", default=[], choices=list(Target), help="this process only")
    parser.add_argument("--phase", action="append", default=[], choices=list(Phase), help="this phase only")
    parser.add_argument("--jobs", type=int, default=2, help="number of runs at the same time (default: 2)")
    parser.add_argument("--page", nargs="+", type=Path, metavar="OUTPUT", help=f"write {PAGE.name} from these outputs")
    options = parser.parse_args()
    if options.page:
        outputs = "".join(path.read_text(encoding="utf-8") for path in options.page)
        PAGE.write_text(render(parse(outputs)), encoding="utf-8")
        return 0
    cells = select(options.nodes, options.ray, options.target, options.phase, options.rank) * options.times
    begin = time.monotonic()
    findings: list[Finding] = []
    # Exit through the finally blocks, which end all processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="skyrl-kills-", ignore_cleanup_errors=True) as folder:
        for finding in run_cells(cells, Path(folder), jobs=min(options.jobs, len(cells))):
            findings.append(finding)
            progress = f"{time.monotonic() - begin:6.0f} s  {len(findings):3d}/{len(cells)}"
            print(f"{progress}  {finding.cell}: {finding.seen}, {finding.seconds:.1f} s", flush=True)
            for violation in finding.violations:
                print(f"    VIOLATION {violation}", flush=True)
    violating = sum(bool(finding.violations) for finding in findings)
    print(f"{len(findings)} runs, {violating} with violations")
    return 1 if violating else 0


if __name__ == "__main__":
    # The module that the runner imports has other classes than the one that is executed.
    from tests.support.kill_table import main

    sys.exit(main())
