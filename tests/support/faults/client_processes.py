"""Handles of the campaign's client processes: the caller of a run, and an observer of runs."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from .checks import LAUNCHER_MESSAGE


class CallerProcess:
    """The process that calls ``Launcher.run`` (caller.py), with its output."""

    def __init__(self, parameters: Path, result: Path, env: dict[str, str], cwd: Path) -> None:
        self._changed = threading.Condition()
        self._may_read = threading.Event()
        self._may_read.set()
        self._out, self._err = bytearray(), bytearray()
        self._newlines = 0
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.faults.caller", str(parameters), str(result)],
            env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self._out), daemon=True),
            threading.Thread(target=self._read, args=(self.process.stderr, self._err), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: IO[bytes], target: bytearray) -> None:
        with stream:
            while data := os.read(stream.fileno(), 1 << 16):
                if target is self._out:
                    self._may_read.wait()
                with self._changed:
                    target += data
                    if target is self._out:
                        self._newlines += data.count(b"\n")
                    self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def stop_reading(self) -> None:
        """Do not read standard output any more, until ``continue_reading`` is called."""
        self._may_read.clear()

    def continue_reading(self) -> None:
        """Read standard output again."""
        self._may_read.set()

    def _wait(self, condition: Callable[[], object], timeout: float) -> bool:
        with self._changed:
            ended = self._changed.wait_for(
                lambda: condition() or not any(reader.is_alive() for reader in self._readers), timeout
            )
            return bool(ended and condition())

    def wait_for_lines(self, count: int, timeout: float) -> bool:
        """Wait for `count` lines of output. Return False if the process exits before, or the timeout expires."""
        return self._wait(lambda: self._newlines >= count, timeout)

    def wait_for_restart(self, count: int, timeout: float) -> bool:
        """Wait until the command was restarted `count` times and has printed some lines since then."""

        def has_restarted() -> bool:
            _, *restarts = LAUNCHER_MESSAGE.split(self._out)
            return len(restarts) == count and restarts[-1].count(b"\n") > 2

        return self._wait(has_restarted, timeout)

    def wait_for_message(self, text: str, timeout: float) -> bool:
        """Wait until standard error contains a text."""
        return self._wait(lambda: text.encode() in self._err, timeout)

    @property
    def run_id(self) -> str:
        """The run's id from the launcher's first message; empty before that."""
        for line in self.messages.splitlines():
            fields = line.split()
            if fields[:3] == ["skyrl-modal", "|", "run"]:
                return fields[3].rstrip(":")
        return ""

    @property
    def output(self) -> bytes:
        """Standard output so far."""
        with self._changed:
            return bytes(self._out)

    @property
    def messages(self) -> str:
        """Standard error so far."""
        with self._changed:
            return self._err.decode("utf-8", "replace")

    def signal(self, number: int) -> None:
        """Send a signal to the process, if it still runs."""
        if self.process.poll() is None:
            self.process.send_signal(number)

    def wait(self, timeout: float) -> int | None:
        """Wait for the exit and the rest of the output. Return the exit status, or None after the timeout."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        for reader in self._readers:
            reader.join(timeout)
        return code

    def close(self) -> None:
        """Kill the process if it still runs."""
        self.continue_reading()
        if self.process.poll() is None:
            self.process.kill()
            self.process.send_signal(signal.SIGCONT)
        self.process.wait()
        for reader in self._readers:
            reader.join(5)


class ObserverProcess:
    """Another process of the same user that looks at runs (observer.py)."""

    def __init__(self, env: dict[str, str], cwd: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.faults.observer"],
            env=env, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def request(self, answer_timeout: float, **request: Any) -> dict[str, Any]:
        """Send a request and return the answer.

        Raises:
            TimeoutError: There was no answer in time.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write((json.dumps(request) + "\n").encode())
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], answer_timeout)[0]:
            raise TimeoutError(f"no answer within {answer_timeout:g} s")
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.communicate()
