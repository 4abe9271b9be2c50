"""A supervisor as a process of its own, with real commands and without Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import skyrl_modal
from skyrl_modal.protocol.codec import decode_tagged, encode
from skyrl_modal.protocol.events import MessageEvent, ResultEvent, StateEvent, SupervisorEvent
from skyrl_modal.protocol.job import Job, Limits
from skyrl_modal.protocol.rank_config import RankConfig
from skyrl_modal.protocol.result import RunResultRecord
from skyrl_modal.protocol.run_folder import RunFolder
from skyrl_modal.protocol.state import FailureCause, NextStart, RunState, StopReason
from tests.container.records import TOKENS, make_cluster, make_job

PACKAGE = Path(skyrl_modal.__file__).parent
SUPERVISOR = [sys.executable, "-I", "-S", str(PACKAGE / "container" / "__main__.py")]
#: A supervisor that is asked to stop by its container, as on Modal, when the command writes its first output.
PREEMPTED_SUPERVISOR = f"""
import json, os, sys
sys.path.insert(0, {str(PACKAGE.parent)!r})
from skyrl_modal.container.live_view import FunctionView
from skyrl_modal.container.supervisor import Supervisor, SupervisorServices
from skyrl_modal.protocol.codec import decode
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.rank_config import RankConfig
from skyrl_modal.protocol.state import StopReason

record = json.loads(sys.stdin.read())
services = SupervisorServices(
    live=FunctionView(lambda data: supervisor.request_stop(StopReason.CONTAINER_ENDING)), emit=lambda event: None
)
supervisor = Supervisor(decode(Job, record["job"]), decode(RankConfig, record["rank"]), services)
supervisor.run()
"""


class Supervised:
    """One run of a supervisor.

    Attributes:
        process: The supervisor.
        events: The events that it wrote; complete after ``wait``.
    """

    def __init__(self, job: Job, config: RankConfig, argv: Sequence[str] = SUPERVISOR) -> None:
        self.events: list[SupervisorEvent] = []
        self._reader, writer = os.pipe()
        with os.fdopen(writer, "w"):
            self.process = subprocess.Popen(
                [*argv, "--events", str(writer)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[writer],
                text=True,
            )
        assert self.process.stdin is not None
        with self.process.stdin as stdin:
            stdin.write(json.dumps({"job": encode(job), "rank": encode(config)}))

    def wait(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and the output that was not read yet."""
        assert self.process.stdout is not None
        with self.process.stdout as stdout, os.fdopen(self._reader) as reader:
            self.events = [decode_tagged(SupervisorEvent, json.loads(line)) for line in reader]
            output = stdout.read()
        return self.process.wait(), output

    @property
    def result(self) -> RunResultRecord:
        """The result, which is the last event."""
        last = self.events[-1]
        assert isinstance(last, ResultEvent)
        return last.record

    @property
    def reported_causes(self) -> list[FailureCause | None]:
        """The causes of the messages that were written."""
        return [event.cause for event in self.events if isinstance(event, MessageEvent)]


def run(job: Job) -> tuple[Supervised, int, str]:
    supervised = Supervised(job, make_cluster(1))
    return supervised, *supervised.wait()


def test_successful_command(tmp_path: Path) -> None:
    """The output is passed on, and the result is the last event and the content of result.json."""
    job = make_job(tmp_path, "echo out; echo err >&2; echo $SKYRL_RUN_ID $SKYRL_ATTEMPT")

    supervised, code, output = run(job)

    assert (code, output) == (0, "out\nerr\nrun-1 1\n")
    assert supervised.events[0] == StateEvent(RunState.RUNNING, 1)
    assert (supervised.result.state, supervised.result.cause) == (RunState.SUCCEEDED, None)
    assert supervised.result.output.bytes == len(output)
    assert RunFolder(job.run_folder).read_result() == supervised.result


