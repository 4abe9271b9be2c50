"""The command's output: masked, kept whole in output.log, and shown to whoever watches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from io import FileIO
from pathlib import Path

from skyrl_modal.container.masking import Masker

#: Bytes read of the command's output at once.
CHUNK = 1 << 20


class Output:
    """Where the output goes.

    Args:
        path: The log; it is appended to.
        live: Takes the bytes as they come; it may raise OSError when nobody reads any more.
        say: Takes a line of ours.

    Attributes:
        log_bytes: How much the log holds.
        log_error: Why the log is not whole; None where it is.
    """

    def __init__(self, path: Path, live: Callable[[bytes], None], say: Callable[[str], None]) -> None:
        self._path = path
        self._live: Callable[[bytes], None] | None = live
        self._say = say
        self._log: FileIO | None = None
        self.log_bytes = 0
        self.log_error: str | None = None

    def pump(self, reading: int, secrets: Iterable[str]) -> None:
        """Take all that comes from a descriptor, until nobody can write to it any more; it is closed then."""
        masker = Masker(secrets)
        self._open()
        with open(reading, "rb", buffering=0) as source:
            while chunk := source.read(CHUNK):
                self._emit(masker.feed(chunk))
            self._emit(masker.flush())
        self._close()

    def note(self, text: str) -> None:
        """Put lines of ours into the output itself."""
        self._open()
        self._emit("".join(f"skyrl-modal | {line}\n" for line in text.splitlines()).encode())
        self._close()

    def _open(self) -> None:
        try:
            self._log = FileIO(self._path, "a")
            self.log_bytes = self._log.tell()
        except OSError as error:
            self._give_up(error)

    def _close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    def _give_up(self, error: OSError) -> None:
        # A full disk must not stop a training run that needs no more of it.
        self._close()
        self.log_error = f"output.log ends after {self.log_bytes} bytes: {error.strerror or error}"
        self._say(f"{self.log_error}; the command goes on")

    def _emit(self, data: bytes) -> None:
        view = memoryview(data)
        while self._log is not None and view:
            try:
                written = self._log.write(view)
            except OSError as error:
                self._give_up(error)
                break
            self.log_bytes += written
            view = view[written:]
        if self._live is not None and data:
            try:
                self._live(data)
            except OSError:  # nobody reads any more; the log is what remains
                self._live = None
