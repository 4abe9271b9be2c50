"""Errors of the function that Modal calls: their result, and their traceback in the logs.

The exception itself is not left to Modal: the caller could not distinguish some from a lost connection, and might be
unable to import the class of others.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable
from datetime import UTC, datetime

from skyrl_modal.container.environment import run_environment, secret_values
from skyrl_modal.container.failures import describe_error
from skyrl_modal.container.masked_logs import append_private, make_private_folder
from skyrl_modal.container.masking import SecretMask
from skyrl_modal.protocol.exit_codes import LAUNCHER_FAILED
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.rank_config import RankConfig
from skyrl_modal.protocol.result import RunResultRecord
from skyrl_modal.protocol.run_folder import SUPERVISOR_LOG, RunFolder
from skyrl_modal.protocol.state import FailureCause, RunState

#: Characters of an error's message, and of its traceback, that are kept.
MAX_MESSAGE, MAX_TRACEBACK = 2_000, 20_000


def limit_text(text: str, limit: int) -> str:
    """Return a text without its middle part if it is longer than a number of characters.

    Example:
        >>> limit_text("x" * 1000, 10)
        'xxxxx ... 990 characters are left out ... xxxxx'
    """
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} ... {len(text) - 2 * half:,} characters are left out ... {text[-half:]}"


class FunctionError:
    """An error that ended the function before the run had a result.

    Args:
        job: The run.
        config: This rank; None if it is not known.
        error: The error. ``RuntimeError`` of ``run_with_stop_requests`` has the original one as its cause.

    Attributes:
        summary: One line for people, without secrets.
        traceback: The traceback without secrets.
    """

    def __init__(self, job: Job, config: RankConfig | None, error: BaseException) -> None:
        self._job = job
        self._error = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
        mask = make_mask(job, config)
        try:
            text = str(self._error)
        except Exception:  # an exception class whose __str__ fails
            text = "its message cannot be read"
        if isinstance(self._error, OSError):
            text = describe_error(self._error)
        name = type(self._error).__name__
        # Masked before it is cut: a part of a secret would not be recognized.
        self.summary = limit_text(" ".join(mask(f"{name}: {text}" if text else name).split()), MAX_MESSAGE)
        lines = "".join(traceback.format_exception(self._error))
        self.traceback = limit_text(mask(lines), MAX_TRACEBACK)

    def write_log(self, rank: int) -> None:
        """Append the traceback to the log of a rank's supervisor, if it can be written."""
        with contextlib.suppress(OSError):
            folder = RunFolder(self._job.run_folder).rank_logs(rank)
            make_private_folder(folder)
            with open(append_private(folder / SUPERVISOR_LOG), "a", encoding="utf-8", errors="replace") as log:
                log.write(self.traceback)

    @property
    def cause(self) -> FailureCause:
        """The cause of failure."""
        is_system_error = isinstance(self._error, OSError | MemoryError)
        return FailureCause.SYSTEM_ERROR if is_system_error else FailureCause.SUPERVISOR_DIED

    def result(self) -> RunResultRecord:
        """Return the result of the run, and write it to the run's folder if that is possible."""
        folder, attempts, started_at = RunFolder(self._job.run_folder), 0, None
        with contextlib.suppress(Exception):  # there is no status, or it cannot be read
            status = folder.read_status()
            attempts = 0 if status is None else status.attempt
            started_at = datetime.fromtimestamp(folder.path.stat().st_ctime, UTC)
        state = RunState.FAILED if self.cause is FailureCause.SYSTEM_ERROR else RunState.LOST
        record = RunResultRecord.without_record(
            self._job,
            state=state,
            returncode=LAUNCHER_FAILED,
            cause=self.cause,
            attempts=attempts,
            started_at=started_at,
            detail=f"the launcher failed in the container: {self.summary}",
        )
        with contextlib.suppress(OSError):
            folder.write_result(record)
        return record


def make_mask(job: Job, config: RankConfig | None) -> Callable[[str], str]:
    """Return a function that masks secrets. If they cannot be determined, it removes all of the text."""
    try:
        rank = config or RankConfig()
        secrets = SecretMask(secret_values(job, rank, run_environment(job, rank)))
    except Exception:
        return lambda text: "(left out, since the secrets in it cannot be masked)"

    def mask(text: str) -> str:
        return secrets.mask_text(text.encode("utf-8", "backslashreplace").decode())

    return mask
