"""Output that its reader does not read in time: what the reader receives later, and what is reported as missing."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from skyrl_modal import Launcher, Run, RunResult, RunState, VolumeSpec
from skyrl_modal.backends.local.volume_folder import volume_folder
from skyrl_modal.protocol.events import OutputEvent
from tests.support.small_mounts import run_with_mount

#: Seconds that no correct run of these tests needs, also on a loaded machine.
TIMEOUT = 60.0
#: More than all buffers between a command and its reader can hold.
OUTPUT_BYTES = 50_000_000
#: Prints the run's id, and more than all buffers can hold.
LOUD = f"echo $SKYRL_RUN_ID; head -c {OUTPUT_BYTES} /dev/zero; "

MakeLauncher = Callable[..., Launcher]


class StoppedSink:
    """A sink that does not return from its first call until the run has ended.

    Attributes:
        result: How the run ended; None while it runs.
        size: Number of bytes that the sink has received.
    """

    def __init__(self, act: Callable[[Run], object] = lambda _: None) -> None:
        self.result: RunResult | None = None
        self.size = 0
        self._act = act

    def __call__(self, data: bytes) -> None:
        """Receive output; at the first call, act on the run and wait for its end."""
        if self.result is None:
            run = Run.attach(data.split(b"\n")[0].decode())
            self._act(run)
            self.result = run.wait(TIMEOUT)
        self.size += len(data)


def missing_bytes(messages: str) -> int:
    """Return the number of bytes that a caller's messages report as missing."""
    return sum(map(int, re.findall(r"(\d+) bytes of output are missing", messages)))


def total_of(sink: StoppedSink) -> int:
    """Return the number of bytes that a run has printed before ``OUTPUT_BYTES`` and including them."""
    assert sink.result is not None
    return len(sink.result.run_id) + 1 + OUTPUT_BYTES


@pytest.mark.parametrize("volumes", [[], [VolumeSpec(name="unused", read_only=True)]])
@pytest.mark.parametrize("namespaces", [True, False])
def test_stopped_reader_without_a_writable_volume(
    launcher: MakeLauncher, request: pytest.FixtureRequest, volumes: list[VolumeSpec], namespaces: bool
) -> None:
    """Without a writable volume, a reader that stops until the run has ended receives the rest from a private file."""
    if not namespaces:
        request.getfixturevalue("no_namespaces")
    for item in volumes:
        volume_folder(item.name).mkdir(parents=True, exist_ok=True)
    sink = StoppedSink()

    result = launcher(volumes=volumes).run(f"{LOUD} exit 7", output=sink, quiet=True)

    assert (result.state, result.returncode) == (RunState.FAILED, 7)
    assert sink.size == total_of(sink)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "fields", "state"),
    [("exit 0", {}, "succeeded"), ("exec sleep 1000", {"timeout": 3, "grace": 1}, "timed_out")],
)
def test_stopped_reader_of_two_ranks(launcher: MakeLauncher, end: str, fields: dict[str, Any], state: str) -> None:
    """A run on two nodes ends while its output is not read, and the reader then receives all of it."""
    sink = StoppedSink()

    result = launcher(nodes=2, **fields).run(LOUD + end, output=sink, quiet=True)

    assert result.state == state
    assert sink.size == total_of(sink)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["rm", "truncate -s 1000", "mv -t ..", "cp /dev/null"])
def test_log_that_the_command_changes(
    launcher: MakeLauncher, capfd: pytest.CaptureFixture[str], volume: VolumeSpec, change: str
) -> None:
    """If the rest cannot be read since the command removed output.log, or its content, a warning has its size."""
    sink = StoppedSink()
    command = f"{LOUD} {change} /root/data/.skyrl_modal/runs/$SKYRL_RUN_ID/output.log"

    result = launcher().run(command, output=sink)

    missing = missing_bytes(capfd.readouterr().err)
    assert result.returncode == 0
    assert 0 < sink.size < OUTPUT_BYTES
    assert sink.size + missing == total_of(sink)


def test_closed_events_do_not_stop_a_run(launcher: MakeLauncher) -> None:
    """A consumer that stops, or closes the events of a run, does not delay it, and can read them again."""
    run = launcher().submit(f"{LOUD} exit 3")
    stopped, closed = run.events(), run.events()
    received = len(next(event.data for event in stopped if isinstance(event, OutputEvent)))
    next(closed)
    closed.close()

    result = run.wait(TIMEOUT)

    assert result.returncode == 3
    received += sum(len(event.data) for event in stopped if isinstance(event, OutputEvent))
    again = sum(len(event.data) for event in run.events() if isinstance(event, OutputEvent))
    assert received == again == len(run.id) + 1 + OUTPUT_BYTES


