"""A run on this machine, as the process that started it sees it, or any other of the same user's."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import platformdirs

from skyrl_modal.backends import Event, lost_record
from skyrl_modal.event_queue import Events, wait_for
from skyrl_modal.protocol.job import Job

#: Chunks of output that may wait between the reader and whoever takes the events.
_AHEAD = 16
#: Bytes of the output that are read at once, and that its pipe holds.
CHUNK = 1 << 20


def run_folder(run_id: str) -> Path:
    """This machine's own notes about a run: its lock, and the last words of a supervisor that died."""
    return platformdirs.user_state_path("skyrl_modal") / "runs" / run_id


def is_alive(run_id: str) -> bool:
    """Whether anything of a run on this machine still goes on, or is being started."""
    try:
        descriptor = os.open(run_folder(run_id) / "alive", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # Shared, so that two who ask at once do not take each other for the run.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


class LiveStreams:
    """The streams of a run that this process started, as events."""

    def __init__(self, output: int, events: int, caller: int | None) -> None:
        self._queue: Events[Event | None] = Events()
        self._room = threading.BoundedSemaphore(_AHEAD)
        self._caller = caller
        self._threads = [
            threading.Thread(target=self._read_output, args=(output,), name="run-output", daemon=True),
            threading.Thread(target=self._read_events, args=(events,), name="run-events", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _read_output(self, descriptor: int) -> None:
        with open(descriptor, "rb", buffering=0) as stream:
            while chunk := stream.read(CHUNK):
                self._room.acquire()
                self._queue.put(("output", chunk))
        self._queue.put(None)

    def _read_events(self, descriptor: int) -> None:
        with open(descriptor, encoding="utf-8") as stream:
            for line in stream:
                event = json.loads(line)
                kind = event["event"]
                self._queue.put((kind, event["result" if kind == "result" else "state" if kind == "state" else "text"]))
        self._queue.put(None)

    def events(self) -> Iterator[Event]:
        """What happens, until both streams have ended; the result comes last."""
        result: Event | None = None
        open_streams = len(self._threads)
        while open_streams:
            event = self._queue.next()
            if event is None:
                open_streams -= 1
            elif event[0] == "result":
                result = event  # told last, after the output that may still be on its way
            else:
                yield event
                if event[0] == "output":
                    self._room.release()
        if self._caller is not None:
            os.close(self._caller)
            self._caller = None
        if result is not None:
            yield result


class LocalExecution:
    """A run on this machine."""

    def __init__(
        self,
        job: Job,
        handle: Mapping[str, Any],
        *,
        processes: Sequence[subprocess.Popen[bytes]] = (),
        live: LiveStreams | None = None,
    ) -> None:
        self._job = job
        self.handle = handle
        self._run_dir = Path(handle["run_dir"])
        self._processes = processes
        self._live = live
        self._ended = threading.Event()
        self._waiter: threading.Thread | None = None
        self._starting = threading.Lock()

    @property
    def url(self) -> str | None:
        """Ray's dashboard, where the run has one and goes on."""
        try:
            state = json.loads((self._run_dir / "state.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return state.get("url") or None if self._is_alive() else None

    @property
    def log_path(self) -> str:
        """The path of output.log on this machine."""
        return str(self._run_dir / "output.log")

    def wait_started(self) -> None:
        """Nothing is left to wait for: the supervisor runs when the backend's ``start`` returns."""

    def events(self) -> Iterator[Event]:
        """What happens, live: from the run's own streams where this process started it, else from output.log."""
        if self._live is not None:
            kind, shown = "", 0
            for event in self._live.events():
                kind = event[0]
                shown += len(event[1]) if kind == "output" else 0
                yield event
            record = self.wait()
            if kind != "result":
                # A supervisor that was killed had maybe kept what it could not show any more.
                while data := self.read_log(shown):
                    shown += len(data)
                    yield "output", data
                yield "result", record
            return
        offset = 0
        while True:
            ended = self._wait_ended(0.1)
            while data := self.read_log(offset):
                offset += len(data)
                yield "output", data
            if ended:
                break
        yield "result", self._result() or self._lost()

    def log_size(self) -> int:
        """Bytes that output.log has now.

        Raises:
            FileNotFoundError: The run has ended and its folder is gone, as with its volume.
        """
        try:
            return (self._run_dir / "output.log").stat().st_size
        except FileNotFoundError:
            if self._run_dir.is_dir() or self._is_alive():
                return 0
            raise FileNotFoundError(f"{self._run_dir} is gone, and the output with it") from None

    def read_log(self, offset: int) -> bytes:
        """Up to 1 MiB of output.log from an offset on."""
        try:
            with open(self._run_dir / "output.log", "rb") as log:
                log.seek(offset)
                return log.read(CHUNK)
        except FileNotFoundError:
            return b""

    def read_files(self, folder: str) -> Iterator[tuple[str, bytes]]:
        """The files below a folder of the run's own."""
        root = self._run_dir / folder
        if not root.is_dir():
            raise FileNotFoundError(f"{root} is not there")
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            yield path.relative_to(root).as_posix(), path.read_bytes()

    def state(self) -> str:
        """The run's state now."""
        result = self._result()
        if result is not None:
            return str(result["state"])
        if not self._is_alive():
            # It may have ended between the two looks.
            return str((self._result() or self._lost())["state"])
        try:
            return str(json.loads((self._run_dir / "state.json").read_text(encoding="utf-8"))["state"])
        except FileNotFoundError:
            return "pending"

    def wait(self, timeout: float | None = None) -> Mapping[str, Any]:
        """Wait for the end, the scratch folder's removal included; gives the result's record."""
        if not self._wait_ended(timeout):
            raise TimeoutError(f"run {self._job.id} has not ended within {timeout:g} s")
        for process in self._processes:
            process.wait()
        return self._result() or self._lost()

    def cancel(self, *, now: bool = False) -> None:
        """Ask the supervisor to end the run."""
        pid = int(self.handle["pid"])
        number = signal.SIGQUIT if now else signal.SIGINT
        if not hasattr(os, "pidfd_open"):
            if self._is_alive():
                os.kill(pid, number)
            return
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            # The pid is the supervisor's only while the lock is held: looked at after the process was pinned.
            if self._is_alive():
                signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            return
        finally:
            os.close(handle)

    def _result(self) -> Mapping[str, Any] | None:
        try:
            record: Mapping[str, Any] = json.loads((self._run_dir / "result.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return record

    def _lost(self) -> Mapping[str, Any]:
        """The record of a run whose supervisor died without leaving one."""
        detail = "its supervisor ended without a result"
        try:
            words = (run_folder(self._job.id) / "supervisor.err").read_text(encoding="utf-8", errors="replace").strip()
        except FileNotFoundError:
            detail += ", and this machine's notes about it are gone"
        else:
            detail += f"; its last words:\n{words[-2000:]}" if words else ""
        return lost_record(self._job, detail)

    def _is_alive(self) -> bool:
        return is_alive(self._job.id)

    def _wait_ended(self, timeout: float | None) -> bool:
        """Wait until nobody holds the run's lock any more."""
        if not self._is_alive():  # told at once, also where there is no time to wait
            return True
        with self._starting:
            if self._waiter is None:
                self._waiter = threading.Thread(target=self._watch_lock, name="run-end", daemon=True)
                self._waiter.start()
        return wait_for(self._ended.wait, timeout)

    def _watch_lock(self) -> None:
        try:
            descriptor = os.open(run_folder(self._job.id) / "alive", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            self._ended.set()
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)
        self._ended.set()
