"""Runs with one fault each, at a random moment, and what became of them: ``python -m tests.support.faults.campaign -h``.

A case is drawn from the seed and its number alone, so a finding is seen again by the command that stands beside it.
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

from .cases import FAULTS, Case, draw
from .checks import Finding
from .world import World


def reproduce(case: Case) -> str:
    """The command that runs a case again."""
    return f"python -m tests.support.faults.campaign --seed {case.seed} --case {case.number}"


def chosen(seed: int, runs: int, only: str | None, backend: str | None) -> Iterator[Case]:
    """The first so many cases of a seed that are wanted."""
    number = 0
    while runs:
        case = draw(seed, number)
        number += 1
        if only in (None, case.fault) and backend in (None, case.backend):
            runs -= 1
            yield case


def table(findings: Iterable[Finding]) -> str:
    """Faults by outcomes, with counts."""
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    rows: dict[str, None] = {}
    columns: dict[str, None] = {}
    for finding in sorted(findings, key=lambda finding: (FAULTS.index(finding.case.fault), finding.case.backend)):
        row = f"{finding.case.fault}, {finding.case.backend}"
        rows[row] = columns[finding.outcome] = None
        counts[row, "runs"] += 1
        counts[row, finding.outcome] += 1
        counts[row, "violations"] += bool(finding.problems)
    names = ["runs", *sorted(columns), "violations"]
    width = max(map(len, rows), default=0)
    lines = ["  ".join([" " * width, *names])]
    for row in rows:
        cells = (str(counts[row, name] or "").rjust(len(name)) for name in names)
        lines.append("  ".join([row.ljust(width), *cells]))
    total = (str(sum(counts[row, name] for row in rows)).rjust(len(name)) for name in names)
    lines.append("  ".join(["together".ljust(width), *total]))
    return "\n".join(lines)


def run_all(cases: list[Case], folder: Path, *, jobs: int, patience: float) -> list[Finding]:
    """Run cases, so many at once, each in a world that nothing else happens in."""
    begin = time.monotonic()
    findings: list[Finding] = []
    worlds = [World(folder / f"world-{number}", patience=patience) for number in range(jobs)]
    free: queue.SimpleQueue[World] = queue.SimpleQueue()
    for world in worlds:
        free.put(world)

    def one(case: Case) -> Finding:
        world = free.get()
        try:
            return world.run(case)
        except Exception as error:  # of the campaign itself: the other runs are made all the same
            return Finding(case, "not judged", tuple(traceback.format_exception(error)))
        finally:
            free.put(world)

    pool = concurrent.futures.ThreadPoolExecutor(jobs)
    try:
        for done in concurrent.futures.as_completed([pool.submit(one, case) for case in cases]):
            finding = done.result()
            findings.append(finding)
            case = finding.case
            clock = f"{time.monotonic() - begin:6.0f} s  {len(findings):3d}/{len(cases)}"
            print(f"{clock}  {case.number:4d}  {case.fault}, {case.backend}: {finding.outcome}", flush=True)
            if finding.problems:
                print("\n".join(["    VIOLATION", *(f"    {problem}" for problem in finding.problems)]), flush=True)
    finally:
        pool.shutdown(cancel_futures=True)
        for world in worlds:
            world.close()
    return findings


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.support.faults.campaign", description=__doc__)
    parser.add_argument("--runs", type=int, default=232, help="how many (default: 232, eight rounds of all faults)")
    parser.add_argument("--seed", type=int, help="what all is drawn from (default: another one each time)")
    parser.add_argument("--only", choices=FAULTS, help="this fault only")
    parser.add_argument("--backend", choices=("local", "modal"), help="this backend only")
    parser.add_argument("--case", type=int, help="this case of the seed only")
    parser.add_argument("--jobs", type=int, default=2, help="how many at once (default: 2)")
    parser.add_argument("--patience", type=float, default=1.0, help="factor of all deadlines, for a busy machine")
    options = parser.parse_args()
    seed = int.from_bytes(os.urandom(3)) if options.seed is None else options.seed
    if options.case is not None:
        cases = [draw(seed, options.case)]
    else:
        cases = list(chosen(seed, options.runs, options.only, options.backend))
    print(f"seed {seed}, {len(cases)} runs", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that nothing is left then either
    # Short: sockets lie below it.
    with tempfile.TemporaryDirectory(prefix="skyrl-faults-", ignore_cleanup_errors=True) as folder:
        findings = run_all(cases, Path(folder), jobs=min(options.jobs, len(cases)), patience=options.patience)
    print(f"\nseed {seed}\n{table(findings)}")
    broken = sorted((finding for finding in findings if finding.problems), key=lambda finding: finding.case.number)
    for finding in broken:
        print(f"\n{finding.case.fault}, {finding.case.backend}: {reproduce(finding.case)}")
        for problem in finding.problems:
            print(f"  {problem}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
