"""Tests of the results of errors that end the function on Modal."""

from __future__ import annotations

import errno
from pathlib import Path

import modal.exception
import pytest

from skyrl_modal.container.function_errors import FunctionError
from skyrl_modal.container.stop_signals import run_with_stop_requests
from skyrl_modal.protocol.run_folder import SUPERVISOR_LOG, RunFolder
from skyrl_modal.protocol.state import FailureCause, RunState
from tests.container.records import make_job


class UnreadableError(Exception):
    """An error whose message cannot be read, and that cannot be pickled."""

    def __str__(self) -> str:
        raise RuntimeError("no message")

    def __reduce__(self) -> str:
        raise RuntimeError("cannot be pickled")


@pytest.mark.parametrize(
    ("error", "cause", "text"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x"), FailureCause.SYSTEM_ERROR, "OSError: /x: No space"),
        (ConnectionResetError("reset"), FailureCause.SYSTEM_ERROR, "ConnectionResetError: reset"),
        (TimeoutError(), FailureCause.SYSTEM_ERROR, "TimeoutError"),
        (MemoryError(), FailureCause.SYSTEM_ERROR, "MemoryError"),
        (SystemExit(3), FailureCause.SUPERVISOR_DIED, "SystemExit: 3"),
        (KeyboardInterrupt(), FailureCause.SUPERVISOR_DIED, "KeyboardInterrupt"),
        (UnreadableError(), FailureCause.SUPERVISOR_DIED, "UnreadableError: its message cannot be read"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"), FailureCause.SUPERVISOR_DIED, "UnicodeDecodeError: "),
        (ValueError("\ud800"), FailureCause.SUPERVISOR_DIED, "ValueError: \\ud800"),
        (modal.exception.ServiceError("unavailable"), FailureCause.SUPERVISOR_DIED, "ServiceError: unavailable"),
        (ModuleNotFoundError("No module named 'x'"), FailureCause.SUPERVISOR_DIED, "ModuleNotFoundError: No module"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_error_of_the_supervisor_has_a_result(
    tmp_path: Path, error: BaseException, cause: FailureCause, text: str
) -> None:
    """Each error that ends the supervisor becomes a result with its cause; its traceback is in the supervisor's log."""
    job = make_job(tmp_path)

    def run() -> None:
        raise error

    with pytest.raises(RuntimeError) as caught:
        run_with_stop_requests(run, pytest.fail)
    failure = FunctionError(job, None, caught.value)
    result = failure.result()
    failure.write_log(0)

    assert (result.returncode, result.cause) == (125, cause)
    assert result.state is (RunState.FAILED if cause is FailureCause.SYSTEM_ERROR else RunState.LOST)
    assert text in result.detail
    assert RunFolder(job.run_folder).read_result() == result
    log = (RunFolder(job.run_folder).rank_logs(0) / SUPERVISOR_LOG).read_text()
    assert "Traceback (most recent call last)" in log
    assert "raise error" in log


def test_text_of_an_error_is_limited(tmp_path: Path) -> None:
    """The message and the traceback of an error are cut in their middle if they are long."""
    failure = FunctionError(make_job(tmp_path), None, ValueError("begin" + "x" * 5_000_000 + "end"))

    assert len(failure.summary) < 3_000
    assert len(failure.traceback) < 30_000
    assert failure.summary.startswith("ValueError: begin")
    assert failure.summary.endswith("end")


def test_text_of_an_error_is_masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of secrets are in neither the message nor the traceback."""
    monkeypatch.setenv("API_KEY", "secret-value-1")
    job = make_job(tmp_path, secret_names=("API_KEY",))

    failure = FunctionError(job, None, ValueError("the key secret-value-1 is refused"))

    assert failure.summary == "ValueError: the key ******** is refused"
    assert "secret-value-1" not in failure.traceback


def test_error_of_a_missing_run_folder(tmp_path: Path) -> None:
    """The result is returned also if the run's folder cannot be written: that may be the error itself."""
    (tmp_path / "file").touch()
    job = make_job(tmp_path, run_folder=str(tmp_path / "file" / "run"))

    failure = FunctionError(job, None, NotADirectoryError(errno.ENOTDIR, "Not a directory", "/x"))
    failure.write_log(0)

    assert failure.result().cause is FailureCause.SYSTEM_ERROR