@pytest.mark.parametrize(("command", "expected"), [("exit 7", 7), ("kill -9 $$", 137), ("no-such-command", 127)])
def test_failed_command(tmp_path: Path, command: str, expected: int) -> None:
    """The exit code is the command's own, or 128+N if signal N ended it."""
    supervised, code, _ = run(make_job(tmp_path, command))

    assert (code, supervised.result.returncode) == (expected, expected)
    assert (supervised.result.state, supervised.result.cause) == (RunState.FAILED, FailureCause.COMMAND_FAILED)


def test_attempts(tmp_path: Path) -> None:
    """A failed attempt is followed by another one with the next number."""
    job = make_job(tmp_path, "echo $SKYRL_ATTEMPT; exit $((2 - SKYRL_ATTEMPT))", limits=Limits(retries=5))

    supervised, code, output = run(job)

    assert (code, supervised.result.attempts) == (0, 2)
    assert output == "1\nskyrl-modal | attempt 1 ended with exit code 1; starting again\n2\n"


def test_attempt_timeout(tmp_path: Path) -> None:
    """A command that exceeds its timeout is ended with 124, and the cause is reported once."""
    supervised, code, _ = run(make_job(tmp_path, "sleep 600", limits=Limits(attempt_timeout=0.1, grace=1)))

    assert code == 124
    assert (supervised.result.state, supervised.result.cause) == (RunState.TIMED_OUT, FailureCause.ATTEMPT_TIMEOUT)
    assert supervised.reported_causes == [FailureCause.ATTEMPT_TIMEOUT]
    assert supervised.result.detail == "timeout of 0.1 s exceeded"


def test_total_timeout(tmp_path: Path) -> None:
    """The limit of all attempts has a cause of its own, and no attempt follows."""
    limits = Limits(attempt_timeout=600, total_timeout=0.1, grace=1, retries=3)

    supervised, code, _ = run(make_job(tmp_path, "sleep 600", limits=limits))

    assert (code, supervised.result.attempts) == (124, 1)
    assert supervised.result.cause is FailureCause.TOTAL_TIMEOUT


@pytest.mark.parametrize("seconds", [0.2])
def test_command_that_ignores_signals_is_killed(tmp_path: Path, seconds: float) -> None:
    """SIGKILL follows at the end of the grace period, also for processes in sessions of their own."""
    command = "trap '' TERM; setsid sleep 600 & echo $!; wait; sleep 600"
    limits = Limits(attempt_timeout=seconds, grace=seconds)

    _, code, output = run(make_job(tmp_path, command, limits=limits))

    assert code == 124
    assert not Path(f"/proc/{int(output)}").exists()


def test_background_processes_are_ended(tmp_path: Path) -> None:
    """Processes that the command leaves in the background do not outlive it."""
    _, code, output = run(make_job(tmp_path, "sleep 600 & echo $!; exit 3"))

    assert code == 3
    assert not Path(f"/proc/{int(output)}").exists()


@pytest.mark.parametrize(
    ("number", "expected", "reason"),
    [
        (signal.SIGINT, 5, StopReason.CANCELLED),
        (signal.SIGTERM, 5, StopReason.CANCELLED),
        (signal.SIGQUIT, 137, StopReason.KILL),
    ],
)
def test_signals_stop_the_run(tmp_path: Path, number: int, expected: int, reason: StopReason) -> None:
    """SIGINT and SIGTERM give the command its grace period; SIGQUIT kills it."""
    supervised = Supervised(make_job(tmp_path, "trap 'exit 5' INT; echo ready; sleep 600 & wait"), make_cluster(1))
    assert supervised.process.stdout is not None
    assert supervised.process.stdout.readline() == "ready\n"

    supervised.process.send_signal(number)
    code, _ = supervised.wait()

    assert code == expected
    assert (supervised.result.state, supervised.result.cause) == (RunState.CANCELLED, FailureCause.STOPPED)
    assert (supervised.result.stop_reason, supervised.result.next_start) == (reason, NextStart.NONE)


