"""Tests of examples/driver.py, run as a script."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.loopback import LoopbackModal

DRIVER = Path(__file__).resolve().parents[2] / "examples" / "driver.py"


@pytest.mark.parametrize("backend", ["local", "modal"])
def test_driver_reads_output_and_maps_commands(backend: str, tmp_path: Path) -> None:
    """The driver prints the metrics of its run, and the results of parallel runs, one of which fails."""
    checkout = tmp_path / "SkyRL"
    (checkout / "skyrl-gym").mkdir(parents=True)
    (checkout / "train.py").write_text("")
    command = [sys.executable, str(DRIVER), "--backend", backend, "--checkout", str(checkout)]
    with LoopbackModal(tmp_path, scaledown=1, client_timeout=5) as server:
        done = subprocess.run(
            command, env={**os.environ, **server.env()}, check=False, capture_output=True, text=True, timeout=200
        )

    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:5] == [f"driver: reward 0.{step}, best 0.{step}" for step in range(1, 6)]
    assert lines[5].startswith("driver: succeeded after ")
    assert [line for line in lines if "failed, exit code 3" in line] == [
        "driver: rate 0.2: failed, exit code 3, last line ['loss is nan']"
    ]
