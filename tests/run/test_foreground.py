"""Tests of a run's events in the foreground: where each one is sent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from skyrl_modal import Launcher, Run, RunResult, RunState, runs
from skyrl_modal.errors import StorageError
from skyrl_modal.protocol.events import (
    HandleEvent,
    MessageEvent,
    MessageLevel,
    OutputEvent,
    ResultEvent,
    RunEvent,
    StateEvent,
)
from skyrl_modal.protocol.state import FailureCause
from skyrl_modal.reporting import NullReporter
from skyrl_modal.run.foreground import stream_to_end
from skyrl_modal.run.interrupts import Interrupts
from tests.run.memory_backend import SUCCESS, MemoryBackend, make_record

DETAIL = "rank 1 (10.0.0.2): Ray exited with code 1:\nthe log tail"


def run_events(*events: RunEvent | Exception) -> tuple[RunResult, list[str], bytes]:
    """Run a command on a backend that yields events. Return the result, the launcher's messages and the output."""
    chunks: list[bytes] = []
    launcher = Launcher(backend=MemoryBackend(*events), mounts=[])
    with pytest.MonkeyPatch.context() as patch:
        messages: list[str] = []
        patch.setattr("skyrl_modal.launching.StderrReporter", lambda: ListReporter(messages))
        result = launcher.run("true", output=chunks.append)
    return result, messages, b"".join(chunks)


class ListReporter:
    """A reporter that stores messages."""

    def __init__(self, messages: list[str]) -> None:
        self._messages = messages

    def info(self, text: str) -> None:
        self._messages.append(text)

    def warn(self, text: str) -> None:
        self._messages.append(f"warning: {text}")


def test_output_and_messages_are_separated() -> None:
    """Output is written to the sink, and messages to the reporter, in their order."""
    result, messages, output = run_events(
        OutputEvent(b"one\n"), MessageEvent("first"), MessageEvent("second", MessageLevel.WARNING),
        OutputEvent(b"two\n"), SUCCESS,
    )  # fmt: skip

    assert output == b"one\ntwo\n"
    assert messages[-3:-1] == ["first", "warning: second"]
    assert (result.state, result.log_tail) == (RunState.SUCCEEDED, "one\ntwo")


@pytest.mark.parametrize(
    ("events", "count"),
    [
        ([MessageEvent(DETAIL, cause=FailureCause.RAY_EXITED)], 1),
        ([MessageEvent("rank 1 was lost", cause=FailureCause.RANK_LOST)], 1),
        ([MessageEvent("text without a cause")], 1),
        ([], 1),
    ],
)
def test_cause_is_reported_once(events: Sequence[RunEvent], count: int) -> None:
    """The detail is reported at the end, unless a message has reported the same cause."""
    record = make_record(RunState.FAILED, 15, FailureCause.RAY_EXITED, DETAIL)

    _, messages, _ = run_events(*events, ResultEvent(record))

    assert messages.count(DETAIL) == count


@pytest.mark.parametrize("state", [RunState.SUCCEEDED, RunState.CANCELLED, RunState.TIMED_OUT])
def test_detail_of_an_expected_end_is_not_reported(state: RunState) -> None:
    """The detail is reported for a failed or lost run only."""
    _, messages, _ = run_events(ResultEvent(make_record(state, 1, FailureCause.STOPPED, DETAIL)))

    assert DETAIL not in messages


def test_end_is_reported() -> None:
    """The last message contains state, exit code and log path."""
    _, messages, _ = run_events(ResultEvent(make_record(RunState.FAILED, 3, FailureCause.COMMAND_FAILED)))

    assert messages[-1] == "failed, exit code 3 after 1.0 s; log: memory"


def test_many_events_and_a_slow_sink() -> None:
    """More events than the queue accepts are all delivered in their order."""
    _, _, output = run_events(*[OutputEvent(b"%d\n" % number) for number in range(1000)], SUCCESS)

    assert output == b"".join(b"%d\n" % number for number in range(1000))


def test_error_of_the_backend_is_raised() -> None:
    """An exception of the backend stops the run and is raised."""
    backend = MemoryBackend(OutputEvent(b"one\n"), RuntimeError("connection lost"))

    with pytest.raises(RuntimeError, match="connection lost"):
        Launcher(backend=backend, mounts=[]).run("true", quiet=True, output=bytearray().extend)

    assert backend.execution.cancellations == [False]


def test_error_of_the_sink_is_raised() -> None:
    """An exception of the sink stops the run. It is raised after the last event, and later output is discarded."""
    backend = MemoryBackend(OutputEvent(b"one"), OutputEvent(b"two"), SUCCESS)
    chunks: list[bytes] = []

    def fail(data: bytes) -> None:
        chunks.append(data)
        raise ValueError("full")

    with pytest.raises(ValueError, match="full"):
        Launcher(backend=backend, mounts=[]).run("true", quiet=True, output=fail)

    assert (chunks, backend.execution.cancellations) == ([b"one"], [False])


