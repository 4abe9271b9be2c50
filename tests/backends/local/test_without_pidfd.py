"""Runs on a system without pidfd_open, whose processes are found and ended nevertheless."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.support.processes import MARK, wait_for_marked_processes

pytestmark = pytest.mark.timeout(280)

#: Runs commands that exit, exceed a limit, are cancelled, and leave processes; prints how each ended.
RUNS = """
import os, sys
from skyrl_modal import Launcher, RaySpec
try:
    os.pidfd_open(os.getpid())
except OSError as error:
    print(error.errno)
made = Launcher(backend="local", checkout=sys.argv[1], ray=None, gpu=None, grace=0.5)
print(made.run("sleep 600 & sleep 600 & exit 7", quiet=True).returncode)
print(made.run("setsid sh -c 'trap : TERM; sleep 600' & exit 8", quiet=True).returncode)
limited = Launcher(backend="local", checkout=sys.argv[1], ray=None, gpu=None, grace=0.5, timeout=1)
print(limited.run("trap '' TERM; sleep 600", quiet=True).returncode)
run = made.submit("sleep 600")
run.cancel()
print(run.wait().state)
"""
RAY = """
import sys
from skyrl_modal import Launcher, RaySpec
made = Launcher(backend="local", checkout=sys.argv[1], ray=RaySpec(num_cpus=1), gpu=None)
command = "python -c 'import ray; ray.init(); print(ray.get(ray.remote(lambda: 5).remote()))' && exit 9"
print(made.run(command, quiet=True).returncode)
"""
OWNED = """
import sys
from skyrl_modal import Launcher
made = Launcher(backend="local", checkout=sys.argv[1], ray=None, gpu=None, grace=0.5)
made.run("echo started; sleep 600", quiet=True)
"""


def start(name: str, script: str, checkout: Path, mark: str) -> subprocess.Popen[str]:
    """Start a Python script for which pidfd_open fails with the error of this name."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.without_pidfd", name, sys.executable, "-c", script, str(checkout)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, MARK: mark},
    )


@pytest.fixture(autouse=True)
def permitted() -> None:
    """Skip the test if this machine permits no filter of system calls."""
    code = "import tests.support.without_pidfd as module; module.refuse_pidfd_open(38)"
    if subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode:
        pytest.skip("this machine permits no filter of system calls")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), [("ENOSYS", 38), ("EPERM", 1)])
def test_runs_end_without_pidfd(name: str, number: int, checkout: Path) -> None:
    """Exit codes, limits and cancellation are those of other systems, and no process is left."""
    mark = uuid.uuid4().hex

    with start(name, RUNS, checkout, mark) as process:
        output, _ = process.communicate(timeout=200)

    assert output.split() == [str(number), "7", "8", "124", "cancelled"]
    assert not wait_for_marked_processes(mark, 10)


def test_caller_is_killed_without_pidfd(checkout: Path) -> None:
    """A run whose caller is killed is stopped, and no process is left."""
    mark = uuid.uuid4().hex
    with start("ENOSYS", OWNED, checkout, mark) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGKILL)

    assert not wait_for_marked_processes(mark, 30)


@pytest.mark.ray
@pytest.mark.slow
def test_ray_without_pidfd(checkout: Path) -> None:
    """Ray starts, runs a task and is ended."""
    mark = uuid.uuid4().hex

    with start("ENOSYS", RAY, checkout, mark) as process:
        output, _ = process.communicate(timeout=200)

    assert output.splitlines()[-2:] == ["5", "9"]
    assert not wait_for_marked_processes(mark, 30)
