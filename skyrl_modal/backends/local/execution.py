"""A run on this machine, as seen by the process that started it or by any other process of the same user."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import stat
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from skyrl_modal.backends.base import Handle, Progress, StoredFile
from skyrl_modal.backends.local.event_stream import CHUNK_SIZE, EventStream
from skyrl_modal.backends.local.run_folder import read_result, read_status
from skyrl_modal.backends.local.run_lock import is_run_alive, supervisor_stderr, wait_for_run_end
from skyrl_modal.errors import RecordError
from skyrl_modal.event_queue import wait_interruptibly
from skyrl_modal.machine import open_pidfd
from skyrl_modal.protocol.events import MessageEvent, MessageLevel, OutputEvent, ResultEvent, RunEvent
from skyrl_modal.protocol.exit_codes import LAUNCHER_FAILED
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.result import OutputRecord, RunResultRecord
from skyrl_modal.protocol.run_folder import NotRegularFileError, RunFolder, open_regular_file
from skyrl_modal.protocol.state import FailureCause, RunState

#: Seconds between two looks for new output of a run that another process started: after output, and at most.
_MIN_POLL_INTERVAL = 0.02
_POLL_INTERVAL = 0.1
#: Characters of the supervisor's stderr that are part of the result of a run that left none.
_STDERR_TAIL = 2000
#: Bytes at the end of a log of a rank that are read.
_MAX_FILE_BYTES = 64 << 20


class LocalExecution:
    """A run on this machine.

    Args:
        job: The run.
        handle: Its supervisor's pid (``pid``) and the path of its folder on this machine (``run_folder``); with Ray's
            dashboard also the token of its Ray (``ray_token``).
        processes: The processes of its ranks, if this process started them.
        stream: Its events, if this process started it and owns it.

    Raises:
        RecordError: The handle was not created by this backend.
    """

    def __init__(
        self,
        job: Job,
        handle: Handle,
        *,
        processes: Sequence[subprocess.Popen[bytes]] = (),
        stream: EventStream | None = None,
    ) -> None:
        pid, folder = handle.get("pid"), handle.get("run_folder")
        if not isinstance(pid, int) or not isinstance(folder, str):
            raise RecordError(f"the handle of run {job.run_id}", "it was not created by the local backend")
        self._job = job
        self.handle = handle
        self._pid = pid
        self._folder = RunFolder(folder)
        self._processes = processes
        self._stream = stream
        self._ended = threading.Event()
        self._waiter: threading.Thread | None = None
        self._waiter_lock = threading.Lock()

    @property
    def url(self) -> str | None:
        """URL of Ray's dashboard while it runs; None if it does not."""
        status = read_status(self._folder) if self._is_alive() else None
        return None if status is None else status.dashboard_url

    @property
    def log_path(self) -> str:
        """The path of output.log on this machine."""
        return str(self._folder.output)

    def wait_started(self) -> None:
        """Return immediately: the supervisor runs when ``LocalBackend.start`` returns."""

    def progress(self) -> Progress | None:
        """Return what a run waits for that another process started; None if it runs. Others report it by events."""
        if self._stream is not None or read_result(self._folder) is not None:
            return None
        try:
            status = read_status(self._folder)
        except RecordError:
            return None
        if status is not None and status.state is not RunState.PREPARING:
            return None
        return Progress("preparing the container" + ("" if self._job.ray is None else " and starting Ray"))

    def events(self) -> Iterator[RunEvent]:
        """Yield the events of the run: from its own streams if this process owns it, else from output.log."""
        return self.events_from(0) if self._stream is None else self._streamed(self._stream)

    def _streamed(self, stream: EventStream) -> Iterator[RunEvent]:
        received = 0
        result: ResultEvent | None = None
        for event in stream.events():
            if isinstance(event, ResultEvent):
                result = event
                continue
            if isinstance(event, OutputEvent):
                received += len(event.data)
            yield event
        self._wait_removed(None)
        record = self._final_result() if result is None else result.record
        yield from self._rest_of_output(received, record.output)
        yield ResultEvent(record)

    def _rest_of_output(self, received: int, output: OutputRecord) -> Iterator[RunEvent]:
        """Yield the output that the supervisor could not forward, since it was killed or the pipe was full.

        Args:
            received: Number of bytes that were received.
            output: What the run has recorded about its output.
        """
        if received == output.total:
            return
        end = math.inf if output.stored is None else output.stored
        reason = output.error or "output.log was changed or removed"
        try:
            for chunk in self._log_from(received):
                data = chunk[: int(min(max(0, end - received), len(chunk)))]
                if not data:
                    break
                received += len(data)
                yield OutputEvent(data)
        except (OSError, RecordError) as error:
            reason = str(error)
        if output.total is not None and received < output.total:
            missing = output.total - received
            text = f"{missing} bytes of output are missing here, since they were not read in time ({reason})"
            yield MessageEvent(text, MessageLevel.WARNING)

    def events_from(self, offset: int) -> Iterator[RunEvent]:
        """Like ``events``, without the first bytes of the output. It can be called repeatedly."""
        interval = _MIN_POLL_INTERVAL
        while True:
            has_ended = self._wait_ended(interval)
            interval = min(2 * interval, _POLL_INTERVAL)
            for data in self._log_from(offset):
                offset += len(data)
                interval = _MIN_POLL_INTERVAL
                yield OutputEvent(data)
            size = self._available_bytes()
            if size < offset:
                yield MessageEvent(
                    f"output.log was changed by another program: it had {offset:,} bytes, and has {size:,} now. What "
                    "follows begins with its present content",
                    MessageLevel.WARNING,
                )
                offset = 0
            elif has_ended:
                break
        yield ResultEvent(self._final_result())

    def _available_bytes(self) -> int:
        """Return the size of output.log; 0 if there is none."""
        try:
            return self.log_size()
        except FileNotFoundError:
            return 0

    def _log_from(self, offset: int) -> Iterator[bytes]:
        while data := self.read_log(offset):
            offset += len(data)
            yield data

    def log_size(self) -> int:
        """Return the current size of output.log in bytes.

        Raises:
            FileNotFoundError: The run has ended and its folder was removed, for example with its volume.
            RecordError: It is not a regular file.
        """
        try:
            with self._open_output() as log:
                return os.fstat(log.fileno()).st_size
        except FileNotFoundError:
            if self._folder.path.is_dir() or self._is_alive():
                return 0
            raise FileNotFoundError(f"{self._folder.path} was removed, and the run's output with it") from None

    def read_log(self, offset: int) -> bytes:
        """Return up to 1 MiB of output.log from an offset; empty at the end of the file.

        Raises:
            RecordError: It is not a regular file.
        """
        try:
            with self._open_output() as log:
                log.seek(offset)
                return log.read(CHUNK_SIZE)
        except FileNotFoundError:
            return b""

    def _open_output(self) -> IO[bytes]:
        try:
            return open_regular_file(self._folder.output)
        except NotRegularFileError as error:
            raise RecordError(str(self._folder.output), str(error.strerror)) from error

    def list_files(self, folder: str) -> Sequence[StoredFile]:
        """Return the regular files below a folder of the run's folder, sorted by path. Links are not followed.

        Raises:
            FileNotFoundError: There is no such folder.
        """
        root = self._folder.path / folder
        if root.is_symlink() or not root.is_dir():
            raise FileNotFoundError(f"{root} does not exist")
        found = []
        for parent, _, names in os.walk(root):
            for name in names:
                path = Path(parent, name)
                with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
                    status = path.lstat()
                    if stat.S_ISREG(status.st_mode):
                        found.append(StoredFile(path.relative_to(root).as_posix(), status.st_size))
        return sorted(found, key=lambda file: file.path)

    def read_file(self, path: str) -> bytes:
        """Return the content of a regular file of the run's folder.

        Of a large file, the end is returned, after a line that contains the number of omitted bytes.

        Raises:
            FileNotFoundError: There is no such file.
        """
        with self._open_file(path) as file:
            return _end_of(file, _MAX_FILE_BYTES)

    def read_part(self, path: str, offset: int, limit: int) -> bytes:
        """Return a part of a regular file of the run's folder; empty at its end.

        Raises:
            FileNotFoundError: There is no such file.
        """
        with self._open_file(path) as file:
            file.seek(offset)
            return file.read(limit)

    def _open_file(self, path: str) -> IO[bytes]:
        """Open a regular file of the run's folder. Links are not followed."""
        full = self._folder.path / path
        try:
            if any((self._folder.path / parent).is_symlink() for parent in PurePosixPath(path).parents):
                raise FileNotFoundError(f"{full} is in a folder that is a symbolic link")
            return open_regular_file(full)
        except NotRegularFileError as error:
            raise FileNotFoundError(f"{full}: {error.strerror}") from error

    def state(self) -> RunState:
        """Return the run's current state.

        Raises:
            RecordError: The run's records are damaged, or were written by a newer version.
        """
        result = read_result(self._folder)
        if result is not None:
            return result.state
        if not self._is_alive():
            return self._final_result().state  # it may have ended since its result was read above
        status = read_status(self._folder)
        return RunState.PENDING if status is None else status.state

    def wait(self, timeout: float | None = None) -> RunResultRecord:
        """Wait for the end of the run, including the removal of its scratch folder.

        Returns:
            Its result; ``RunResultRecord.without_record`` for a run whose supervisor left none.

        Raises:
            TimeoutError: The run has not ended within ``timeout`` seconds.
            RecordError: The result is damaged, or was written by a newer version.
        """
        if not self._wait_removed(timeout):
            raise TimeoutError(f"run {self._job.run_id} has not ended within {timeout:g} s")
        return self._final_result()

    def cancel(self, *, now: bool = False) -> None:
        """Send the supervisor a signal to stop the run, with its grace period or immediately."""
        number = signal.SIGQUIT if now else signal.SIGINT
        try:
            pidfd = open_pidfd(self._pid)
        except ProcessLookupError:
            return
        if pidfd is None:
            if self._is_alive():
                os.kill(self._pid, number)
            return
        try:
            # The pid is the supervisor's only while the run's lock is held. The lock is checked after pidfd_open, from
            # when on the descriptor refers to the same process.
            if self._is_alive():
                signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            return
        finally:
            os.close(pidfd)

    def _final_result(self) -> RunResultRecord:
        """Return the result of a run that has ended."""
        return read_result(self._folder) or self._lost_result()

    def _lost_result(self) -> RunResultRecord:
        """Return the result of a run whose supervisor exited without a result."""
        detail = "the supervisor exited without a result"
        try:
            stderr = _read_text(supervisor_stderr(self._job.run_id, 0))
        except FileNotFoundError:
            detail += ", and its log was removed"
        except OSError as error:
            detail += f", and its log cannot be read: {error}"
        else:
            detail += f". The end of its log:\n{stderr[-_STDERR_TAIL:]}" if stderr else ""
        return RunResultRecord.without_record(
            self._job,
            state=RunState.LOST,
            returncode=LAUNCHER_FAILED,
            cause=FailureCause.SUPERVISOR_DIED,
            detail=detail,
        )

    def _is_alive(self) -> bool:
        return is_run_alive(self._job.run_id)

    def _wait_ended(self, timeout: float | None) -> bool:
        """Wait until no process holds the run's lock. Return whether that happened within ``timeout`` seconds."""
        if not self._is_alive():  # also correct with a timeout of 0
            return True
        with self._waiter_lock:
            if self._waiter is None:
                # flock has no timeout and does not let signal handlers run, so another thread waits for it.
                self._waiter = threading.Thread(target=self._watch_lock, name="run-end", daemon=True)
                self._waiter.start()
        return wait_interruptibly(self._ended.wait, timeout)

    def _wait_removed(self, timeout: float | None) -> bool:
        """Wait for the end of the run, and for the shells that remove its scratch folders."""
        if not self._wait_ended(timeout):
            return False
        for process in self._processes:
            process.wait()
        return True

    def _watch_lock(self) -> None:
        wait_for_run_end(self._job.run_id)
        self._ended.set()


def _end_of(file: IO[bytes], limit: int) -> bytes:
    omitted = os.fstat(file.fileno()).st_size - limit
    if omitted <= 0:
        return file.read(limit)
    file.seek(omitted)
    return b"(%d bytes are omitted here)\n" % omitted + file.read(limit)


def _read_text(path: Path) -> str:
    with open_regular_file(path) as file:
        return _end_of(file, _MAX_FILE_BYTES).decode("utf-8", "replace").strip()