def test_late_handle_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose handle is known after its start is listed from then on, and its token is reported once."""
    execution = MemoryBackend(SUCCESS, handle={}).execution

    class LateBackend(MemoryBackend):
        """A backend whose handle is known later."""

        def __init__(self) -> None:
            super().__init__()
            self.execution = execution

    def events() -> Sequence[RunEvent]:
        execution.handle = {"id": "late", "ray_token": "0123"}
        return [HandleEvent(execution.handle), HandleEvent(execution.handle), SUCCESS]

    monkeypatch.setattr(execution, "events", events)
    messages: list[str] = []
    monkeypatch.setattr("skyrl_modal.launching.StderrReporter", lambda: ListReporter(messages))

    Launcher(backend=LateBackend(), mounts=[]).run("true", output=bytearray().extend)

    [run] = [run for run in runs() if run.dashboard_token == "0123"]
    assert run.backend == "memory"
    assert len([message for message in messages if "0123" in message]) == 1


def test_run_on_a_backend_object_is_unknown_later() -> None:
    """A run on a backend object of the user cannot be attached to by name, and hides no other run."""
    run = Launcher(backend=MemoryBackend(SUCCESS), mounts=[]).submit("true")

    listed = {item.id: item for item in runs(limit=None)}

    assert run.state is RunState.SUCCEEDED
    assert listed[run.id].state is RunState.UNKNOWN
    assert Run.attach(run.id).state is RunState.UNKNOWN


def test_backend_receives_spec_and_job() -> None:
    """The backend receives the job and what the user declared."""
    backend = MemoryBackend(SUCCESS)
    launcher = Launcher(backend=backend, mounts=[], cpu=2, name="first")

    launcher.run("echo one", quiet=True, output=bytearray().extend)

    [prepared] = backend.runs
    assert (prepared.job.command, prepared.job.name, prepared.spec.cpu) == ("echo one", "first", 2)


class FailingReporter:
    """A reporter that fails from a message on.

    Args:
        text: What the message contains.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    def info(self, text: str) -> None:
        """Raise an exception for the message."""
        if self._text in text:
            raise OSError(28, "No space left on device")

    def warn(self, text: str) -> None:
        """Raise an exception for the message."""
        self.info(text)


@pytest.mark.parametrize("text", ["a message", "a warning", "Token", "exit code"])
def test_error_of_the_reporter_stops_the_run(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the reporter fails, the run is stopped, its events are read to the end, and then the error is raised."""
    events: list[RunEvent] = [
        MessageEvent("a message"),
        MessageEvent("a warning", MessageLevel.WARNING),
        OutputEvent(b"one"),
        SUCCESS,
    ]
    backend = MemoryBackend(*events, handle={"id": "memory", "ray_token": "0123"})
    monkeypatch.setattr("skyrl_modal.launching.StderrReporter", lambda: FailingReporter(text))

    with pytest.raises(OSError, match="No space left"):
        Launcher(backend=backend, mounts=[]).run("true", output=bytearray().extend)

    assert backend.execution.cancellations == [False]


def test_error_of_on_state_stops_the_run() -> None:
    """If the receiver of states fails, the run is stopped and the error is raised."""
    backend = MemoryBackend(StateEvent(RunState.RUNNING), SUCCESS)
    run = Launcher(backend=backend, mounts=[]).submit("true")

    def fail(state: RunState) -> None:
        raise LookupError(state)

    with pytest.raises(LookupError):
        stream_to_end(run, bytearray().extend, NullReporter(), Interrupts(), fail)

    assert backend.execution.cancellations == [False]


@pytest.fixture
def index_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a file in the place of the folder with the records of runs."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (tmp_path / "skyrl_modal").mkdir()
    (tmp_path / "skyrl_modal" / "index").touch()


@pytest.mark.usefixtures("index_is_a_file")
def test_submitted_run_without_a_record_is_stopped() -> None:
    """A run that no process could attach to, since its record cannot be written, is stopped."""
    backend = MemoryBackend(SUCCESS)

    with pytest.raises(StorageError):
        Launcher(backend=backend, mounts=[]).submit("true")

    assert backend.execution.cancellations == [False]


@pytest.mark.usefixtures("index_is_a_file")
def test_owned_run_without_a_record_continues(capfd: pytest.CaptureFixture[str]) -> None:
    """A run that this process owns does not depend on its record; a warning is shown."""
    backend = MemoryBackend(HandleEvent({"id": "memory"}), SUCCESS)

    result = Launcher(backend=backend, mounts=[]).run("true")

    assert result.succeeded
    assert "cannot be attached to" in capfd.readouterr().err
