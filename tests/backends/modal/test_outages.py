"""Tests of the live output while connections to Modal fail: nothing is lost, and nothing is repeated."""

from __future__ import annotations

import hashlib
import io
import re
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from grpclib import Status

from skyrl_modal import Launcher, Run, RunState, VolumeSpec
from skyrl_modal.errors import RecordError
from skyrl_modal.protocol.state import FailureCause
from tests.backends.modal.conftest import ActingOutput, stored_output
from tests.support.loopback import LoopbackModal

Make = Callable[..., Launcher]


def ticking_command(count: int, pause: float) -> str:
    """Return a command that prints "tick N" at intervals and exits with 3."""
    return f"for i in $(seq {count}); do echo tick $i; sleep {pause}; done; exit 3"


def ticks(count: int) -> bytes:
    """Return the output of ``ticking_command``."""
    return "".join(f"tick {number}\n" for number in range(1, count + 1)).encode()


@pytest.mark.parametrize("seconds", [4.0, pytest.param(30.0, marks=pytest.mark.slow)])
def test_outage_loses_and_repeats_no_output(
    server: LoopbackModal, launcher: Make, tmp_path: Path, seconds: float
) -> None:
    """During an outage of the whole control plane, the output continues where it stopped."""
    server.plane.client_timeout = seconds + 60  # Modal stops the app only after some minutes without heartbeats
    count = int(seconds * 10) + 40
    output = ActingOutput("tick 10\n", lambda: server.faults.unavailable(seconds))
    used = launcher()

    result = used.run(ticking_command(count, 0.1), output=output, quiet=True)

    assert (result.state, result.cause, result.returncode) == (RunState.FAILED, FailureCause.COMMAND_FAILED, 3)
    assert output.getvalue() == ticks(count)
    assert stored_output(used, result, tmp_path) == ticks(count)
    assert server.faults.refused > 0


def test_lost_connection_is_reported(server: LoopbackModal, launcher: Make, capfd: pytest.CaptureFixture[str]) -> None:
    """A lost connection and the new one are reported once each, and the retries themselves are not."""

    def refuse_log_streams() -> None:
        # The client itself retries after other errors, for some seconds.
        server.faults.unavailable(calls=2, names="AppGetLogs", status=Status.DATA_LOSS)
        server.faults.drop_log_streams()

    output = ActingOutput("tick 10\n", refuse_log_streams)

    launcher().run(ticking_command(60, 0.1), output=output)

    assert output.getvalue() == ticks(60)

    messages = capfd.readouterr().err
    assert messages.count("the connection to Modal was lost") == 1
    assert messages.count("the connection to Modal is established again") == 1
    assert "stamina" not in messages


def test_submitted_run_continues_without_its_client(server: LoopbackModal, launcher: Make) -> None:
    """While the client cannot reach Modal, a submitted run continues; its whole output can be read afterwards."""
    run = launcher().submit(ticking_command(40, 0.1))
    server.wait_for_text("tick 5")

    with server.offline():
        server.wait_for_text("tick 30")

    assert run.wait(60).returncode == 3
    assert "".join(f"{line}\n" for line in run.logs(follow=True)).encode() == ticks(40)


