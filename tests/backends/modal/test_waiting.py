"""Tests of runs that wait for a container: what is reported, and the end at ``start_deadline``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import modal
import pytest

from skyrl_modal import Launcher, RaySpec, Run, RunResult, RunState, VolumeSpec
from skyrl_modal.protocol.events import StateEvent
from skyrl_modal.protocol.state import FailureCause
from tests.backends.modal.conftest import ActingOutput, Script
from tests.support.loopback import LoopbackModal
from tests.support.loopback.modes import Mode

MakeServer = Callable[..., LoopbackModal]
MakeLauncher = Callable[..., Launcher]
REASON = "waiting to be scheduled on a CPU worker"
LATE = (RunState.FAILED, 125, FailureCause.START_DEADLINE)
#: Submits a command and exits.
SUBMITTER = """
import sys
from skyrl_modal import Launcher, VolumeSpec
checkout, volume, command, deadline = sys.argv[1:]
launcher = Launcher(checkout=checkout, volumes=[VolumeSpec(name=volume)], ray=None, gpu=None, start_deadline=deadline)
print(launcher.submit(command).id)
"""

#: The command line: shows a run.
ATTACHER = """
import sys
from skyrl_modal.cli import main
sys.argv[1:] = ["attach", sys.argv[1]]
main()
"""


@pytest.fixture
def make_launcher(checkout: Path, volume: VolumeSpec) -> MakeLauncher:
    """Return a function that makes launchers, after the test has started its control plane."""
    defaults: dict[str, Any] = {
        "backend": "modal", "checkout": checkout, "volumes": [volume], "ray": None, "gpu": None, "grace": 2
    }  # fmt: skip
    return lambda **fields: Launcher(**{**defaults, **fields})


def ending(result: RunResult) -> tuple[RunState, int, FailureCause | None]:
    """Return how a run ended."""
    return result.state, result.returncode, result.cause


def skyrl_modal(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in another process."""
    return subprocess.run(
        [sys.executable, "-m", "skyrl_modal", *arguments], check=False, capture_output=True, text=True, timeout=120
    )


# -- reports -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_elapsed_time_and_reason_are_reported(
    make_server: MakeServer, make_launcher: MakeLauncher, capfd: pytest.CaptureFixture[str]
) -> None:
    """Modal's reason is reported when it arrives, and with the wait after 2 s and again 15 s later."""
    make_server(mode=Mode(capacity_wait=20))

    assert make_launcher().run("true").returncode == 0

    lines = [line for line in capfd.readouterr().err.splitlines() if REASON in line]
    assert len(lines) == 3
    assert lines[0].startswith("skyrl-modal | Modal: Function")
    assert re.match(r"skyrl-modal \| waiting for a container \([2-9] s\): Modal: Function", lines[1])
    assert re.match(r"skyrl-modal \| waiting for a container \(1[0-9] s\): Modal: Function", lines[2])


@pytest.mark.slow
def test_wait_for_the_next_container_is_reported(
    make_server: MakeServer, make_launcher: MakeLauncher, capfd: pytest.CaptureFixture[str]
) -> None:
    """While a preempted run waits for its next container, Modal's line and the elapsed time are reported."""
    server = make_server(mode=Mode(replacement_delay=22))
    command = '[ -e "$SKYRL_DATA/x" ] && exit 0; touch "$SKYRL_DATA/x"; echo up; sleep 600'

    result = make_launcher().run(command, output=ActingOutput("up\n", server.preempt))

    assert result.succeeded
    messages = capfd.readouterr().err
    assert messages.count("| Modal: Runner interrupted due to worker preemption.") == 1
    assert len(re.findall(r"waiting for another container \(\d+ s\): Modal: ", messages)) == 2


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(modal.App, "stop"), reason="clients before modal 1.6.4 find no app by its id")
def test_attached_process_reports_the_reason(
    make_server: MakeServer, make_launcher: MakeLauncher, script: Callable[..., Script]
) -> None:
    """Another process that shows a waiting run reports Modal's reason; the state is pending without its requests."""
    server = make_server(mode=Mode(capacity_wait=600))
    run = make_launcher().submit("echo never")
    states = [run.state, Run.attach(run.id).state]
    after_states = len(server.requests("AppCountLogs"))

    attached = script(ATTACHER, run.id)
    attached.wait_for(REASON, "stderr")
    run.cancel()

    assert (states, after_states) == ([RunState.PENDING] * 2, 0)
    assert attached.end()[:2] == (130, "")


