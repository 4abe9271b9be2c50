"""Copy the command's output, masked, to output.log and to the live view."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from io import FileIO

from skyrl_modal.container.live_view import LiveView
from skyrl_modal.container.masking import SecretMask
from skyrl_modal.container.output_times import OutputTimes
from skyrl_modal.protocol.log_lines import prefixed
from skyrl_modal.protocol.result import OutputRecord
from skyrl_modal.protocol.run_folder import OUTPUT_TIMES_FILE

#: Size of the command's output pipe, and of one read from it.
CHUNK_SIZE = 1 << 20


class OutputRecorder:
    """Records the output of all attempts of a run.

    Args:
        path: The log. Output is appended to it.
        live: The live view.
        report: Receives a message if the log cannot be written.
        secrets: The values to mask.

    Attributes:
        last_output: The time of ``time.monotonic()`` of the last output.
    """

    def __init__(self, path: str, live: LiveView, report: Callable[[str], None], secrets: SecretMask) -> None:
        self._path = path
        self._times = OutputTimes(os.path.join(os.path.dirname(path), OUTPUT_TIMES_FILE))
        self._secrets = secrets
        self._live = live
        self._report = report
        self._log: FileIO | None = None
        self._log_bytes = 0
        self._log_error: str | None = None
        self._total = 0
        self._stored = 0
        self._missing = 0
        # Whether the log has the same bytes at the same positions as the output.
        self._is_log_exact = True
        self.last_output = time.monotonic()

    @property
    def record(self) -> OutputRecord:
        """What was written to the log."""
        return OutputRecord(bytes=self._log_bytes, error=self._log_error, total=self._total, stored=self._stored)

    def copy_from(self, descriptor: int) -> None:
        """Copy everything from a pipe until all of its writers have closed it, and close the descriptor."""
        masker = self._secrets.new_masker()
        self._live.begin()
        self._open()
        buffer = memoryview(bytearray(CHUNK_SIZE))  # a new object of this size for each read would take longer
        with open(descriptor, "rb", buffering=0) as source:
            while count := source.readinto(buffer):
                self.last_output = time.monotonic()
                self._write(masker.feed(bytes(buffer[:count])))
                self._live.wait_for_space()
            self._write(masker.flush())
        self._close()

    def end_command(self) -> None:
        """Let ``copy_from`` wait for the reader of the live view only for a limited time from now on."""
        self._live.end()

    def finish(self) -> None:
        """Wait, for a limited time, until the reader of the live view has received what the log does not contain."""
        self._live.finish()

    def write_message(self, text: str) -> None:
        """Write a launcher message into the output."""
        self._open()
        self._write(prefixed(self._secrets.mask_text(text)).encode())
        self._close()

    def _open(self) -> None:
        try:
            self._log = FileIO(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "a")
            self._log_bytes = os.fstat(self._log.fileno()).st_size
        except OSError as error:
            self._give_up_log(error)
            return
        # An earlier container may have begun the log, and the command may have changed it.
        self._is_log_exact = self._is_log_exact and self._log_bytes == self._total
        if self._missing:
            text = prefixed(f"{self._missing} bytes of output are missing here ({self._log_error})")
            if self._write_log(b"\n" + text.encode()):
                self._missing = 0

    def _close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    def _give_up_log(self, error: OSError) -> None:
        # The command continues without the log: a full disk must not end a training run that writes nothing more.
        self._close()
        self._is_log_exact = False
        self._log_error = f"output.log ends after {self._log_bytes} bytes: {error.strerror or error}"
        self._report(f"{self._log_error}; the command continues")

    def _write(self, data: bytes) -> None:
        if not data:
            return
        if self._log is not None:
            self._times.record(self._log_bytes)
        is_exact = self._is_log_exact
        written = self._write_log(data)
        self._missing += len(data) - written
        self._stored += written if is_exact else 0
        self._total += len(data)
        self._live.write(data, self._stored)

    def _write_log(self, data: bytes) -> int:
        """Append to the log, and return the number of bytes that were written."""
        view = memoryview(data)
        while self._log is not None and view:
            try:
                written = self._log.write(view)
            except OSError as error:
                self._give_up_log(error)
                break
            self._log_bytes += written
            view = view[written:]
        return len(data) - len(view)
