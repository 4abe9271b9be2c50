"""Readers of the output that stop reading: the run, its limits and its end do not depend on them."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skyrl_modal import Launcher, Run, RunResult, RunState, VolumeSpec, runs
from skyrl_modal.backends.local.volume_folder import volume_folder

#: Seconds that no correct run of these tests needs, also on a loaded machine.
TIMEOUT = 60.0
#: More than all buffers between a command and its reader can hold.
OUTPUT_BYTES = 50_000_000
#: Waits for the test, writes more than all buffers can hold, and reports that it has been written. The test's pipes
#: are on the volume.
LOUD = (
    "cd $SKYRL_DATA; echo $SKYRL_RUN_ID > started; cat go; "
    f"head -c {OUTPUT_BYTES} /dev/zero | tr '\\0' x; echo > written; "
)
LAST = "echo last"
FOREVER = "exec sleep 1000"
#: A caller whose sink does not return until it receives SIGUSR1. It prints the number of bytes and the run's state.
BLOCKED_CALLER = """
import signal, sys, threading
from skyrl_modal import Launcher, VolumeSpec

gate, sizes = threading.Event(), []
signal.signal(signal.SIGUSR1, lambda *_: gate.set())

def sink(data):
    sizes.append(len(data))
    gate.wait()

volumes = [VolumeSpec(name=sys.argv[1])]
launcher = Launcher(backend="local", ray=None, gpu=None, volumes=volumes, timeout=sys.argv[2], grace=1)
try:
    result = launcher.run(sys.argv[3], output=sink)
except KeyboardInterrupt:
    sys.exit(130)
print(sum(sizes), result.state)
"""
#: A caller that writes the output to its standard output.
CALLER = """
import sys
from skyrl_modal import Launcher, VolumeSpec

volumes = [VolumeSpec(name=sys.argv[1])]
launcher = Launcher(backend="local", ray=None, gpu=None, volumes=volumes, timeout=sys.argv[2], grace=1)
try:
    result = launcher.run(sys.argv[3])
except KeyboardInterrupt:  # without a traceback, which would block as well if standard error is not read
    sys.exit(130)
sys.exit(result.returncode)
"""


class Caller:
    """A process that runs a command, and stops reading its output.

    Attributes:
        kind: ``"pipe"``: standard output is a pipe that is not read; ``"both"``: likewise standard error;
            ``"stopped"``: the process is suspended; ``"callback"``: the sink does not return.
        run: The run.
    """

    def __init__(self, kind: str, volume: VolumeSpec, checkout: Path, command: str, timeout: str) -> None:
        self.kind = kind
        self._folder = volume_folder(volume.name)
        self._folder.mkdir(parents=True, exist_ok=True)
        for name in ("started", "go", "written", "interrupted"):
            os.mkfifo(self._folder / name)
        self._output = self._folder / "caller.out"
        code = BLOCKED_CALLER if kind == "callback" else CALLER
        self.reader, writer = os.pipe()
        with open(writer, "wb") as pipe, self._output.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, volume.name, timeout, LOUD + command],
                cwd=checkout,
                stdout=pipe if kind in ("pipe", "both") else file,
                stderr=pipe if kind == "both" else subprocess.DEVNULL,
            )

    def wait_until_started(self) -> None:
        """Wait until the command has started, and its run is in the index, which may be later."""
        run_id = (self._folder / "started").read_text().strip()
        deadline = time.monotonic() + TIMEOUT
        while not any(run.id == run_id for run in runs(limit=None)):
            assert time.monotonic() < deadline, f"run {run_id} is not in the index"
            time.sleep(0.01)
        self.run = Run.attach(run_id)

    def stop_reading(self) -> None:
        """Stop reading, and let the command write its output. Return when it has been written."""
        if self.kind == "stopped":
            self.process.send_signal(signal.SIGSTOP)
        (self._folder / "go").write_text("")
        (self._folder / "written").read_text()

    def wait_until_interrupted(self) -> None:
        """Wait until the command has received SIGINT, and writes to the pipe."""
        (self._folder / "interrupted").read_text()

    def read_on(self) -> bytes:
        """Continue to read, and return what the process has received; for a sink, what it has printed."""
        if self.kind == "stopped":
            self.process.send_signal(signal.SIGCONT)
        if self.kind == "callback":
            self.process.send_signal(signal.SIGUSR1)
        with open(self.reader, "rb") as pipe:
            output = pipe.read()
        self.process.wait(TIMEOUT)
        return output if self.kind in ("pipe", "both") else self._output.read_bytes()

    def close(self) -> None:
        """End the process if a test has failed."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


MakeCaller = Callable[..., Caller]


@pytest.fixture
def make_caller(volume: VolumeSpec, checkout: Path) -> Iterator[MakeCaller]:
    """Return a function that starts a caller."""
    callers: list[Caller] = []

    def make(kind: str, command: str, timeout: str = "10m") -> Caller:
        callers.append(Caller(kind, volume, checkout, command, timeout))
        callers[-1].wait_until_started()
        return callers[-1]

    yield make
    for caller in callers:
        caller.close()