def test_running_command_costs_no_requests_for_reasons(make_server: MakeServer, make_launcher: MakeLauncher) -> None:
    """When the container has started, the app's log is not read any more."""
    server = make_server()
    run = make_launcher().submit("echo up; sleep 600")
    requests = None
    for event in run.events():
        if isinstance(event, StateEvent):
            requests = len(server.requests("AppCountLogs"))
            threading.Timer(4, run.cancel).start()

    assert len(server.requests("AppCountLogs")) == requests


@pytest.mark.slow
def test_modals_lines_explain_a_lost_container(
    make_server: MakeServer, make_launcher: MakeLauncher, capfd: pytest.CaptureFixture[str]
) -> None:
    """If a container dies, Modal's lines about it are reported."""
    server = make_server(crashes_allowed=0)
    output = ActingOutput("up\n", server.kill)

    result = make_launcher().run("echo up; sleep 600", output=output)

    assert result.state is RunState.LOST
    [container] = server.containers(running=False)
    assert f"Modal: Container {container.id} ended." in capfd.readouterr().err


@pytest.mark.slow
def test_modals_line_explains_a_stopped_app(
    make_server: MakeServer, make_launcher: MakeLauncher, capfd: pytest.CaptureFixture[str]
) -> None:
    """If the app of a waiting run is stopped with `modal app stop`, Modal's line about it is reported."""
    server = make_server(mode=Mode(capacity_wait=600))

    def stop() -> None:
        server.wait_for_call("FunctionMap")
        command = [sys.executable, "-m", "modal", "app", "stop", server.apps[0].id, "--yes"]
        subprocess.run(command, env={**os.environ, **server.env()}, check=True, capture_output=True)

    threading.Thread(target=stop).start()
    result = make_launcher().run("true")

    assert (result.state, result.attempts) == (RunState.CANCELLED, 0)
    assert "Modal: Stopping app - user stopped from CLI." in capfd.readouterr().err


# -- start_deadline ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("volumes", ["volume", "no volume"])
def test_waiting_call_is_cancelled_at_the_deadline(
    make_server: MakeServer, make_launcher: MakeLauncher, capfd: pytest.CaptureFixture[str], volumes: str
) -> None:
    """A run without a container at its deadline ends as failed, and its app and its input end."""
    server = make_server(mode=Mode(capacity_wait=600))
    used = make_launcher(start_deadline=2, **({} if volumes == "volume" else {"volumes": []}))

    begin = time.monotonic()
    result = used.run("echo never")

    assert time.monotonic() - begin < 30
    assert (*ending(result), result.attempts) == (*LATE, 0)
    assert capfd.readouterr().err.count("the command did not start within 2 s (start_deadline)") == 1
    server.wait_for_no_container()
    assert server.function_calls[0].inputs[0].cancelled


@pytest.mark.slow
def test_other_processes_read_the_cause(make_server: MakeServer, make_launcher: MakeLauncher) -> None:
    """The cause of a run that was cancelled at its deadline is stored for later readers."""
    make_server(mode=Mode(capacity_wait=600))
    result = make_launcher(start_deadline=1).run("echo never", quiet=True)

    waited = skyrl_modal("wait", result.run_id)

    assert waited.returncode == 125
    assert "the command did not start within 1 s" in waited.stderr


def test_state_applies_the_deadline_of_a_submitted_run(
    make_server: MakeServer, script: Callable[..., Script], checkout: Path, volume: VolumeSpec
) -> None:
    """A run without a container at its deadline, whose caller has exited, fails when a process asks for its state."""
    server = make_server(mode=Mode(capacity_wait=600))
    _, out, _ = script(SUBMITTER, str(checkout), volume.name, "echo never", "1").end()
    run = Run.attach(out.strip())

    while (state := run.state) is RunState.PENDING:  # until the deadline, a second after the submission
        pass

    assert state is RunState.FAILED
    assert server.function_calls[0].inputs[0].cancelled
    assert ending(Run.attach(out.strip()).result()) == LATE


