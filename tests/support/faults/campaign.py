"""Make runs with one fault each, and check how they end: ``python -m tests.support.faults.campaign -h``.

A case depends on the seed and its number only. The command that is printed with a violation makes the same run again.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import os
import queue
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

from .cases import FAULTS, ROUND, Case, draw
from .checks import Finding
from .fault_environment import FaultEnvironment

#: Eight rounds of all faults.
DEFAULT_RUNS = 8 * len(ROUND)


def reproduce_command(case: Case) -> str:
    """Return the command that makes the run of a case again."""
    return f"python -m tests.support.faults.campaign --seed {case.seed} --case {case.number}"


def select_cases(seed: int, runs: int, only: str | None, backend: str | None) -> Iterator[Case]:
    """Return the first `runs` cases of a seed, of one fault and one backend if given."""
    number = 0
    while runs:
        case = draw(seed, number)
        number += 1
        if only in (None, case.fault) and backend in (None, case.backend):
            runs -= 1
            yield case


def table(findings: Iterable[Finding]) -> str:
    """Return a table with the number of runs for each fault and outcome."""
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    rows: dict[str, None] = {}
    columns: dict[str, None] = {}
    for finding in sorted(findings, key=lambda finding: (FAULTS.index(finding.case.fault), finding.case.backend)):
        row = f"{finding.case.fault}, {finding.case.backend}"
        rows[row] = columns[finding.outcome] = None
        counts[row, "runs"] += 1
        counts[row, finding.outcome] += 1
        counts[row, "violations"] += bool(finding.violations)
    names = ["runs", *sorted(columns), "violations"]
    width = max(map(len, rows), default=0)
    lines = ["  ".join([" " * width, *names])]
    for row in rows:
        cells = (str(counts[row, name] or "").rjust(len(name)) for name in names)
        lines.append("  ".join([row.ljust(width), *cells]))
    total = (str(sum(counts[row, name] for row in rows)).rjust(len(name)) for name in names)
    lines.append("  ".join(["total".ljust(width), *total]))
    return "\n".join(lines)


def run_cases(cases: list[Case], folder: Path, *, jobs: int, timeout_factor: float) -> list[Finding]:
    """Make the runs of all cases, `jobs` at the same time, each in a separate environment."""
    begin = time.monotonic()
    findings: list[Finding] = []
    # Short names: the paths of sockets below are limited to 107 bytes.
    environments = [FaultEnvironment(folder / f"env-{number}", timeout_factor=timeout_factor) for number in range(jobs)]
    free: queue.SimpleQueue[FaultEnvironment] = queue.SimpleQueue()
    for environment in environments:
        free.put(environment)

    def run_case(case: Case) -> Finding:
        environment = free.get()
        try:
            return environment.run(case)
        except Exception as error:  # in the campaign itself: continue with the other runs
            return Finding(case, "not checked", tuple(traceback.format_exception(error)))
        finally:
            free.put(environment)

    pool = concurrent.futures.ThreadPoolExecutor(jobs)
    try:
        for done in concurrent.futures.as_completed([pool.submit(run_case, case) for case in cases]):
            finding = done.result()
            findings.append(finding)
            case = finding.case
            progress = f"{time.monotonic() - begin:6.0f} s  {len(findings):3d}/{len(cases)}"
            print(f"{progress}  {case.number:4d}  {case.fault}, {case.backend}: {finding.outcome}", flush=True)
            if finding.violations:
                print("\n".join(["    VIOLATION", *(f"    {text}" for text in finding.violations)]), flush=True)
    finally:
        pool.shutdown(cancel_futures=True)
        for environment in environments:
            environment.close()
    return findings


def main() -> int:
    """Run the campaign. Return 1 if there was a violation."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.faults.campaign", description=__doc__)
    parser.add_argument("--runs", type=int, default=DEFAULT_RUNS, help=f"number of runs (default: {DEFAULT_RUNS})")
    parser.add_argument("--seed", type=int, help="seed of the cases (default: a random one)")
    parser.add_argument("--only", choices=FAULTS, help="this fault only")
    parser.add_argument("--backend", choices=("local", "modal"), help="this backend only")
    parser.add_argument("--case", type=int, help="the case with this number only")
    parser.add_argument("--jobs", type=int, default=2, help="number of runs at the same time (default: 2)")
    parser.add_argument("--timeout-factor", type=float, default=1.0, help="factor of all timeouts, for a busy machine")
    options = parser.parse_args()
    seed = int.from_bytes(os.urandom(3)) if options.seed is None else options.seed
    if options.case is not None:
        cases = [draw(seed, options.case)]
    else:
        cases = list(select_cases(seed, options.runs, options.only, options.backend))
    print(f"seed {seed}, {len(cases)} runs", flush=True)
    # A shell without job control starts background processes with SIGINT ignored, which the callers would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Exit through the finally blocks, which end all processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="skyrl-faults-", ignore_cleanup_errors=True) as folder:
        jobs = min(options.jobs, len(cases))
        findings = run_cases(cases, Path(folder), jobs=jobs, timeout_factor=options.timeout_factor)
    print(f"\nseed {seed}\n{table(findings)}")
    violating = sorted((finding for finding in findings if finding.violations), key=lambda finding: finding.case.number)
    for finding in violating:
        print(f"\n{finding.case.fault}, {finding.case.backend}: {reproduce_command(finding.case)}")
        for text in finding.violations:
            print(f"  {text}")
    return 1 if violating else 0


if __name__ == "__main__":
    sys.exit(main())