def test_reason_for_waiting_is_printed(
    server: LoopbackModal, launcher: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    """A process that waits for a run, and cannot reach Modal, prints the reason and the elapsed time after seconds."""
    run = launcher(grace=1).submit("echo up; sleep 600")
    server.wait_for_text("up\n")
    results: list[RunState] = []
    waiting = threading.Thread(target=lambda: results.append(run.wait().state))
    waiting.start()
    printed: list[str] = []

    def is_reported() -> bool:
        printed.append(capfd.readouterr().err)
        return "waiting for Modal since " in "".join(printed)

    with server.offline():
        server.wait_until(is_reported)
    run.cancel()
    waiting.join()

    assert results == [RunState.CANCELLED]


def test_dropped_log_streams(server: LoopbackModal, launcher: Make) -> None:
    """A log stream that is dropped again and again is resumed without loss or repetition."""
    output = io.BytesIO()

    def write_and_drop(data: bytes) -> None:
        output.write(data)
        if re.search(rb"tick \d*5\n$", data):
            server.faults.drop_log_streams()

    result = launcher().run(ticking_command(30, 0.1), output=write_and_drop, quiet=True)

    assert result.returncode == 3
    assert output.getvalue() == ticks(30)
    assert len(server.calls("AppGetLogs")) >= 3


def test_silent_log_stream(server: LoopbackModal, launcher: Make) -> None:
    """Output that the log stream does not bring is fetched from the volume when the run has ended."""
    output = ActingOutput("tick 3\n", lambda: server.faults.silence_logs(60))

    result = launcher().run(ticking_command(20, 0.05), output=output, quiet=True)

    assert result.returncode == 3
    assert output.getvalue() == ticks(20)


def test_failure_cause_is_reported_without_logs(
    server: LoopbackModal, launcher: Make, volume: VolumeSpec, capfd: pytest.CaptureFixture[str]
) -> None:
    """The cause of a failure is reported once, before the final state, also if the log does not contain it."""
    used = launcher()
    used.run("true", quiet=True)

    def fail_and_silence() -> None:
        server.fail_commits(volume.name, times=100)
        server.faults.silence_logs(60)

    result = used.run("echo up; sleep 1", output=ActingOutput("up\n", fail_and_silence))

    assert (result.state, result.returncode) == (RunState.FAILED, 125)
    assert result.cause is FailureCause.VOLUME_COMMIT_FAILED
    messages = capfd.readouterr().err.splitlines()
    detail = f"skyrl-modal | {result.detail.splitlines()[0]}"
    [end] = [number for number, text in enumerate(messages) if text.startswith("skyrl-modal | failed, exit code 125 ")]
    assert messages.count(detail) == 1
    assert messages.index(detail) < end


def test_log_entries_cut_between_characters(
    server: LoopbackModal, launcher: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    """Log entries that are cut at any character form the same output."""
    server.cut_logs(4)
    output, text = io.BytesIO(), "äö€ \U0001f600 ok\n"

    result = launcher().run(f"for i in 1 2 3; do printf '{text[:-1]}\\n'; done", output=output)

    assert result.returncode == 0
    assert output.getvalue().decode() == text * 3
    assert "incomplete" not in capfd.readouterr().err


def test_log_entries_cut_inside_characters(
    server: LoopbackModal, launcher: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """If Modal's log damages characters, a warning names output.log, which is not damaged."""
    server.cut_logs(4, inside_characters=True)
    output, text, used = io.BytesIO(), "a äö€ \U0001f600 ok\n" * 3, launcher()

    result = used.run(["printf", "%s", text], output=output)

    assert result.returncode == 0
    assert "\N{REPLACEMENT CHARACTER}" in output.getvalue().decode()
    messages = capfd.readouterr().err
    assert "the output shown above is incomplete" in messages
    assert f"/root/data/.skyrl_modal/runs/{result.run_id}/output.log" in messages
    assert stored_output(used, result, tmp_path).decode() == text


def test_modals_messages_are_reported_as_such(
    server: LoopbackModal, launcher: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    """Messages of Modal itself are reported as Modal's."""
    output = ActingOutput("first\n", server.preempt)

    launcher().run("[ -e /root/data/x ] && exit 0; touch /root/data/x; echo first; sleep 600", output=output)

    assert "skyrl-modal | Modal: Runner interrupted due to worker preemption." in capfd.readouterr().err


def test_outage_at_the_end_keeps_the_result(server: LoopbackModal, launcher: Make) -> None:
    """A result is returned also if the app cannot be stopped afterwards."""
    server.faults.unavailable(calls=100, names="AppClientDisconnect")

    result = launcher().run("exit 4", quiet=True)

    assert result.returncode == 4


def test_damaged_record_affects_its_run_only(
    server: LoopbackModal, launcher: Make, volume: VolumeSpec, tmp_path: Path
) -> None:
    """A damaged state.json on the volume is a RecordError of that run, and no error of others."""
    used = launcher()
    damaged, intact = used.submit("echo up; sleep 600"), used.submit("true")
    server.wait_for_text("up\n")
    folder = server.volume(volume.name) / ".skyrl_modal" / "runs" / damaged.id
    server.wait_until((folder / "state.json").exists)
    (folder / "state.json").write_text("{")

    with pytest.raises(RecordError, match=r"state\.json"):
        assert Run.attach(damaged.id).state

    assert intact.wait(60).state is RunState.SUCCEEDED
    damaged.cancel(now=True)


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_hundred_megabytes_of_lines(server: LoopbackModal, launcher: Make) -> None:
    """100 MB of output arrive unchanged. The time and the growth of this process are printed."""
    count, received, size = 12_500_000, hashlib.sha256(), 0

    def receive(data: bytes) -> None:
        nonlocal size
        size += len(data)
        received.update(data)

    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    result = launcher().run(f"seq -f %07.0f {count}", output=receive, quiet=True)
    seconds = time.monotonic() - begin

    expected = hashlib.sha256()
    for start in range(1, count + 1, 500_000):
        expected.update("".join(f"{number:07d}\n" for number in range(start, start + 500_000)).encode())
    assert result.returncode == 0
    assert size >= 100_000_000
    assert received.digest() == expected.digest()
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{size / 1e6:.0f} MB in {seconds:.1f} s; this process, client and server, grew by {growth:.0f} MiB")
