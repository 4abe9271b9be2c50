"""Tests of containers that exit, are preempted, or cannot commit: no failure is reported as a success."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_modal import Launcher, Run, RunState, VolumeSpec
from skyrl_modal.protocol.state import FailureCause, StopReason
from tests.backends.modal.conftest import ActingOutput, stored_output
from tests.support.commands import saving_command
from tests.support.loopback import LoopbackModal
from tests.support.processes import signal_other_thread

Make = Callable[..., Launcher]


def wait_for_status(server: LoopbackModal, volume: VolumeSpec, run: Run) -> None:
    """Wait until a run has committed its state.json."""
    server.wait_until((server.volume(volume.name) / ".skyrl_modal" / "runs" / run.id / "state.json").exists)


def test_dead_container_is_not_run_again(server: LoopbackModal, launcher: Make, volume: VolumeSpec) -> None:
    """A run without retries whose container died is lost, and its command is not started again."""
    run = launcher().submit("echo up; echo again >> /root/data/starts; sleep 600")
    server.wait_for_text("up\n")
    wait_for_status(server, volume, run)

    server.kill()
    result = run.wait(60)

    assert (result.state, result.cause, result.returncode) == (RunState.LOST, FailureCause.CONTAINER_DIED, 125)
    assert Run.attach(run.id).state is RunState.LOST
    assert server.log_text().count("up\n") == 1


def test_modals_reason_for_a_loss_is_reported(make_server: Callable[..., LoopbackModal], launcher: Make) -> None:
    """If Modal gives up a run whose containers died, its message is in the result, which is waited for only once."""
    server = make_server(crashes_allowed=0)
    output = ActingOutput("up", server.kill)

    result = launcher(grace=1).run("echo up; sleep 600", output=output, quiet=True)

    assert (result.state, result.cause, result.returncode) == (RunState.LOST, FailureCause.CONTAINER_DIED, 125)
    assert "Modal reported: Container terminated unexpectedly with exit code 137." in result.detail
    assert output.getvalue() == b"up\n"
    later = Run.attach(result.run_id).wait(8)  # the grace period and 10 s, if the container could still write a result
    assert (later.state, later.cause, later.detail) == (result.state, result.cause, result.detail)


def test_dead_container_counts_as_an_attempt(server: LoopbackModal, launcher: Make, volume: VolumeSpec) -> None:
    """A run with retries whose container died continues with the next attempt."""
    run = launcher(retries=1).submit("echo attempt $SKYRL_ATTEMPT; [ $SKYRL_ATTEMPT = 2 ] || sleep 600")
    server.wait_for_text("attempt 1\n")
    wait_for_status(server, volume, run)

    server.kill()
    result = run.wait(60)

    assert (result.state, result.returncode, result.attempts) == (RunState.SUCCEEDED, 0, 2)


def test_preempted_run_continues_in_the_same_attempt(server: LoopbackModal, launcher: Make, tmp_path: Path) -> None:
    """A preempted command may save, and is started again without another attempt; the output has both parts."""
    command = (
        "trap 'echo saving; echo saved > /root/data/ckpt; exit 0' INT TERM; echo attempt $SKYRL_ATTEMPT;"
        " if [ -e /root/data/ckpt ]; then cat /root/data/ckpt; exit 5; fi; echo first; sleep 600 & wait"
    )
    output = ActingOutput("first\n", server.preempt)
    used = launcher()

    result = used.run(command, output=output, quiet=True)

    assert (result.state, result.returncode, result.attempts) == (RunState.FAILED, 5, 1)
    before, message, after = output.getvalue().partition(b"skyrl-modal | ")
    assert message
    assert before == b"attempt 1\nfirst\nsaving\n"
    assert after.partition(b"\n")[2] == b"attempt 1\nsaved\n"
    assert stored_output(used, result, tmp_path) == output.getvalue()
    record = used.pull(f"/root/data/.skyrl_modal/runs/{result.run_id}/result.json", tmp_path / "result.json")
    assert json.loads(record.read_text())["returncode"] == 5


def test_signal_to_another_thread_stops_the_run(server: LoopbackModal, launcher: Make) -> None:
    """The container handles a signal whichever of its threads receives it."""
    run = launcher().submit(saving_command())
    server.wait_for_text("up\n")

    pid = server.wait_for_container("busy").pid
    assert pid is not None
    signal_other_thread(pid, signal.SIGINT)

    server.wait_for_text("saving\n")
    run.cancel(now=True)
    run.wait(60)


def test_state_of_a_slow_start(server: LoopbackModal, launcher: Make, volume: VolumeSpec) -> None:
    """A run is pending until its container has started, then running, then cancelled."""
    server.faults.slow_start(3)

    run = launcher().submit("echo up; sleep 600")
    states = [run.state]
    assert next(iter(run.logs(follow=True))) == "up"
    wait_for_status(server, volume, run)
    states.append(run.state)
    run.cancel()

    result = run.wait(30)
    assert states == [RunState.PENDING, RunState.RUNNING]
    assert (result.state, result.cause) == (RunState.CANCELLED, FailureCause.STOPPED)
    assert result.stop_reason is StopReason.CANCELLED


@pytest.mark.slow
def test_volume_that_cannot_be_reloaded(server: LoopbackModal, launcher: Make, volume: VolumeSpec) -> None:
    """A run whose volume cannot be reloaded for 30 s, since the reload commits first, fails with the volume's name."""
    used = launcher(grace=1)
    used.run("true", quiet=True)  # creates the volume
    server.fail_commits(volume.name, times=10_000)

    result = used.run("echo done", output=io.BytesIO(), quiet=True)

    assert (result.state, result.cause) == (RunState.FAILED, FailureCause.SYSTEM_ERROR)
    assert result.returncode == 125
    assert f"the volume {volume.name} could not be reloaded: failed to publish commit" in result.detail


def test_modals_timeout(server: LoopbackModal, launcher: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that Modal itself ends at its timeout has timed out, or was cancelled if its container could report it."""
    monkeypatch.setattr("skyrl_modal.backends.modal.app.container_timeout", lambda job: 3)

    result = launcher(grace=1).run("echo up; sleep 600", output=io.BytesIO(), quiet=True)

    assert (result.state, result.cause, result.returncode) in [
        (RunState.TIMED_OUT, FailureCause.TOTAL_TIMEOUT, 124),
        (RunState.CANCELLED, FailureCause.STOPPED, 130),
    ]
