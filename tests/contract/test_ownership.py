"""Tests of ownership: which runs end with their caller, and which continue. The caller is a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skyrl_modal import Launcher, Run, RunCancelled, RunNotFound, RunState, RunTimeout
from skyrl_modal.protocol.state import FailureCause, StopReason
from skyrl_modal.run.interrupts import STOPPING_MESSAGE
from tests.conftest import MakeLauncher
from tests.support.commands import saving_command
from tests.support.processes import signal_other_thread

CALLER = """
import sys
from skyrl_modal import Launcher, VolumeSpec
launcher = Launcher(backend={backend!r}, checkout={checkout!r}, volumes=[VolumeSpec(name={volume!r})], ray=None,
                    gpu=None, grace={grace}, lease={lease})
try:
    result = launcher.run(sys.argv[1])
except KeyboardInterrupt:
    print("interrupted", flush=True)
    raise
print("ended", result.returncode)
"""


class Caller:
    """A process that calls ``Launcher.run``."""

    def __init__(self, made: Launcher, command: str, grace: float = 6, lease: float = 600) -> None:
        script = CALLER.format(
            backend=made.backend, checkout=str(made.checkout), volume=made.volumes[0].name, grace=grace, lease=lease
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def wait_for(self, text: str) -> None:
        """Read standard output until a line with this text arrives."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip() == text:
                return
        pytest.fail(f"the caller exited before it printed {text!r}: {self.process.communicate()}")

    def end(self) -> tuple[int, str, str]:
        """Wait until the process exits. Return its exit code, and the rest of its output and of its messages."""
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err

    @staticmethod
    def run_id(err: str) -> str:
        """Return the run's id from the launcher's messages."""
        return next(line.split()[3].rstrip(":") for line in err.splitlines() if "| run " in line)


StartCaller = Callable[..., Caller]


@pytest.fixture
def start_caller(launcher: MakeLauncher) -> Iterator[StartCaller]:
    """Return a function that starts a caller. Remaining callers are killed after the test."""
    started: list[Caller] = []

    def start(command: str, **options: float) -> Caller:
        started.append(Caller(launcher(), command, **options))
        return started[-1]

    yield start
    for caller in started:
        if caller.process.poll() is None:
            caller.process.kill()
        caller.process.communicate()


SAVING_COMMAND = saving_command(path="/root/data/saved")


def read_saved(made: Launcher, tmp_path: Path) -> str:
    """Return what the command saved on the volume."""
    return made.pull("/root/data/saved", tmp_path / "saved").read_text()


def test_interrupt_stops_the_run_and_is_raised(
    start_caller: StartCaller, launcher: MakeLauncher, tmp_path: Path
) -> None:
    """Ctrl-C stops the command with its grace period, and KeyboardInterrupt is raised after its end."""
    caller = start_caller(SAVING_COMMAND)
    caller.wait_for("up")

    caller.process.send_signal(signal.SIGINT)
    code, out, err = caller.end()

    assert code == -signal.SIGINT  # Python ends itself by the signal after an uncaught KeyboardInterrupt
    assert out.splitlines() == ["saving", "interrupted"]
    assert STOPPING_MESSAGE in err
    result = Run.attach(caller.run_id(err)).result()
    assert (result.state, result.returncode) == (RunState.CANCELLED, 3)
    assert (result.cause, result.stop_reason) == (FailureCause.STOPPED, StopReason.CANCELLED)
    assert read_saved(launcher(), tmp_path) == "yes\n"


def test_interrupt_of_another_thread(start_caller: StartCaller) -> None:
    """Ctrl-C stops the run also if the kernel delivers the signal to another thread than the main thread."""
    caller = start_caller(SAVING_COMMAND)
    caller.wait_for("up")

    signal_other_thread(caller.process.pid, signal.SIGINT)
    _, out, err = caller.end()

    assert out.splitlines() == ["saving", "interrupted"]
    assert Run.attach(caller.run_id(err)).result().state is RunState.CANCELLED


