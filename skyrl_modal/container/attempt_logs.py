"""When the logs of rank 0 are kept. What keeps them is loaded with the first attempt that may have some."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from skyrl_modal.container.masking import SecretMask
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.kept_logs import has_log_folders
from skyrl_modal.protocol.rank_config import RankConfig
from skyrl_modal.protocol.run_folder import RunFolder

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from skyrl_modal.container.log_keeper import LogKeeper

#: Seconds after the start of a command without Ray from which its logs are followed. Most short commands have none.
LOG_DELAY = 1.0
#: Exit code of a command that was killed.
KILLED = 137


class AttemptLogs:
    """The logs of the attempts of rank 0.

    Args:
        job: The run.
        config: Rank 0.
        secrets: The values to mask.
        note: Receives messages for the log of the supervisor.
        commit: Saves the run's folder on its volume; None if that is not needed.
    """

    def __init__(
        self,
        job: Job,
        config: RankConfig,
        secrets: SecretMask,
        *,
        note: Callable[[str], None],
        commit: Callable[[], None] | None,
    ) -> None:
        self._job = job
        self._config = config
        self._secrets = secrets
        self._note = note
        self._commit = commit
        self._keeper: LogKeeper | None = None

    def keep(self, attempt: int, *, was_killed: bool = False) -> LogKeeper:
        """Keep the logs of an attempt from now on, and return what keeps them.

        Args:
            attempt: Its number.
            was_killed: Whether it has already ended by SIGKILL.
        """
        if self._keeper is None:
            from skyrl_modal.container.log_keeper import LogKeeper

            folder = RunFolder(self._job.run_folder).rank_logs(0)
            self._keeper = LogKeeper(folder, self._config, self._secrets, note=self._note, commit=self._commit)
        self._keeper.begin(attempt, was_killed=was_killed)
        return self._keeper

    @contextlib.contextmanager
    def following(self, attempt: int) -> Iterator[None]:
        """Follow the logs in a ``with`` statement: from its beginning with Ray, and in further attempts; else soon."""
        if self._keeper is not None:
            self.keep(attempt)
            yield
            return
        timer = threading.Timer(LOG_DELAY, self.keep, (attempt,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()

    def end_attempt(self, attempt: int, returncode: int, *, is_failed: bool) -> None:
        """Keep what an attempt that did not succeed has left. One that fails immediately has usually left nothing.

        Args:
            attempt: Its number.
            returncode: Its exit code.
            is_failed: Whether it has failed, so that what the machine reports is of use.
        """
        gpus, was_killed = self._job.gpus_per_node or self._config.gpus, returncode == KILLED
        if self._keeper is not None or gpus or was_killed or has_log_folders():
            keeper = self.keep(attempt, was_killed=was_killed)
            if is_failed:
                keeper.record_failure()

    def record_failure(self) -> None:
        """Keep what the machine reports, if logs are kept."""
        if self._keeper is not None:
            self._keeper.record_failure()

    def close(self) -> None:
        """Keep the rest, after the processes have ended."""
        if self._keeper is not None:
            self._keeper.close()
