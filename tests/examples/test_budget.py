"""Tests of examples/budget.py, run as a script."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

BUDGET = Path(__file__).resolve().parents[2] / "examples" / "budget.py"


def test_budget_example(checkout: Path) -> None:
    """The first training ends within the budget, and the second one is stopped, and saves its step."""
    command = [sys.executable, str(BUDGET), "--rate", "3600", "--budget", "4", "--checkout", str(checkout)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100)

    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("cost: $3,600.00 per hour, at most $4.00")
    assert lines[1] == "step=5 finished"
    assert re.fullmatch(r"5 steps: succeeded, exit code 0, \$[12]\.\d\d", lines[2])
    assert re.fullmatch(r"step=\d+ saved", lines[3])
    assert re.fullmatch(r"1000 steps: over the budget, exit code 124, \$[4-8]\.\d\d", lines[4])
