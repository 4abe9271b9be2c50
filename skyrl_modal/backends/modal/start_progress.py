"""What the start of a run on Modal waits for: uploads, the build of the image, a container."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence

from skyrl_modal.backends.base import Progress
from skyrl_modal.backends.modal.sent_bytes import SentBytes

#: Lines of an image's build that are kept until they are read.
MAX_LINES = 10_000
#: Characters of an incomplete line that are kept.
MAX_LINE = 4096
_UPLOAD, _BUILD, _BOTH = "uploading files", "building the image", "building and uploading"


class StartProgress:
    """Collects what the tasks of a run report, for another thread that displays it.

    Args:
        resources: What a container needs, such as ``"H100:8"``.
    """

    def __init__(self, resources: str) -> None:
        self.resources = resources
        self._lock = threading.Lock()
        self._phase = ""
        self._detail = ""
        self._begin: float | None = None
        self._uploads: dict[int, tuple[int, int]] = {}
        self._build_line: str | None = None
        self._partial_line = ""
        self._lines: deque[str] = deque(maxlen=MAX_LINES)
        self._sent: SentBytes | None = None

    # -- phases ------------------------------------------------------------------------------------------------------

    def begin(self, phase: str, *, begin: float | None = None) -> None:
        """Note that another phase begins.

        Args:
            phase: What happens.
            begin: When it began, in seconds since the epoch; None for now.
        """
        with self._lock:
            self._phase, self._detail, self._begin = phase, "", begin
            self._uploads.clear()
            self._build_line, self._sent = None, None

    def wait_for_container(self, begin: float, *, is_first: bool) -> None:
        """Note that the run waits for a container."""
        self.begin(f"waiting for {self.resources if is_first else 'another container'}", begin=begin)

    def explain(self, detail: str) -> None:
        """Note how far the phase is, or why it takes long."""
        with self._lock:
            self._detail = detail

    def end(self) -> None:
        """Note that the run does not wait any more."""
        self.begin("")

    # -- what Modal's client reports ---------------------------------------------------------------------------------

    def uploaded(self, upload: int, done: int, found: int) -> None:
        """Note how many files of an upload are on the server, of those that were found until now."""
        with self._lock:
            self._uploads[upload] = (done, found)

    def upload_ended(self, upload: int) -> None:
        """Note that an upload is complete."""
        with self._lock:
            _, found = self._uploads.get(upload, (0, 0))
            self._uploads[upload] = (found, found)

    def built(self, text: str) -> None:
        """Note a part of the log of the image's build."""
        with self._lock:
            *lines, rest = (self._partial_line + text).split("\n")
            self._partial_line = rest[-MAX_LINE:]
            # A progress bar begins again after a carriage return. Only its last state is displayed.
            lines = [line.rstrip("\r").rpartition("\r")[2] for line in lines]
            self._lines += lines
            shown = [line.strip() for line in (*lines, rest.rstrip("\r").rpartition("\r")[2]) if line.strip()]
            self._build_line = shown[-1] if shown else self._build_line or ""

    def saving_image(self, part: float) -> None:
        """Note which part of the built image is stored."""
        with self._lock:
            self._build_line = f"saving the image: {100 * part:.0f} %"

    # -- for the display ---------------------------------------------------------------------------------------------

    def progress(self) -> Progress | None:
        """Return what the run waits for now; None for nothing."""
        with self._lock:
            if not self._phase:
                return None
            seconds = None if self._begin is None else max(0.0, time.time() - self._begin)
            phase, detail = self._phase, self._detail
            done = sum(count for count, _ in self._uploads.values())
            found = sum(count for _, count in self._uploads.values())
            if self._build_line is not None:
                phase, detail = _BUILD, self._build_line
            if done < found:
                upload = self._describe_upload(done, found)
                phase, detail = (_UPLOAD, upload) if self._build_line is None else (_BOTH, f"{upload}; {detail}")
            return Progress(phase, detail, seconds)

    def _describe_upload(self, done: int, found: int) -> str:
        self._sent = self._sent or SentBytes()
        sent = self._sent.read()
        rate = "" if sent is None else f", {sent.bytes / 1e6:,.1f} MB, {sent.rate / 1e6:,.1f} MB/s"
        return f"{done:,} of {found:,} files{rate}"

    def take_lines(self) -> Sequence[str]:
        """Return the lines of the image's build since the last call."""
        with self._lock:
            lines = list(self._lines)
            self._lines.clear()
        return lines
