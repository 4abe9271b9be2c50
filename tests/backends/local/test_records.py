"""Records of runs on this machine: missing, damaged, and of a newer version."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from skyrl_modal import Run, runs
from skyrl_modal.backends.local import LocalBackend
from skyrl_modal.backends.local.descriptors import DescriptorSet
from skyrl_modal.backends.local.execution import LocalExecution
from skyrl_modal.backends.local.run_lock import lock_file, supervisor_stderr
from skyrl_modal.errors import RecordError
from skyrl_modal.protocol.events import ResultEvent
from skyrl_modal.protocol.job import SCHEMA_VERSION, Job
from skyrl_modal.protocol.result import RunResultRecord
from skyrl_modal.protocol.run_folder import MAX_RECORD_BYTES, RESULT_FILE, STATUS_FILE, RunFolder
from skyrl_modal.protocol.state import FailureCause, RunState
from skyrl_modal.protocol.status import StatusRecord
from skyrl_modal.run.index import IndexRecord, RunIndex

NEWER = json.dumps({"state": "running", "schema_version": SCHEMA_VERSION + 1})
#: Above the largest process id of Linux (PID_MAX_LIMIT, 2^22).
UNUSED_PID = 4194305


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Return a job whose run id no other test has."""
    return Job(
        run_id=f"20000101-000000-{tmp_path.name}",
        command="true",
        workdir="/",
        run_folder="/root/.skyrl_modal/runs/x",
        created_at="2000-01-01T00:00:00+00:00",
    )


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Return an empty run folder."""
    return RunFolder(tmp_path)


@pytest.fixture
def execution(job: Job, folder: RunFolder) -> LocalExecution:
    """Return a run that another process has started."""
    return LocalBackend().attach(job, {"pid": UNUSED_PID, "run_folder": str(folder.path)})


@pytest.fixture
def active(job: Job) -> Iterator[None]:
    """Hold the run's lock, as an active run does."""
    lock_file(job.run_id).parent.mkdir(parents=True)
    with DescriptorSet() as fds:
        fds.lock(lock_file(job.run_id))
        yield


def result_of(job: Job) -> RunResultRecord:
    """Return a result of a run that failed."""
    return RunResultRecord.without_record(
        job, state=RunState.FAILED, returncode=3, cause=FailureCause.COMMAND_FAILED, detail=""
    )


@pytest.mark.usefixtures("active")
def test_state_of_an_active_run(execution: LocalExecution, folder: RunFolder) -> None:
    """An active run is pending until its supervisor has written a state."""
    assert execution.state() is RunState.PENDING

    folder.write_status(StatusRecord(state=RunState.RUNNING, attempt=1, dashboard_url="http://127.0.0.1:1"))

    assert execution.state() is RunState.RUNNING
    assert execution.url == "http://127.0.0.1:1"


def test_a_run_without_a_result_is_lost(execution: LocalExecution, job: Job, folder: RunFolder) -> None:
    """A run that has ended without a result is lost. The detail has the end of its supervisor's log."""
    folder.write_status(StatusRecord(state=RunState.RUNNING, dashboard_url="http://127.0.0.1:1"))
    supervisor_stderr(job.run_id, 0).parent.mkdir(parents=True)
    supervisor_stderr(job.run_id, 0).write_text("the reason for it\n")

    result = execution.wait(0)

    assert (result.state, result.cause, result.returncode) == (RunState.LOST, FailureCause.SUPERVISOR_DIED, 125)
    assert result.detail.endswith("the reason for it")
    assert execution.state() is RunState.LOST
    assert execution.url is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"state": 3}', NEWER])
@pytest.mark.usefixtures("active")
def test_a_damaged_state(execution: LocalExecution, folder: RunFolder, content: str) -> None:
    """A state.json that is damaged or of a newer version raises RecordError with its path."""
    (folder.path / STATUS_FILE).write_text(content)

    with pytest.raises(RecordError) as error:
        execution.state()

    assert error.value.path == str(folder.path / STATUS_FILE)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"state": "failed"}', NEWER])
def test_a_damaged_result(execution: LocalExecution, folder: RunFolder, content: str) -> None:
    """A result.json that is damaged or of a newer version raises RecordError with its path."""
    (folder.path / RESULT_FILE).write_text(content)

    for read in (execution.state, execution.wait):
        with pytest.raises(RecordError) as error:
            read()
        assert error.value.path == str(folder.path / RESULT_FILE)


def test_a_run_with_a_damaged_record_can_be_cancelled(execution: LocalExecution, folder: RunFolder) -> None:
    """`cancel` does not read the records."""
    (folder.path / STATUS_FILE).write_text("{")

    execution.cancel()