def digest(data: bytes) -> str:
    """Return a short text that differs if the data differs."""
    return f"{len(data)} {hashlib.sha256(data).hexdigest()}"


def check_output(caller: Caller, result: RunResult) -> None:
    """Assert that the caller receives the complete output when it continues to read."""
    log = Path(result.log_path).read_bytes()
    assert len(log) >= OUTPUT_BYTES
    output = caller.read_on()
    if caller.kind == "callback":
        assert output.decode().split() == [str(len(log)), str(result.state)]
    elif caller.kind == "both":  # the launcher's messages are in the same pipe
        assert len(output) >= len(log)
    else:
        assert digest(output) == digest(log)


KINDS = ["pipe", "both", "stopped", "callback"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_stopped_reader_does_not_delay_the_end(make_caller: MakeCaller, kind: str) -> None:
    """The run ends while its output is not read. The reader then receives all of it, and the caller the exit code."""
    caller = make_caller(kind, f"{LAST}; exit 7")
    caller.stop_reading()

    result = caller.run.wait(TIMEOUT)

    assert (result.state, result.returncode) == (RunState.FAILED, 7)
    check_output(caller, result)
    assert caller.process.returncode == (0 if kind == "callback" else 7)


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_reader_does_not_delay_the_timeout(make_caller: MakeCaller, kind: str) -> None:
    """The timeout ends the command and the run while its output is not read."""
    caller = make_caller(kind, FOREVER, "3s")
    caller.stop_reading()

    result = caller.run.wait(TIMEOUT)

    assert (result.state, result.returncode) == (RunState.TIMED_OUT, 124)
    check_output(caller, result)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("now", [False, True])
def test_stopped_reader_does_not_delay_a_cancellation(make_caller: MakeCaller, kind: str, now: bool) -> None:
    """Another process can cancel the run while its output is not read."""
    caller = make_caller(kind, FOREVER)
    caller.stop_reading()

    caller.run.cancel(now=now)
    result = caller.run.wait(TIMEOUT)

    assert (result.state, result.returncode) == (RunState.CANCELLED, 137 if now else 130)
    check_output(caller, result)


def test_endless_output_does_not_delay_the_timeout(make_caller: MakeCaller) -> None:
    """A command that writes all the time is ended at its timeout, although its output is not read."""
    caller = make_caller("pipe", "exec cat /dev/zero | head -c 300000000; exec sleep 1000", "2s")
    caller.stop_reading()

    result = caller.run.wait(TIMEOUT)

    assert result.state is RunState.TIMED_OUT
    check_output(caller, result)


@pytest.mark.parametrize("kind", ["pipe", "callback"])
def test_ctrl_c_stops_the_run_while_a_callback_blocks(make_caller: MakeCaller, kind: str) -> None:
    """The first Ctrl-C stops the run, although the main thread does not return from the sink."""
    caller = make_caller(kind, FOREVER)
    caller.stop_reading()

    caller.process.send_signal(signal.SIGINT)
    result = caller.run.wait(TIMEOUT)

    assert (result.state, result.returncode) == (RunState.CANCELLED, 130)
    assert caller.process.poll() is None
    caller.read_on()
    assert caller.process.returncode == 130


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pipe", "both", "callback"])
def test_second_ctrl_c_interrupts_a_callback(make_caller: MakeCaller, kind: str) -> None:
    """The second Ctrl-C kills the run and raises KeyboardInterrupt in a sink that does not return."""
    caller = make_caller(kind, "trap '' TERM; trap 'echo > interrupted' INT; while :; do sleep 1; done")
    caller.stop_reading()

    caller.process.send_signal(signal.SIGINT)
    caller.wait_until_interrupted()
    caller.process.send_signal(signal.SIGINT)
    result = caller.run.wait(TIMEOUT)

    assert (result.state, result.returncode) == (RunState.CANCELLED, 137)
    assert caller.process.wait(TIMEOUT) == 130


def test_second_ctrl_c_in_a_callback_that_returns_is_reported(capfd: pytest.CaptureFixture[str]) -> None:
    """The end of a run that a second Ctrl-C kills is reported, also if the sink was called at that time."""
    pressed: list[bytes] = []

    def press_ctrl_c(data: bytes) -> None:
        if len(pressed) < 2 and data.count(b"line"):
            pressed.append(data)
            os.kill(os.getpid(), signal.SIGINT)

    launcher = Launcher(backend="local", mounts=[], volumes=[], ray=None, gpu=None, grace=500)
    with pytest.raises(KeyboardInterrupt):
        launcher.run("trap '' INT TERM; while :; do echo line; sleep 0.2; done", output=press_ctrl_c)

    assert len(pressed) == 2
    assert "cancelled, exit code 137" in capfd.readouterr().err
