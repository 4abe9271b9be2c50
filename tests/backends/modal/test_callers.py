"""Tests of callers on Modal: Ctrl-C, and runs that other processes attach to."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

from skyrl_modal import Launcher, Run, RunState, VolumeSpec
from skyrl_modal.backends.modal import ModalBackend
from skyrl_modal.protocol.state import StopReason
from tests.backends.modal.conftest import Script
from tests.support.loopback import LoopbackModal

Make = Callable[..., Launcher]

CALLER = """
import sys, time
from skyrl_modal import ImageSpec, Launcher, VolumeSpec
launcher = Launcher(checkout=sys.argv[1], volumes=[VolumeSpec(name=sys.argv[2])], ray=None, gpu=None,
                    grace=float(sys.argv[4]), lease=sys.argv[5] if len(sys.argv) > 5 else "10m")
try:
    print("ended", launcher.run(sys.argv[3]).returncode)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    raise SystemExit(77)
"""


def test_ctrl_c_while_uploading_leaves_no_app(
    server: LoopbackModal, script: Callable[..., Script], checkout: Path, volume: VolumeSpec
) -> None:
    """Ctrl-C during the upload ends the caller within seconds; the app is stopped and the function not called."""
    server.faults.hold("MountGetOrCreate")
    caller = script(CALLER, str(checkout), volume.name, "true", "6")
    caller.wait_for("building missing layers of the image", "stderr")
    server.wait_for_call("MountGetOrCreate", 1)

    begin = time.monotonic()
    caller.process.send_signal(signal.SIGINT)
    code, out, _ = caller.end()

    assert time.monotonic() - begin < 30  # the upload is held for good
    assert (code, out) == (77, "interrupted\n")
    apps = server.apps
    server.wait_until(lambda: all(app.stopped_at for app in apps))
    assert server.function_calls == []


def test_second_ctrl_c_kills_whatever_the_grace_period(
    server: LoopbackModal, script: Callable[..., Script], checkout: Path, volume: VolumeSpec
) -> None:
    """A second Ctrl-C ends a run within seconds, also if its grace period is long."""
    command = "trap 'echo no' INT TERM; echo up; while :; do sleep 600 & wait; done"
    caller = script(CALLER, str(checkout), volume.name, command, "500")
    caller.wait_for("up")
    caller.process.send_signal(signal.SIGINT)
    caller.wait_for("no")

    begin = time.monotonic()
    caller.process.send_signal(signal.SIGINT)
    code, out, err = caller.end()

    assert time.monotonic() - begin < 40  # 3 s on an idle machine; the grace period is 500 s
    assert (code, out) == (77, "interrupted\n")
    assert "cancelled, exit code 137" in err
    server.wait_for_no_container(15)


def test_killed_run_has_its_result_in_other_processes(
    server: LoopbackModal, launcher: Make, script: Callable[..., Script]
) -> None:
    """A process that did not kill a run does not wait as long as the grace period for a result of its container."""
    run = launcher(grace=500).submit("echo up; sleep 600")
    assert next(iter(run.logs(follow=True))) == "up"

    code, _, err = script(
        "import sys\nfrom skyrl_modal import Run\nRun.attach(sys.argv[1]).cancel(now=True)", run.id
    ).end()

    assert code == 0, err
    server.wait_for_no_container(15)
    results = [each.wait(15) for each in (run, Run.attach(run.id))]
    assert [(result.state, result.returncode) for result in results] == [(RunState.CANCELLED, 137)] * 2
    assert {result.stop_reason for result in results} == {StopReason.KILL}


def test_second_ctrl_c_kills_without_a_network(
    server: LoopbackModal, script: Callable[..., Script], checkout: Path, volume: VolumeSpec
) -> None:
    """A second Ctrl-C ends the caller within seconds, also if Modal cannot confirm it. The run ends with its lease."""
    caller = script(CALLER, str(checkout), volume.name, "echo up; sleep 600", "500", "20")
    caller.wait_for("up")
    server.faults.unavailable(25)
    caller.process.send_signal(signal.SIGINT)
    caller.wait_for("Ctrl-C", "stderr")

    begin = time.monotonic()
    caller.process.send_signal(signal.SIGINT)
    code, out, err = caller.end()

    assert time.monotonic() - begin < 40  # the grace period is 500 s
    assert (code, out) == (77, "interrupted\n")
    assert "cancelled, exit code 137" in err
    server.faults.clear()
    server.wait_for_no_container(60)


def test_submitted_run_is_used_by_another_process(
    server: LoopbackModal, launcher: Make, script: Callable[..., Script]
) -> None:
    """Submitting takes little time, and another process reads, cancels and waits for the run."""
    used = launcher()
    used.run("true", quiet=True)  # builds the image and uploads the files

    begin = time.monotonic()
    run = used.submit("echo one; trap 'echo saved; exit 9' INT; sleep 600 & wait")
    seconds = time.monotonic() - begin

    assert seconds < 60  # it does not wait for the command, which takes 600 s
    other = script(
        "import sys\n"
        "from skyrl_modal import Run\n"
        "run = Run.attach(sys.argv[1])\n"
        "lines = run.logs(follow=True)\n"
        "print(next(lines), run.state, flush=True)\n"
        "run.cancel()\n"
        "print(list(lines), run.wait(30).returncode, run.result().state)\n",
        run.id,
    )
    code, out, err = other.end()
    # When Python 3.11 exits, a thread of the client may write to standard error; an error would have a traceback.
    assert (code, "Traceback (most recent call last)" in err) == (0, False), err
    assert out.split() == ["one", out.split()[1], "['saved']", "9", "cancelled"]
    assert run.wait(30).state is RunState.CANCELLED
    assert list(run.logs()) == ["one", "saved"]
    assert list(run.logs(follow=True)) == ["one", "saved"]
    assert list(run.logs(follow=True)) == ["one", "saved"]  # from the beginning each time


def test_call_is_attached_to_by_its_id(server: LoopbackModal, launcher: Make) -> None:
    """A run that is in no index of this machine has its log and its result, by the id of its call."""
    run = launcher(volumes=[]).submit("echo one; exit 4")
    run.wait(60)
    [call] = server.function_calls

    backend = ModalBackend()
    execution = backend.attach_by_call_id(call.id)

    assert execution is not None
    assert (execution.state(), execution.wait(30).returncode) == (RunState.FAILED, 4)
    assert execution.read_log(0) == b"one\n"
    assert backend.attach_by_call_id(run.id) is None
    assert Run.attach(call.id).id == run.id  # one that this machine's index knows
