"""Keep the logs of one rank in the run's folder while they grow: masked, bounded, and committed at an interval.

SkyRL's and Ray's own logs end with the container, and only they contain why a worker or an inference engine did not
start. A container can be killed at any time, so they are copied when they grow, not only at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from skyrl_modal.container.environment import ray_session_folder
from skyrl_modal.container.kept_log_folder import KeptLogFolder, KeptLogLimits, open_start_folder
from skyrl_modal.container.log_follower import LogFollower
from skyrl_modal.container.log_sources import LogSearch
from skyrl_modal.container.machine_logs import KernelMessages, gpu_report, memory_counters
from skyrl_modal.container.masking import SecretMask
from skyrl_modal.formats.metrics_steps import MetricsSteps
from skyrl_modal.protocol.kept_logs import GPU_LOG, KERNEL_LOG, KILLED_KEY, MEMORY_LOG
from skyrl_modal.protocol.rank_config import RankConfig
from skyrl_modal.protocol.run_folder import SUPERVISOR_LOG, open_regular_file

#: Seconds between two looks at the logs.
POLL_INTERVAL = 2.0
#: Seconds before the first commit of a start, and at most between two of them. Each is twice the one before.
FIRST_COMMIT_INTERVAL, COMMIT_INTERVAL = 10.0, 60.0
#: The part of the time that commits may take.
_COMMIT_SHARE = 0.05
#: Seconds to wait at the end for a commit or a file system that does not answer.
_JOIN_TIMEOUT = 10.0
#: Counters whose change is recorded while the command runs. Others change often without a consequence.
_WATCHED_COUNTERS = ("oom", "oom_kill")
_TMP = "/tmp"


class LogKeeper:
    """Keeps the logs of one rank. Its methods may be called from any thread, and do not raise OSError.

    Args:
        folder: The folder with the logs of the rank.
        config: The rank.
        secrets: The values to mask.
        note: Receives messages for the log of the supervisor.
        commit: Saves the run's folder on its volume; None if that is not needed.
        limits: What is kept.
    """

    def __init__(
        self,
        folder: Path,
        config: RankConfig,
        secrets: SecretMask,
        *,
        note: Callable[[str], None],
        commit: Callable[[], None] | None = None,
        limits: KeptLogLimits | None = None,
    ) -> None:
        self._folder = folder
        self._secrets = secrets
        self._note = note
        self._commit_folder = commit
        self._limits = limits or KeptLogLimits()
        tmp = {_TMP, os.environ.get("TMPDIR", _TMP)}
        shared = [_TMP] if config.shares_tmp else []
        self._follower = LogFollower(LogSearch(ray_session_folder(config), sorted(tmp), shared), secrets)
        # The ranks of a cluster commit one after another.
        self._commit_offset = config.rank / config.nodes
        self._kernel = KernelMessages()
        self._memory: dict[str, int] | None = None
        self._attempt = 0
        self._start: KeptLogFolder | None = None
        self._has_failed = False
        self._is_changed = False
        self._lock = threading.RLock()
        self._metrics = MetricsSteps(folder.parent.parent, config.rank)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-keeper", daemon=True)

    def begin(self, attempt: int, *, was_killed: bool = False) -> Path:
        """Keep what is written from now on in the folder of another attempt, which is returned.

        Args:
            attempt: The number of the attempt.
            was_killed: Whether the attempt has already ended by SIGKILL: its counters of the memory at its start are
                not known.
        """
        with self._lock:
            if self._start is None or attempt != self._attempt:
                if self._start is not None:
                    self.collect()
                    self._record_memory(is_end=True)
                self._attempt, self._has_failed, self._memory = attempt, False, None
                try:
                    self._start = open_start_folder(self._folder, attempt, self._limits)
                except OSError as error:
                    self._start = KeptLogFolder(self._folder / str(attempt), self._limits)
                    self._note(f"the folder for logs cannot be created: {error}")
                self._record_memory(was_killed=was_killed)
            if self._thread.ident is None:
                self._thread.start()
            return self._start.path

    def collect(self) -> None:
        """Copy what is new in the logs."""
        with self._lock:
            if self._start is not None:
                self._is_changed |= self._follower.copy_new(self._start.append)
                self._record_memory()

    def keep_text(self, name: str, text: str) -> None:
        """Append a text, masked, to a log of the attempt."""
        with self._lock:
            self._append(name, text)

    def record_failure(self) -> None:
        """Keep what the machine reports, once for each attempt. The processes of the attempt may still exist."""
        with self._lock:
            if self._start is None or self._has_failed:
                return
            self._has_failed = True
            self._append(KERNEL_LOG, "".join(f"{line}\n" for line in self._kernel.read()))
            self._append(GPU_LOG, gpu_report())
            self._record_memory(is_end=True)

    def close(self) -> None:
        """Copy the rest, after the processes of the rank have ended."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(_JOIN_TIMEOUT)
        # A thread that a file system blocks must not block the end of the run.
        if not self._lock.acquire(timeout=_JOIN_TIMEOUT):
            self._note("the logs could not be kept completely: the file system does not answer")
            return
        with contextlib.ExitStack() as stack:
            stack.callback(self._lock.release)
            stack.callback(self._kernel.close)
            if self._start is not None:
                self._follower.finish(self._start.append)
                self._record_memory(is_end=True)
                self._report_missing(self._start)

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        interval = FIRST_COMMIT_INTERVAL
        due = time.monotonic() + interval * (1 + self._commit_offset)
        while not self._closing.wait(POLL_INTERVAL):
            self.collect()
            self._is_changed |= self._metrics.update()  # the caller sees new metrics when they are committed
            if self._is_changed and time.monotonic() >= due:
                seconds = self._commit()
                interval = min(2 * interval, COMMIT_INTERVAL)
                due = time.monotonic() + max(interval, seconds / _COMMIT_SHARE)

    def _commit(self) -> float:
        """Commit the run's folder. Return the seconds that it took."""
        begin = time.monotonic()
        if self._commit_folder is not None:
            self._is_changed = False
            with contextlib.ExitStack() as stack:
                with contextlib.suppress(OSError):
                    # Modal's client reloads a volume after a commit, unless a file is open. While it reloads, the
                    # volume looks empty to the command (docs/modal-assumptions.md).
                    stack.enter_context(open_regular_file(self._folder / SUPERVISOR_LOG))
                self._commit_folder()
        return time.monotonic() - begin

    # -- what the machine reports ------------------------------------------------------------------------------------

    def _record_memory(self, *, is_end: bool = False, was_killed: bool = False) -> None:
        """Append the counters of the memory if there are news: at the beginning, after a change, and at the end."""
        values, known = memory_counters(), self._memory
        if known is not None:
            is_new = values != known if is_end else any(values.get(key) != known.get(key) for key in _WATCHED_COUNTERS)
            if not is_new:
                return
        if values:
            self._memory = values
            record = {"time": datetime.now(UTC).isoformat(timespec="seconds"), **values}
            if was_killed:
                record[KILLED_KEY] = True
            self._append(MEMORY_LOG, json.dumps(record) + "\n")

    def _append(self, name: str, text: str) -> None:
        if text and self._start is not None:
            with contextlib.suppress(OSError):  # a full disk; the logs of the processes are reported
                self._start.append(name, self._secrets.mask_text(text).encode("utf-8", "replace"))
                self._is_changed = True

    def _report_missing(self, start: KeptLogFolder) -> None:
        if start.refused:
            self._note(f"{len(start.refused)} logs are not kept, since there were too many or they were too large")
        for name, problem in sorted(self._follower.problems.items())[:1]:
            number = len(self._follower.problems)
            self._note(f"{'a log' if number == 1 else f'{number} logs'} could not be kept: {name}: {problem}")
