"""Callers on Modal whose sink does not return."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_modal import Run, RunState, VolumeSpec, runs
from tests.backends.modal.conftest import Script
from tests.support.loopback import LoopbackModal

#: Bytes that ``seq 200000`` prints.
SEQUENCE_BYTES = sum(len(f"{number}\n") for number in range(1, 200_001))
CALLER = """
import signal, sys, threading
from skyrl_modal import Launcher, VolumeSpec

gate, chunks = threading.Event(), []
signal.signal(signal.SIGUSR1, lambda *_: gate.set())

def sink(data):
    chunks.append(data)
    if len(chunks) == 1:
        print("blocked", data.decode().split()[0], flush=True)
    gate.wait()

volumes = [VolumeSpec(name=sys.argv[2])]
launcher = Launcher(checkout=sys.argv[1], volumes=volumes, ray=None, gpu=None, grace=1, timeout=sys.argv[4])
try:
    result = launcher.run(sys.argv[3], output=sink)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    raise SystemExit(77)
print(result.state, result.returncode, sum(map(len, chunks)), flush=True)
"""


@pytest.mark.slow
def test_blocked_sink_does_not_end_the_run(
    server: LoopbackModal, script: Callable[..., Script], checkout: Path, volume: VolumeSpec
) -> None:
    """The caller sends heartbeats while its sink blocks; the run ends, and the sink then receives all output.

    Without heartbeats, the control plane of the tests ends the app after 3 seconds.
    """
    caller = script(CALLER, str(checkout), volume.name, "echo up; seq 200000; sleep 5; exit 7", "10m")
    caller.wait_for("blocked")

    server.wait_for_no_container(30)
    caller.process.send_signal(signal.SIGUSR1)
    code, out, _ = caller.end()

    assert (code, out) == (0, f"failed 7 {len('up') + 1 + SEQUENCE_BYTES}\n")


@pytest.mark.slow
def test_ctrl_c_stops_the_run_while_a_sink_blocks(
    server: LoopbackModal, script: Callable[..., Script], checkout: Path, volume: VolumeSpec
) -> None:
    """The first Ctrl-C stops the run, although the main thread does not return; the second one interrupts the sink."""
    caller = script(CALLER, str(checkout), volume.name, "echo up; sleep 600", "10m")
    caller.wait_for("blocked")

    caller.process.send_signal(signal.SIGINT)
    server.wait_for_no_container(30)
    assert caller.process.poll() is None

    caller.process.send_signal(signal.SIGINT)
    code, out, _ = caller.end()
    assert (code, out) == (77, "interrupted\n")


def finish_reading(caller: Script, state: str, returncode: int, size: int) -> None:
    """Let the sink return, and assert what the caller has received and returned."""
    caller.process.send_signal(signal.SIGUSR1)
    assert caller.end()[:2] == (0, f"{state} {returncode} {size}\n")


def test_timeout_ends_a_run_whose_sink_blocks(
    server: LoopbackModal, script: Callable[..., Script], checkout: Path, volume: VolumeSpec
) -> None:
    """The timeout ends the command while a sink blocks, and the sink then receives all output."""
    command = "echo $SKYRL_RUN_ID; seq 200000; sleep 600"
    caller = script(CALLER, str(checkout), volume.name, command, "3s")
    [line] = caller.wait_for("blocked")
    run = Run.attach(line.split()[1])

    result = run.wait(60)

    assert (result.state, result.returncode) == (RunState.TIMED_OUT, 124)
    assert result.duration < 10
    server.wait_for_no_container(30)
    finish_reading(caller, "timed_out", 124, len(run.id) + 1 + SEQUENCE_BYTES)


@pytest.mark.parametrize("now", [False, True])
def test_other_process_cancels_a_run_whose_sink_blocks(
    server: LoopbackModal, script: Callable[..., Script], checkout: Path, volume: VolumeSpec, now: bool
) -> None:
    """A cancellation from another process ends the run while a sink blocks, which then receives all output."""
    command = "echo $SKYRL_RUN_ID; seq 200000; sleep 600"
    caller = script(CALLER, str(checkout), volume.name, command, "10m")
    [line] = caller.wait_for("blocked")
    run = Run.attach(line.split()[1])
    while "200000" not in run.logs(tail=1):
        time.sleep(0.05)

    begin = time.monotonic()
    run.cancel(now=now)
    result = run.wait(60)

    assert time.monotonic() - begin < 15
    assert (result.state, result.returncode) == (RunState.CANCELLED, 137 if now else 130)
    server.wait_for_no_container(30)
    finish_reading(caller, "cancelled", 137 if now else 130, len(run.id) + 1 + SEQUENCE_BYTES)


#: Writes the output to its standard output, which the test does not read.
PIPE_CALLER = """
import sys
from skyrl_modal import Launcher, VolumeSpec

volumes = [VolumeSpec(name=sys.argv[2])]
launcher = Launcher(checkout=sys.argv[1], volumes=volumes, ray=None, gpu=None, grace=1, timeout="5s", tags=sys.argv[3:])
sys.exit(launcher.run("seq 200000; sleep 600", quiet=True).returncode)
"""


@pytest.mark.slow
def test_unread_pipe_does_not_delay_the_timeout(
    server: LoopbackModal, script: Callable[..., Script], checkout: Path, volume: VolumeSpec
) -> None:
    """The timeout ends a run whose output is not read from a pipe, which then contains all of it."""
    caller = script(PIPE_CALLER, str(checkout), volume.name, volume.name)
    deadline = time.monotonic() + 60
    while not (found := [run for run in runs() if volume.name in run.job.tags]):
        assert time.monotonic() < deadline
        time.sleep(0.05)

    result = found[0].wait(60)

    assert (result.state, result.returncode) == (RunState.TIMED_OUT, 124)
    assert result.duration < 15
    server.wait_for_no_container(30)
    code, out, _ = caller.end()
    assert (code, len(out)) == (124, SEQUENCE_BYTES)
