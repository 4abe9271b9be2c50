"""``python -m tests.gitfiles.fuzz``: compare 20,000 new random repositories with git, on all processors.

The exit code is 1 if a selection differs from git's list. The seed is printed; ``--seed`` runs the same cases again.
"""

from __future__ import annotations

import argparse
import os
import secrets
import subprocess
import sys


def main() -> int:
    """Start a process for each processor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 30))
    options = parser.parse_args()
    cases_per_job = -(-options.cases // options.jobs)
    environment = dict(os.environ)
    if os.access("/dev/shm", os.W_OK):
        # A case has about a hundred small files: in memory it needs a third of the time.
        environment.setdefault("TMPDIR", "/dev/shm")
    command = [sys.executable, "-m", "tests.gitfiles.agreement", str(cases_per_job)]
    running = [
        subprocess.Popen([*command, str(options.seed + number)], env=environment) for number in range(options.jobs)
    ]
    return max(process.wait() for process in running)


if __name__ == "__main__":
    sys.exit(main())
