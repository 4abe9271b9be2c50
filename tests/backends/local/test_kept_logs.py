"""Logs that a run on this machine keeps when it is killed, and without namespaces."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from skyrl_modal import RaySpec, Run, RunState
from skyrl_modal.errors import PathNotFound
from skyrl_modal.run.kept_logs import KeptLog
from tests.conftest import MakeLauncher

TIMEOUT = 90.0


def wait_for_log(run: Run, pattern: str, text: bytes) -> KeptLog:
    """Wait until a kept log contains a text, and return it."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        try:
            for log in run.kept_logs(pattern=pattern):
                if text in log.read():
                    return log
        except PathNotFound:
            pass
        time.sleep(0.1)
    pytest.fail(f"{text!r} was not kept within {TIMEOUT:g} s")


def kill_supervisor_after_log(run: Run, pattern: str, text: bytes) -> None:
    """Kill the supervisor of a run when a kept log contains a text, and wait until the run is lost."""
    try:
        wait_for_log(run, pattern, text)
        pid = run._execution.handle["pid"]
        assert isinstance(pid, int)
        os.kill(pid, signal.SIGKILL)
        assert run.wait(TIMEOUT).state is RunState.LOST
    finally:
        run.cancel(now=True)


def test_logs_survive_a_killed_supervisor(launcher: MakeLauncher) -> None:
    """What was written some seconds before the supervisor is killed is kept, also while the run is active."""
    command = "mkdir /tmp/skyrl-logs; echo EngineDeadError > /tmp/skyrl-logs/infra-1.log; sleep 600"
    run = launcher().submit(command)

    kill_supervisor_after_log(run, "skyrl-logs/*", b"EngineDeadError\n")

    [log] = run.kept_logs(pattern="skyrl-logs/*")
    assert (log.attempt, log.read()) == (1, b"EngineDeadError\n")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(200)
def test_worker_logs_survive_a_killed_supervisor(launcher: MakeLauncher) -> None:
    """What a task of Ray prints is kept while it runs, with the logs of Ray's own programs."""
    task = "import ray; ray.init(); ray.get(ray.remote(lambda: print('of a task', flush=True)).remote())"
    run = launcher(ray=RaySpec(num_cpus=1)).submit(f'python -c "{task}"; sleep 600')

    kill_supervisor_after_log(run, "ray/worker-*.out", b"of a task")

    names = {log.name for log in run.kept_logs(attempt=1)}
    assert {"ray/start.log", "ray/raylet.out", "ray/gcs_server.out"} <= names


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """Return a folder of SkyRL's logs in the machine's /tmp, with a log of another run."""
    folder = Path(f"/tmp/skyrl-logs-test-{uuid.uuid4().hex[:8]}")
    folder.mkdir()
    (folder / "infra-other.log").write_text("of another run")
    yield folder
    shutil.rmtree(folder)


def test_logs_without_namespaces(launcher: MakeLauncher, no_namespaces: None, shared_folder: Path) -> None:
    """Without namespaces, runs share /tmp. A run keeps the logs that its own processes have opened."""
    run = launcher().submit(f"exec >> {shared_folder}/infra-1.log; echo own; sleep 600")
    try:
        log = wait_for_log(run, "skyrl-logs-test-*", b"own\n")
    finally:
        run.cancel(now=True)
        run.wait(TIMEOUT)

    assert log.name == f"{shared_folder.name}/infra-1.log"
    assert [kept.name for kept in run.kept_logs(pattern="skyrl-logs-test-*")] == [log.name]


def test_short_run_without_logs(launcher: MakeLauncher) -> None:
    """A short command that succeeds leaves no logs, and the error states it."""
    result = launcher().run("true", quiet=True)

    with pytest.raises(PathNotFound):
        Run.attach(result.run_id).kept_logs()


def test_command_line_lists_and_prints_them(launcher: MakeLauncher) -> None:
    """`logs --list` lists the kept logs; `--file`, `--attempt` and `--rank` select those that are printed."""
    program = [sys.executable, "-m", "skyrl_modal", "logs"]
    write = 'mkdir -p /tmp/skyrl-logs; echo "error $SKYRL_ATTEMPT" > /tmp/skyrl-logs/infra-$SKYRL_ATTEMPT.log; exit 1'
    run_id = launcher(retries=1).run(write, quiet=True).run_id

    def print_logs(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*program, *options, run_id], capture_output=True, text=True, timeout=TIMEOUT, check=False
        )

    lines = [line.split() for line in print_logs("--list", "--file", "skyrl-logs/*").stdout.splitlines()]
    assert lines == [["0", "8", "1/skyrl-logs/infra-1.log"], ["0", "8", "2/skyrl-logs/infra-2.log"]]
    assert print_logs("--file", "*/infra-2*").stdout == "==> 2/skyrl-logs/infra-2.log <==\nerror 2\n"
    assert "infra-2" not in print_logs("--attempt", "1").stdout
    assert print_logs("--rank", "0", "-n", "1").stdout == "error 2\n"
    missing = print_logs("--file", "none")
    assert (missing.returncode, missing.stdout) == (125, "")
    assert "no kept log matches; --list shows those that exist" in missing.stderr
    assert print_logs("--list", "--follow").returncode == 2