def test_second_cancellation_of_a_task(launcher: MakeLauncher) -> None:
    """The second cancellation of a task kills its run, and does not wait for a sink that does not return."""
    gate, runs = threading.Event(), list[Run]()

    async def cancel_twice() -> None:
        loop, up = asyncio.get_running_loop(), asyncio.Event()

        def sink(data: bytes) -> None:
            if not runs:
                runs.append(Run.attach(data.split(b"\n")[0].decode()))
                loop.call_soon_threadsafe(up.set)
            gate.wait()

        command = f"trap '' INT TERM; {LOUD} while :; do sleep 1; done"
        task = asyncio.create_task(launcher(grace=1000).arun(command, output=sink, quiet=True))
        try:
            await asyncio.wait_for(up.wait(), TIMEOUT)
            task.cancel()
            await asyncio.sleep(0)  # the task receives the first one
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, TIMEOUT)
            result = await asyncio.to_thread(runs[0].wait, TIMEOUT)
            assert (result.state, result.returncode) == (RunState.CANCELLED, 137)
        finally:
            gate.set()

    asyncio.run(cancel_twice())


NUMBERS = "".join(f"{number}\n" for number in range(1, 1_000_001)).encode()
#: A caller whose standard output does not block, as a shell or a parent process may have left it.
NON_BLOCKING_CALLER = """
import os, sys
from skyrl_modal import Launcher

os.set_blocking(1, False)
result = Launcher(backend="local", ray=None, gpu=None, volumes=[]).run("seq 1000000; exit 3", quiet=True)
os.set_blocking(1, True)
sys.exit(result.returncode)
"""


@pytest.mark.parametrize("buffering", [0, -1])
def test_non_blocking_file_receives_everything(launcher: MakeLauncher, buffering: int) -> None:
    """A non-blocking pipe as ``output`` is waited for while it is full, and receives each byte once."""
    reader, writer = os.pipe()  # smaller than one chunk of the output
    os.set_blocking(writer, False)
    with ThreadPoolExecutor(1) as pool, open(reader, "rb") as file:
        received = pool.submit(file.read)
        with open(writer, "wb", buffering=buffering) as output:
            result = launcher().run("seq 1000000", output=output, quiet=True)

    assert result.succeeded
    assert received.result() == NUMBERS


def test_non_blocking_standard_output(checkout: Path) -> None:
    """A standard output that does not block is waited for while it is full, and receives each byte once."""
    done = subprocess.run(
        [sys.executable, "-c", NON_BLOCKING_CALLER], cwd=checkout, capture_output=True, check=False, timeout=TIMEOUT
    )

    assert (done.returncode, done.stderr) == (3, b"")
    assert done.stdout == NUMBERS


#: Prints up to a number of bytes, and writes to the volume how many it was, in place: the volume is full.
COUNTING_COMMAND = """
import os, select, signal, sys

size, is_stopped = 0, []
signal.signal(signal.SIGTERM, lambda *_: is_stopped.append(True))
os.set_blocking(1, False)
poller = select.poll()
poller.register(1, select.POLLOUT)
with open("/root/data/count", "wb", buffering=0) as count:
    count.write(b"%020d" % 0)
    while size < int(sys.argv[1]) and not is_stopped:
        if poller.poll(50):
            size += os.write(1, bytes(min(60_000, int(sys.argv[1]) - size)))
    count.seek(0)
    count.write(b"%020d" % size)
"""
#: Runs a command whose output is not read until the run has ended.
FULL_VOLUME_CALLER = """
import sys
from skyrl_modal import Launcher, runs
from skyrl_modal.backends.local.volume_folder import volume_folder

sizes = []
def sink(data):
    if not sizes:
        [run] = runs()
        run.wait(60)
    sizes.append(len(data))

launcher = Launcher(backend="local", ray=None, gpu=None, timeout=sys.argv[1], grace=20)
result = launcher.run(["python", *sys.argv[2:]], output=sink)
print(result.state, sum(sizes), int((volume_folder("skyrl-data") / "count").read_text()))
"""


@pytest.mark.parametrize(
    ("size", "timeout", "state"), [(100_000_000, "3s", "timed_out"), (10_000_000, "60s", "succeeded")]
)
def test_stopped_reader_and_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkout: Path, size: int, timeout: str, state: str
) -> None:
    """Output that neither the file nor the buffers accept delays the command, but not its end. A warning counts it."""
    for name in ("XDG_DATA_HOME", "XDG_STATE_HOME"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))

    done = run_with_mount(
        tmp_path / "XDG_DATA_HOME",
        "size=2m",
        [sys.executable, "-c", FULL_VOLUME_CALLER, timeout, "-c", COUNTING_COMMAND, str(size)],
        cwd=checkout,
    )

    seen_state, received, printed = done.stdout.split()
    assert (seen_state, done.returncode) == (state, 0)
    assert int(received) + missing_bytes(done.stderr) == int(printed)
    assert "No space left on device" in done.stderr
    if state == "succeeded":
        assert int(received) == size  # the buffers suffice
    else:
        assert int(received) < int(printed) < size
