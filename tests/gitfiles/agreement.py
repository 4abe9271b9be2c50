"""Cases against git, without Hypothesis: `python -m tests.gitfiles.agreement CASES [SEED]` ends with 1 at a disagreement.

The test of the mutants runs it on faulty copies of the package, the fuzz in many processes.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

from skyrl_modal.mount import select
from tests.gitfiles.repositories import Templates, case, described, listed_by_git


def disagreements(roots: list[Path]) -> list[str]:
    """What is selected and git would not take, or the other way round."""
    told = []
    for root in roots:
        ours, theirs = list(select(root).files), listed_by_git(root)
        if ours != theirs:
            more, less = sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))
            told.append(f"{root}: too many {more}, missing {less}\n{described(root)}")
    return told


def main(cases: int, seed: int) -> int:
    """Runs cases until one disagrees."""
    with tempfile.TemporaryDirectory() as name:
        templates = Templates.make(Path(name))
        for number in range(cases):
            with case(random.Random(f"{seed}-{number}"), templates) as roots:
                told = disagreements(roots)
            if told:
                print(f"case {seed}-{number} disagrees with git", *map(ascii, told), sep="\n")
                return 1
    print(f"{cases} cases, seed {seed}: no disagreement")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
