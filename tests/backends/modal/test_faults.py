"""What fails while a run goes on. Nothing is lost, nothing comes twice, and no failure looks like a success."""

from __future__ import annotations

import hashlib
import io
import json
import re
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skyrl_modal import Launcher, Run, RunState, VolumeSpec
from tests.backends.modal.conftest import Script
from tests.support.loopback import LoopbackModal
from tests.support.processes import signal_other_thread

Make = Callable[..., Launcher]

TICKS = "for i in $(seq {count}); do echo tick $i; sleep {pause}; done; exit 3"


class Watched(io.BytesIO):
    """Takes the output, and does something once when a text is in it."""

    def __init__(self, text: str, act: Callable[[], object]) -> None:
        super().__init__()
        self._text, self._act = text.encode(), act
        self._is_done = False

    def write(self, data: Any) -> int:
        written = super().write(data)
        if not self._is_done and self._text in self.getvalue():
            self._is_done = True
            self._act()
        return written


def log_of(made: Launcher, result: Any, tmp_path: Path) -> bytes:
    return made.pull(f"/root/data/.skyrl_modal/runs/{result.run_id}/output.log", tmp_path / "output.log").read_bytes()


@pytest.mark.parametrize("seconds", [4.0, pytest.param(30.0, marks=pytest.mark.slow)])
def test_an_outage_loses_and_doubles_nothing(
    server: LoopbackModal, launcher: Make, tmp_path: Path, seconds: float
) -> None:
    count = int(seconds * 10) + 40
    output = Watched("tick 10\n", lambda: server.faults.unavailable(seconds))
    made = launcher()

    result = made.run(TICKS.format(count=count, pause=0.1), output=output, quiet=True)

    expected = "".join(f"tick {number}\n" for number in range(1, count + 1)).encode()
    assert (result.state, result.returncode) == (RunState.FAILED, 3)
    assert output.getvalue() == expected
    assert log_of(made, result, tmp_path) == expected
    assert server.faults.refused > 0


def test_a_client_that_is_cut_off_for_a_while(server: LoopbackModal, launcher: Make) -> None:
    output, cut = io.BytesIO(), launcher()
    run = cut.submit(TICKS.format(count=40, pause=0.1))
    server.wait_for_text("tick 5")

    with server.offline():
        server.wait_for_text("tick 30")

    result = run.wait(60)
    for line in run.logs(follow=True):
        output.write(line.encode() + b"\n")
    assert result.returncode == 3
    assert output.getvalue() == "".join(f"tick {number}\n" for number in range(1, 41)).encode()


def test_dropped_log_streams(server: LoopbackModal, launcher: Make) -> None:
    output = io.BytesIO()

    def take(data: bytes) -> None:
        output.write(data)
        if re.search(rb"tick \d*5\n$", data):
            server.faults.drop_log_streams()

    result = launcher().run(TICKS.format(count=30, pause=0.1), output=take, quiet=True)

    assert result.returncode == 3
    assert output.getvalue() == "".join(f"tick {number}\n" for number in range(1, 31)).encode()
    assert len(server.calls("AppGetLogs")) >= 3


def test_a_silent_log_stream(server: LoopbackModal, launcher: Make) -> None:
    output = Watched("tick 3\n", lambda: server.faults.silence_logs(60))

    result = launcher().run(TICKS.format(count=20, pause=0.05), output=output, quiet=True)

    assert result.returncode == 3
    assert output.getvalue() == "".join(f"tick {number}\n" for number in range(1, 21)).encode()


def test_why_a_run_failed_is_told_also_where_the_logs_are_silent(
    server: LoopbackModal, launcher: Make, volume: VolumeSpec, capfd: pytest.CaptureFixture[str]
) -> None:
    made = launcher()
    made.run("true", quiet=True)

    def fill_and_silence() -> None:
        server.fail_commits(volume.name, times=100)
        server.faults.silence_logs(60)

    output = Watched("up\n", fill_and_silence)

    result = made.run("echo up; sleep 1", output=output)

    assert (result.state, result.returncode) == (RunState.FAILED, 125)
    *_, why, end = capfd.readouterr().err.splitlines()
    assert why.startswith("skyrl-modal | a volume could not be committed: ")
    assert end.startswith("skyrl-modal | failed, exit code 125 ")