def test_second_interrupt_kills(start_caller: StartCaller) -> None:
    """A second Ctrl-C kills a command that does not end."""
    caller = start_caller("trap 'echo no' INT TERM; echo up; while :; do sleep 600 & wait; done", grace=500)
    caller.wait_for("up")

    caller.process.send_signal(signal.SIGINT)
    caller.wait_for("no")
    caller.process.send_signal(signal.SIGINT)
    _, out, err = caller.end()

    assert out.splitlines()[-1] == "interrupted"
    result = Run.attach(caller.run_id(err)).result()
    assert (result.state, result.returncode) == (RunState.CANCELLED, 137)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_run_ends_with_its_caller(
    start_caller: StartCaller, launcher: MakeLauncher, tmp_path: Path, number: signal.Signals
) -> None:
    """A run whose caller is killed is stopped with its grace period; after SIGKILL, Modal notices it by the lease."""
    caller = start_caller(SAVING_COMMAND, lease=8 if number == signal.SIGKILL else 600)
    caller.wait_for("up")

    caller.process.send_signal(number)
    caller.process.wait()
    _, _, err = caller.end()
    result = Run.attach(caller.run_id(err)).wait(60)

    assert (result.state, result.returncode) == (RunState.CANCELLED, 3)
    assert read_saved(launcher(), tmp_path) == "yes\n"


def test_submitted_run_continues(launcher: MakeLauncher) -> None:
    """A submitted run continues after its caller has exited, and another process attaches to it."""
    made = launcher()
    script = CALLER.format(
        backend=made.backend, checkout=str(made.checkout), volume=made.volumes[0].name, grace=6, lease=600
    ).replace("result = launcher.run(sys.argv[1])", "print(launcher.submit(sys.argv[1]).id); sys.exit()")
    # On Modal, files that others write to a volume are visible after a reload only.
    pause = "until [ -e /root/data/go ]; do sleep 0.05; done" if made.backend == "local" else "sleep 5"
    command = f"echo first; {pause}; echo last; exit 5"

    done = subprocess.run([sys.executable, "-c", script, command], stdout=subprocess.PIPE, text=True, check=True)
    run = Run.attach(done.stdout.strip())

    with pytest.raises(RunTimeout) as caught:
        run.wait(0.2)
    assert (caught.value.seconds, caught.value.returncode) == (0.2, None)
    assert not run.state.is_final
    made.push(__file__, "/root/data/go")
    assert list(run.logs(follow=True)) == ["first", "last"]
    result = run.wait(60)
    assert (result.state, result.returncode) == (RunState.FAILED, 5)
    assert list(run.logs(tail=1)) == ["last"]
    assert list(Run.attach(run.id).logs()) == ["first", "last"]


def test_cancel_ends_the_process_tree(launcher: MakeLauncher) -> None:
    """A cancelled run ends also if its processes ignore signals. Cancelling it again does nothing."""
    made = launcher(grace=1)
    run = made.submit(
        "trap '' TERM INT; setsid sh -c \"trap '' TERM INT; exec sleep 600\" & echo up; while :; do sleep 600; done"
    )
    assert next(iter(run.logs(follow=True))) == "up"

    run.cancel()
    result = run.wait(10)
    run.cancel()

    assert (result.state, result.returncode) == (RunState.CANCELLED, 137)
    assert (result.cause, result.stop_reason) == (FailureCause.STOPPED, StopReason.CANCELLED)
    with pytest.raises(RunCancelled):
        result.check_returncode()


def test_run_is_cancelled_before_it_begins(launcher: MakeLauncher) -> None:
    """A run that is cancelled immediately, possibly before its supervisor runs, is cancelled and not lost."""
    run = launcher().submit("exec sleep 600")

    run.cancel()

    result = Run.attach(run.id).wait(60)
    assert (result.state, result.returncode) == (RunState.CANCELLED, 130)


def test_similar_id_is_suggested(launcher: MakeLauncher) -> None:
    """The error for an unknown id contains the similar id of a run."""
    run = launcher().submit("true")
    run.wait(60)

    with pytest.raises(RunNotFound) as caught:
        Run.attach(f"{run.id[:-1]}!")

    assert run.id in caught.value.nearest


def test_killed_supervisor_is_lost(launcher: MakeLauncher, backend: str) -> None:
    """A run whose supervisor is killed is lost, and its output is kept."""
    if backend != "local":
        pytest.skip("the processes of the container are not on this machine")
    run = launcher().submit("echo up; sleep 600")
    assert next(iter(run.logs(follow=True))) == "up"

    os.kill(int(run._execution.handle["pid"]), signal.SIGKILL)
    result = run.wait(30)

    assert (result.state, result.returncode) == (RunState.LOST, 125)
    assert result.cause is FailureCause.SUPERVISOR_DIED
    assert Run.attach(run.id).state is RunState.LOST
    assert result.log_tail == "up"