@pytest.mark.parametrize("handle", [{}, {"call_id": "fc-1"}, {"pid": "1", "run_folder": "/"}])
def test_a_handle_of_another_backend(job: Job, handle: dict[str, str]) -> None:
    """A handle that the local backend did not create raises RecordError."""
    with pytest.raises(RecordError):
        LocalBackend().attach(job, handle)


def test_the_last_event_is_the_result(execution: LocalExecution, job: Job, folder: RunFolder) -> None:
    """The events of a run that has ended are its output and its result."""
    folder.output.write_bytes(b"output\n")
    folder.write_result(result_of(job))

    *events, last = execution.events()

    assert [event.data for event in events] == [b"output\n"]
    assert last == ResultEvent(folder.read_result())


HOSTILE_RESULTS = {
    "empty": b"",
    "truncated": b'{"run_id": "r1", "sta',
    "list": b"[]",
    "null": b"null",
    "deep": b"[" * 100_000,
    "huge number": b'{"returncode": 1' + b"0" * 5000 + b"}",
    "binary": bytes(range(256)),
    "larger than a record": b" " * (MAX_RECORD_BYTES + 1),
}


@pytest.mark.parametrize("content", HOSTILE_RESULTS.values(), ids=HOSTILE_RESULTS)
def test_a_hostile_result_affects_its_run_only(job: Job, tmp_path: Path, content: bytes) -> None:
    """A run whose result is damaged is listed with the others; its own state raises RecordError."""
    damaged, other = f"{job.run_id}-a", f"{job.run_id}-b"
    for run_id in (damaged, other):
        folder = RunFolder(tmp_path / run_id)
        folder.path.mkdir()
        one = replace(job, run_id=run_id)
        folder.write_result(replace(result_of(one), run_id=run_id))
        handle = {"pid": UNUSED_PID, "run_folder": str(folder.path)}
        RunIndex().add(IndexRecord(job=one, backend="local", handle=handle))
    (tmp_path / damaged / RESULT_FILE).write_bytes(content)

    found = {run.id: run for run in runs(limit=None) if run.id in (damaged, other)}

    assert found[other].state is RunState.FAILED
    with pytest.raises(RecordError):
        assert found[damaged].state


@pytest.mark.parametrize("kind", ["named pipe", "folder", "link to /etc/passwd", "link to itself"])
def test_an_output_that_is_no_file(execution: LocalExecution, job: Job, folder: RunFolder, kind: str) -> None:
    """An output.log that is not a regular file is refused without blocking; the run has its result all the same."""
    if kind == "named pipe":
        os.mkfifo(folder.output)
    elif kind == "folder":
        folder.output.mkdir()
    else:
        folder.output.symlink_to("/etc/passwd" if "passwd" in kind else folder.output.name)
    folder.write_result(result_of(job))
    run = Run(job, "local", execution)

    for read in (run.logs, run.events):
        with pytest.raises(RecordError) as error:
            list(read())
        assert error.value.path == str(folder.output)
    assert run.result().returncode == 3


def test_logs_of_a_rank_are_regular_files(execution: LocalExecution, job: Job, folder: RunFolder) -> None:
    """Of the files of a rank, links and named pipes are left out, and control characters of names are escaped."""
    logs = folder.rank_logs(0)
    logs.mkdir(parents=True)
    (logs / "a\x1b[2J.log").write_text("content \x1b[31m\n")
    (logs / "link").symlink_to("/etc/passwd")
    os.mkfifo(logs / "pipe")

    lines = list(Run(job, "local", execution).logs(rank=0))

    assert lines == ["==> a\\x1b[2J.log <==", "content \x1b[31m"]


def test_linked_folder_of_logs_is_not_read(execution: LocalExecution, folder: RunFolder) -> None:
    """A folder of logs that the command has replaced by a link is neither listed nor read."""
    folder.rank_logs(0).mkdir(parents=True)
    (folder.rank_logs(0) / "1").symlink_to("/etc")

    assert list(execution.list_files("logs")) == []
    with pytest.raises(FileNotFoundError):
        execution.read_file("logs/0/1/passwd")


def test_the_end_of_a_large_log_is_read(
    execution: LocalExecution, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a log that is larger than the limit, the end is returned after a line with the number of omitted bytes."""
    monkeypatch.setattr("skyrl_modal.backends.local.execution._MAX_FILE_BYTES", 10)
    folder.rank_logs(0).mkdir(parents=True)
    (folder.rank_logs(0) / "log").write_text("a" * 20 + "0123456789")

    assert execution.read_file("logs/0/log") == b"(20 bytes are omitted here)\n0123456789"