@pytest.mark.slow
def test_a_reader_applies_the_deadline_of_a_submitted_run(
    make_server: MakeServer, script: Callable[..., Script], checkout: Path, volume: VolumeSpec
) -> None:
    """If the process that has submitted a run has exited, any process that waits for the run cancels it."""
    server = make_server(mode=Mode(capacity_wait=600))
    _, out, _ = script(SUBMITTER, str(checkout), volume.name, "echo never", "1").end()

    result = Run.attach(out.strip()).wait(60)

    assert ending(result) == LATE
    assert server.function_calls[0].inputs[0].cancelled


def test_late_container_does_not_run_the_command(
    make_server: MakeServer, script: Callable[..., Script], checkout: Path, volume: VolumeSpec
) -> None:
    """A container that starts after the deadline, when no process waits for the run, does not run the command."""
    server = make_server(mode=Mode(capacity_wait=8))
    _, out, _ = script(SUBMITTER, str(checkout), volume.name, "touch $SKYRL_DATA/ran", "2").end()
    folder = server.volume(volume.name)
    server.wait_until((folder / ".skyrl_modal" / "runs" / out.strip() / "result.json").exists)

    assert ending(Run.attach(out.strip()).wait(60)) == LATE
    assert not (folder / "ran").exists()


@pytest.mark.slow
@pytest.mark.parametrize("volumes", ["volume", "no volume"])
def test_restart_after_a_preemption_is_not_late(
    make_server: MakeServer, make_launcher: MakeLauncher, volumes: str
) -> None:
    """A command that has started in time continues after the deadline, also if its run is preempted."""
    server = make_server()
    used = make_launcher(start_deadline=15, **({} if volumes == "volume" else {"volumes": []}))
    run = used.submit("echo up $MODAL_TASK_ID; sleep 600")
    first = server.wait_for_container()
    server.wait_for_text(f"up {first.id}\n")
    submitted_at = time.time()
    server.wait_until(lambda: time.time() > submitted_at + 17)
    state = run.state

    server.preempt()

    server.wait_until(lambda: len(server.plane.scheduler.containers) == 2)
    [second] = [container for container in server.containers(running=False) if container is not first]
    server.wait_for_text(f"up {second.id}\n")
    assert state is RunState.RUNNING
    run.cancel(now=True)


@pytest.mark.slow
def test_deadline_includes_the_start_of_ray(
    make_server: MakeServer, make_launcher: MakeLauncher, tmp_path: Path
) -> None:
    """A run whose Ray does not start by the deadline fails, whatever RaySpec.start_timeout is."""
    ray = tmp_path / "bin" / "ray"
    ray.parent.mkdir()
    ray.write_text("#!/bin/sh\nexec sleep 600\n")
    ray.chmod(0o755)
    make_server(container_path=[ray.parent], visible=[ray.parent])

    result = make_launcher(ray=RaySpec(), start_deadline=6).run("echo never", quiet=True)

    assert (*ending(result), result.attempts) == (*LATE, 0)


def test_cancelled_run_is_not_late(make_server: MakeServer, make_launcher: MakeLauncher) -> None:
    """A waiting run that is cancelled before its deadline is cancelled."""
    make_server(mode=Mode(capacity_wait=600))
    run = make_launcher(start_deadline=600).submit("echo never")
    run.cancel()

    assert ending(run.wait(60)) == (RunState.CANCELLED, 130, FailureCause.STOPPED)


@pytest.mark.slow
def test_cluster_is_cancelled_at_the_deadline(make_server: MakeServer, make_launcher: MakeLauncher) -> None:
    """A cluster that does not start by the deadline ends as failed."""
    server = make_server()
    server.faults.slow_start(600)

    result = make_launcher(start_deadline=2, nodes=2, gpu="H100:8").run("echo never", quiet=True)

    assert ending(result) == LATE
