"""Tests of examples/early_stop.py, run as a script."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.loopback import LoopbackModal

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "early_stop.py"


@pytest.mark.parametrize("backend", ["local", pytest.param("modal", marks=pytest.mark.slow)])
def test_run_is_cancelled_at_the_target(backend: str, tmp_path: Path) -> None:
    """The run is cancelled when the reward has reached the target, long before its last step."""
    with LoopbackModal(tmp_path, scaledown=1, client_timeout=5) as server:
        done = subprocess.run(
            [sys.executable, str(EXAMPLE), "--backend", backend, "--target", "0.7"],
            env={**os.environ, **server.env()}, check=False, capture_output=True, text=True, timeout=200,
        )  # fmt: skip

    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[0] == "step 1: reward 0.100"
    assert "step 12: reward 0.718" in lines
    assert lines[-1].startswith("cancelled after ")
