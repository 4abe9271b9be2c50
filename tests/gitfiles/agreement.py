"""Comparison with git without Hypothesis: ``python -m tests.gitfiles.agreement CASES [SEED]``.

The exit code is 1 if a selection differs from git's list. The test of the mutants runs this on faulty copies of the
package, and ``fuzz`` runs it in several processes.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

from skyrl_modal.mount import select
from tests.gitfiles.repositories import Templates, case, describe, listed_by_git


def disagreements(roots: list[Path]) -> list[str]:
    """Return a report for each root in which selection and git differ."""
    reports = []
    for root in roots:
        selected, expected = list(select(root).files), listed_by_git(root)
        if selected != expected:
            more, less = sorted(set(selected) - set(expected)), sorted(set(expected) - set(selected))
            reports.append(f"{root}: too many {more}, missing {less}\n{describe(root)}")
    return reports


def main(cases: int, seed: int) -> int:
    """Run cases until one differs from git."""
    with tempfile.TemporaryDirectory() as name:
        templates = Templates.make(Path(name))
        for number in range(cases):
            with case(random.Random(f"{seed}-{number}"), templates) as roots:
                reports = disagreements(roots)
            if reports:
                print(f"case {seed}-{number} disagrees with git", *map(ascii, reports), sep="\n")
                return 1
    print(f"{cases} cases, seed {seed}: no disagreement")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