def test_chunks_cut_at_odd_places(server: LoopbackModal, launcher: Make, capfd: pytest.CaptureFixture[str]) -> None:
    server.cut_logs(4)
    output, text = io.BytesIO(), "äö€ \U0001f600 ok\n"

    result = launcher().run(f"for i in 1 2 3; do printf '{text[:-1]}\\n'; done", output=output)

    assert result.returncode == 0
    assert output.getvalue().decode() == text * 3
    assert "damaged" not in capfd.readouterr().err


def test_characters_that_modal_cuts_are_told_as_damage_and_whole_in_the_log(
    server: LoopbackModal, launcher: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server.cut_logs(4, inside_characters=True)
    output, text, made = io.BytesIO(), "a äö€ \U0001f600 ok\n" * 3, launcher()

    result = made.run(["printf", "%s", text], output=output)

    assert result.returncode == 0
    assert "\N{REPLACEMENT CHARACTER}" in output.getvalue().decode()
    told = capfd.readouterr().err
    assert "the live view above is damaged or not whole; the whole output is /root/data/.skyrl_modal/runs/" in told
    assert log_of(made, result, tmp_path).decode() == text


def test_a_container_that_dies_is_lost_and_not_run_again(
    server: LoopbackModal, launcher: Make, volume: VolumeSpec, tmp_path: Path
) -> None:
    made = launcher()
    run = made.submit("echo up; echo again >> /root/data/starts; sleep 600")
    server.wait_for_text("up\n")
    folder = server.volume(volume.name) / ".skyrl_modal" / "runs" / run.id
    server.wait_until((folder / "state.json").exists)

    server.kill()
    result = run.wait(60)

    assert (result.state, result.returncode) == (RunState.LOST, 125)
    assert "the container died while the command ran" in result.detail
    assert Run.attach(run.id).state is RunState.LOST
    assert server.log_text().count("up\n") == 1


def test_containers_that_die_too_often_are_told_in_modals_words(
    make_server: Callable[..., LoopbackModal], launcher: Make
) -> None:
    server = make_server(crashes_allowed=0)
    output = Watched("up", server.kill)

    result = launcher(grace=1).run("echo up; sleep 600", output=output, quiet=True)

    assert (result.state, result.returncode) == (RunState.LOST, 125)
    assert "Modal says: Container terminated unexpectedly with exit code 137." in result.detail
    assert output.getvalue() == b"up\n"


def test_with_retries_a_container_that_dies_counts_as_an_attempt(
    server: LoopbackModal, launcher: Make, volume: VolumeSpec
) -> None:
    made = launcher(retries=1)
    run = made.submit("echo attempt $SKYRL_ATTEMPT; [ $SKYRL_ATTEMPT = 2 ] || sleep 600")
    server.wait_for_text("attempt 1\n")
    server.wait_until((server.volume(volume.name) / ".skyrl_modal/runs" / run.id / "state.json").exists)

    server.kill()
    result = run.wait(60)

    assert (result.state, result.returncode, result.attempts) == (RunState.SUCCEEDED, 0, 2)


def test_preemption_goes_on_in_the_same_record_without_counting(
    server: LoopbackModal, launcher: Make, tmp_path: Path
) -> None:
    command = (
        "trap 'echo saving; echo saved > /root/data/ckpt; exit 0' INT TERM; echo attempt $SKYRL_ATTEMPT;"
        " if [ -e /root/data/ckpt ]; then cat /root/data/ckpt; exit 5; fi; echo first; sleep 600 & wait"
    )
    output = Watched("first\n", server.preempt)
    made = launcher()

    result = made.run(command, output=output, quiet=True)

    assert (result.state, result.returncode, result.attempts) == (RunState.FAILED, 5, 1)
    expected = (
        b"attempt 1\nfirst\nsaving\n"
        b"skyrl-modal | Modal has moved the run to another container; starting again\n"
        b"attempt 1\nsaved\n"
    )
    assert output.getvalue() == expected
    assert log_of(made, result, tmp_path) == expected
    record = made.pull(f"/root/data/.skyrl_modal/runs/{result.run_id}/result.json", tmp_path / "result.json")
    assert json.loads(record.read_text())["returncode"] == 5


def test_a_container_sees_a_signal_whichever_of_its_threads_gets_it(server: LoopbackModal, launcher: Make) -> None:
    run = launcher().submit("trap 'echo saving; exit 3' INT TERM; echo up; sleep 600 & wait")
    server.wait_for_text("up\n")

    pid = server.wait_for_container("busy").pid
    assert pid is not None
    signal_other_thread(pid, signal.SIGINT)

    server.wait_for_text("saving\n")
    run.cancel(now=True)
    run.wait(60)


def test_modals_own_words_are_told_as_such(
    server: LoopbackModal, launcher: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    output = Watched("first\n", server.preempt)

    launcher().run("[ -e /root/data/x ] && exit 0; touch /root/data/x; echo first; sleep 600", output=output)

    assert "skyrl-modal | Modal: Runner interrupted due to worker preemption." in capfd.readouterr().err


def test_a_slow_start(server: LoopbackModal, launcher: Make) -> None:
    server.faults.slow_start(3)

    run = launcher().submit("echo up; sleep 600")
    assert run.state is RunState.PENDING
    assert next(iter(run.logs(follow=True))) == "up"
    server.wait_until((server.volume(run.job.volumes[0].name) / ".skyrl_modal/runs" / run.id / "state.json").exists)
    assert run.state is RunState.RUNNING
    run.cancel()
    assert run.wait(30).state is RunState.CANCELLED


# Modal's runtime commits as well, after the function: where that fails, it takes the function's value with it.
@pytest.mark.parametrize("times", [2, 10])
def test_a_commit_that_fails_is_no_success(
    server: LoopbackModal, launcher: Make, volume: VolumeSpec, times: int
) -> None:
    made = launcher(grace=1)
    made.run("true", quiet=True)  # makes the volume
    server.fail_commits(volume.name, times=times)

    result = made.run("echo done", output=io.BytesIO(), quiet=True)

    assert result.state in (RunState.FAILED, RunState.LOST)
    assert result.returncode == 125
    assert "could not be committed" in result.detail


def test_modals_own_time_out(server: LoopbackModal, launcher: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skyrl_modal.backends.modal.app.container_seconds", lambda job: 3)

    result = launcher(grace=1).run("echo up; sleep 600", output=io.BytesIO(), quiet=True)

    assert (result.state, result.returncode) in [(RunState.TIMED_OUT, 124), (RunState.CANCELLED, 130)]


def test_an_outage_at_the_end_does_not_turn_a_result_into_an_error(server: LoopbackModal, launcher: Make) -> None:
    server.faults.unavailable(calls=100, names="AppClientDisconnect")

    result = launcher().run("exit 4", quiet=True)

    assert result.returncode == 4


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_hundred_megabytes_of_lines(server: LoopbackModal, launcher: Make) -> None:
    count, seen, size = 12_500_000, hashlib.sha256(), 0

    def take(data: bytes) -> None:
        nonlocal size
        size += len(data)
        seen.update(data)

    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    result = launcher().run(f"seq -f %07.0f {count}", output=take, quiet=True)
    took = time.monotonic() - begin

    expected = hashlib.sha256()
    for start in range(1, count + 1, 500_000):
        expected.update("".join(f"{number:07d}\n" for number in range(start, start + 500_000)).encode())
    assert result.returncode == 0
    assert size >= 100_000_000
    assert seen.digest() == expected.digest()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{size / 1e6:.0f} MB in {took:.1f} s; this process, which is client and server, grew by {grown:.0f} MiB")


# -- Ctrl-C, and a caller that is gone ---------------------------------------------------------------------------------

CALLER = """
import sys, time
from skyrl_modal import ImageSpec, Launcher, VolumeSpec
launcher = Launcher(checkout=sys.argv[1], volumes=[VolumeSpec(name=sys.argv[2])], ray=None, gpu=None,
                    grace=float(sys.argv[4]))
try:
    print("ended", launcher.run(sys.argv[3]).returncode)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    raise SystemExit(77)
"""


def test_ctrl_c_while_it_uploads_ends_at_once_and_leaves_no_app(
    server: LoopbackModal, script: Callable[..., Script], checkout: Path, volume: VolumeSpec
) -> None:
    server.faults.hold("MountGetOrCreate")
    caller = script(CALLER, str(checkout), volume.name, "true", "6")
    caller.wait_for("building what the image lacks", "stderr")
    server.wait_for_call("MountGetOrCreate", 1)

    begin = time.monotonic()
    caller.process.send_signal(signal.SIGINT)
    code, out, _ = caller.end()

    assert time.monotonic() - begin < 8
    assert (code, out) == (77, "interrupted\n")
    apps = server.apps
    server.wait_until(lambda: all(app.stopped_at for app in apps))
    assert server.function_calls == []


def test_a_second_ctrl_c_ends_within_seconds_whatever_the_grace(
    server: LoopbackModal, script: Callable[..., Script], checkout: Path, volume: VolumeSpec
) -> None:
    caller = script(
        CALLER, str(checkout), volume.name,
        "trap 'echo no' INT TERM; echo up; while :; do sleep 600 & wait; done", "500",
    )  # fmt: skip
    caller.wait_for("up")
    caller.process.send_signal(signal.SIGINT)
    caller.wait_for("no")

    begin = time.monotonic()
    caller.process.send_signal(signal.SIGINT)
    code, out, err = caller.end()

    assert time.monotonic() - begin < 10  # 1 s on a machine with nothing else to do
    assert (code, out) == (77, "interrupted\n")
    assert "cancelled, exit code 137" in err
    server.wait_for_no_container(15)


def test_a_second_ctrl_c_ends_also_without_a_network(
    server: LoopbackModal, script: Callable[..., Script], checkout: Path, volume: VolumeSpec
) -> None:
    caller = script(CALLER, str(checkout), volume.name, "echo up; sleep 600", "500")
    caller.wait_for("up")
    server.faults.unavailable(25)
    caller.process.send_signal(signal.SIGINT)
    caller.wait_for("Ctrl-C", "stderr")

    begin = time.monotonic()
    caller.process.send_signal(signal.SIGINT)
    code, out, err = caller.end()

    assert time.monotonic() - begin < 15
    assert (code, out) == (77, "interrupted\n")
    assert "cancelled, exit code 137" in err
    server.faults.clear()
    server.wait_for_no_container(60)


def test_submit_is_over_soon_and_another_process_reads_waits_and_cancels(
    server: LoopbackModal, launcher: Make, script: Callable[..., Script]
) -> None:
    made = launcher()
    made.run("true", quiet=True)  # the image and the files are there now

    begin = time.monotonic()
    run = made.submit("echo one; trap 'echo saved; exit 9' INT; sleep 600 & wait")
    took = time.monotonic() - begin

    assert took < 3  # 0.1 to 0.3 s on a machine with nothing else to do
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
    # As Python 3.11 ends, the client's own thread may complain on standard error; an error would have a traceback.
    assert (code, "Traceback (most recent call last)" in err) == (0, False), err
    assert out.split() == ["one", out.split()[1], "['saved']", "9", "cancelled"]
    assert run.wait(30).state is RunState.CANCELLED
    assert list(run.logs()) == ["one", "saved"]
    assert list(run.logs(follow=True)) == ["one", "saved"]
    assert list(run.logs(follow=True)) == ["one", "saved"]  # again, from the beginning