def test_missing_workdir(tmp_path: Path) -> None:
    """A workdir that does not exist is reported with its cause, and the command is not started."""
    supervised, code, _ = run(make_job(tmp_path, workdir=str(tmp_path / "missing")))

    assert (code, supervised.result.attempts) == (125, 0)
    assert supervised.result.cause is FailureCause.WORKDIR_MISSING
    assert supervised.reported_causes == [FailureCause.WORKDIR_MISSING]


def test_older_layout_is_completed(tmp_path: Path) -> None:
    """skyrl-gym is copied into skyrl-train, where uv expects it."""
    (tmp_path / "skyrl-gym").mkdir()
    (tmp_path / "skyrl-gym" / "file").write_text("text")
    workdir = tmp_path / "skyrl-train"
    workdir.mkdir()

    _, code, output = run(make_job(tmp_path, "cat skyrl-gym/file", workdir=str(workdir), repo_root=str(tmp_path)))

    assert (code, output) == (0, "text")


def test_command_that_cannot_be_started(tmp_path: Path) -> None:
    """A workdir that may not be entered is an error of the start."""
    job = make_job(tmp_path, "true", env={"LARGE": "x" * (1 << 20)})

    supervised, code, _ = run(job)

    assert code == 125
    assert supervised.result.cause is FailureCause.COMMAND_NOT_STARTED


def test_run_folder_that_cannot_be_created(tmp_path: Path) -> None:
    """An operating system error before the command is reported with its cause."""
    (tmp_path / "file").write_text("")

    supervised, code, _ = run(make_job(tmp_path, run_folder=str(tmp_path / "file" / "run")))

    assert code == 125
    assert supervised.result.cause is FailureCause.SYSTEM_ERROR


def test_secrets_are_masked(tmp_path: Path) -> None:
    """The values of secrets are masked in the output."""
    job = make_job(tmp_path, "echo $KEY", env={"KEY": "s3cret"}, secret_names=("KEY",))

    _, _, output = run(job)

    assert output == "********\n"


def test_preemption_with_a_full_disk(tmp_path: Path) -> None:
    """A preempted run is continued by the next container although its output.log could not be written."""
    job = make_job(tmp_path, "trap 'exit 0' INT; echo ready; sleep 600 & wait")
    RunFolder(job.run_folder).output.symlink_to("/dev/full")

    Supervised(job, make_cluster(1), [sys.executable, "-c", PREEMPTED_SUPERVISOR]).process.wait()
    result = RunFolder(job.run_folder).read_result()

    assert result is not None
    assert (result.state, result.cause) == (RunState.CANCELLED, FailureCause.PREEMPTED)
    assert (result.stop_reason, result.next_start) == (StopReason.CONTAINER_ENDING, NextStart.SAME_ATTEMPT)
    assert result.output.error is not None


def test_rank_that_cannot_reach_rank_zero(tmp_path: Path) -> None:
    """A rank that is asked to stop before rank 0 listens exits with 0."""
    config = RankConfig(rank=1, addresses=("127.0.0.1", "127.0.0.1"), port=9, tokens=TOKENS)
    ready_reader, ready_writer = os.pipe()
    with os.fdopen(ready_writer, "w"):
        process = subprocess.Popen(
            [*SUPERVISOR, "--ready", str(ready_writer)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[ready_writer],
            text=True,
        )
    assert process.stdin is not None
    with process.stdin as stdin:
        stdin.write(json.dumps({"job": encode(make_job(tmp_path, nodes=2)), "rank": encode(config)}))
    with os.fdopen(ready_reader) as ready:
        assert int(ready.readline()) == process.pid

    process.send_signal(signal.SIGTERM)

    assert process.stderr is not None
    assert process.stderr.read() == "stopped before rank 0 could be reached\n"
    assert process.wait() == 0
