"""Run the benchmarks: ``nox -s bench``, or ``python -m benchmarks``.

A complete run writes docs/benchmarks.md, and all measurements to docs/generated/benchmarks.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import files, launch, masking, metrics, modal_launch, output, ray_start
from benchmarks.measure import Row
from benchmarks.page import page
from benchmarks.results import Report, Result, compare, describe_machine
from benchmarks.session import QUICK, Session, Sizes

#: The first parts of the names of rows, and what yields these rows.
GROUPS: list[tuple[tuple[str, ...], Callable[[Session], Iterator[Row]]]] = [
    (("launch", "start", "plan"), launch.rows),
    (("select", "snapshot"), files.rows),
    (("output", "logs"), output.rows),
    (("modal",), modal_launch.rows),
    (("masking",), masking.rows),
    (("metrics",), metrics.rows),
    (("ray",), ray_start.rows),
]
#: Seconds after which a row begins no further round, and the number of rounds that it has in any case.
ROW_SECONDS, LEAST_ROUNDS = 60.0, 3
DOCS = Path(__file__).resolve().parents[1] / "docs"
#: What a complete run writes.
PAGE, MEASUREMENTS = DOCS / "benchmarks.md", DOCS / "generated" / "benchmarks.json"


def measure(session: Session, rounds: int) -> Iterator[Row]:
    """Measure the selected rows."""
    for prefixes, rows in GROUPS:
        if session.names and not {name.partition(".")[0] for name in session.names} & set(prefixes):
            continue
        for row in rows(session):
            if not session.is_selected(row.name):
                continue
            least = 1 if session.is_quick else LEAST_ROUNDS
            row.run(rounds, skip_missing=session.is_quick, least=least, seconds=ROW_SECONDS)
            yield row


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="nox -s bench --", description=(__doc__ or "").splitlines()[0])
    known = [prefix for prefixes, _ in GROUPS for prefix in prefixes]
    parser.add_argument("names", nargs="*", help=f"rows, or groups of rows: {', '.join(known)} (default: all)")
    parser.add_argument("--rounds", type=int, default=11, help="rounds; rows that take long have fewer (default: 11)")
    parser.add_argument("--quick", action="store_true", help="one round of every row with small inputs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements to this file")
    parser.add_argument("--compare", type=Path, metavar="OLD", help="report changes since the measurements in a file")
    options = parser.parse_args(argv)
    unknown = [name for name in options.names if name.partition(".")[0] not in known]
    if unknown:
        parser.error(f"there are no rows {', '.join(unknown)}: the groups are {', '.join(known)}")
    return options


def main(argv: list[str] | None = None) -> None:
    """Measure, print the tables, and write the files."""
    options = parse(argv)
    old = Report.read(options.compare) if options.compare else None
    is_complete = not options.names and not options.quick
    target = options.json or (MEASUREMENTS if is_complete else None)
    begin = time.monotonic()
    report = Report(describe_machine(), [])
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        session = Session(
            Path(folder), QUICK if options.quick else Sizes(), is_quick=options.quick, names=options.names
        )
        session.use_own_folders()
        for row in measure(session, 1 if options.quick else options.rounds):
            report.results.append(Result.of(row))
            if target:
                report.write(target)  # so that an interrupted run has its measurements
    report.machine["duration"] = f"{(time.monotonic() - begin) / 60:.0f} minutes"
    if target:
        report.write(target)
    text = page(report)
    if is_complete:
        PAGE.write_text(text, encoding="utf-8")
    print(text.partition("## Machine")[2])
    if old is not None:
        old.results = [result for result in old.results if session.is_selected(result.name)]
        print("Changes beyond the noise:", *(list(compare(old, report)) or ["none"]), sep="\n  ")


if __name__ == "__main__":
    sys.exit(main())
