"""``start_deadline`` on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_modal import Launcher, RaySpec, RunState
from skyrl_modal.protocol.state import FailureCause

Make = Callable[..., Launcher]


@pytest.mark.ray
def test_ray_that_starts_too_late(launcher: Make) -> None:
    """A run whose Ray is not ready by the deadline fails, and its command does not run."""
    result = launcher(ray=RaySpec(), start_deadline=0.5).run("echo never", quiet=True)

    assert (result.state, result.returncode) == (RunState.FAILED, 125)
    assert (result.cause, result.attempts, result.log_tail) == (FailureCause.START_DEADLINE, 0, "")
    assert result.detail == "the command did not start within 0.5 s (start_deadline)"


@pytest.mark.slow
def test_command_may_run_longer_than_the_deadline(launcher: Make) -> None:
    """The deadline ends when the command starts, also for its retries."""
    command = 'while [ "$(cut -d. -f1 /proc/uptime)" -lt "$END" ]; do sleep 0.2; done; exit 3'
    uptime = int(float(Path("/proc/uptime").read_text().split()[0]))

    result = launcher(start_deadline=10, retries=1, env={"END": str(uptime + 14)}).run(command, quiet=True)

    assert (result.state, result.returncode, result.attempts) == (RunState.FAILED, 3, 2)
    assert result.cause is FailureCause.COMMAND_FAILED
