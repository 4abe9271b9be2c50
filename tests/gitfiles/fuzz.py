"""``python -m tests.gitfiles.fuzz``: 20,000 new random repositories, spread over the processors.

It ends with 1 at a disagreement with git. The seed is printed; ``--seed`` runs the same cases again.
"""

from __future__ import annotations

import argparse
import os
import secrets
import subprocess
import sys


def main() -> int:
    """Starts a process for each processor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 30))
    options = parser.parse_args()
    each = -(-options.cases // options.jobs)
    environment = dict(os.environ)
    if os.access("/dev/shm", os.W_OK):
        # A case is some hundred small files: in memory it takes a third of the time.
        environment.setdefault("TMPDIR", "/dev/shm")
    command = [sys.executable, "-m", "tests.gitfiles.agreement", str(each)]
    running = [
        subprocess.Popen([*command, str(options.seed + number)], env=environment) for number in range(options.jobs)
    ]
    return max(process.wait() for process in running)


if __name__ == "__main__":
    sys.exit(main())
