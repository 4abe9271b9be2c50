"""The output of a run as bytes: all of it, its last lines, and what is added to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from skyrl_modal.backends.output_tail import find_tail, skip_output
from skyrl_modal.errors import RunLost
from skyrl_modal.protocol.events import MessageEvent, MessageLevel, OutputEvent, RunEvent

if TYPE_CHECKING:
    from skyrl_modal.backends import Execution

#: Bytes that are searched for newlines at a time, from the end of the output.
SEARCH_BLOCK = 1 << 20


class OutputReader:
    """Reads the output of a run. The memory that is used does not depend on the output or on the number of lines.

    Args:
        run_id: The run's id.
        execution: The run.
        warn: Receives a warning if output is missing, for example after the connection was lost.
    """

    def __init__(self, run_id: str, execution: Execution, warn: Callable[[str], object]) -> None:
        self._run_id = run_id
        self._execution = execution
        self._warn = warn

    def read(self, *, follow: bool = False, tail: int | None = None) -> Iterator[bytes]:
        """Yield the output in pieces, which may end anywhere, also inside a character.

        Args:
            follow: Whether to continue until the run has ended.
            tail: Number of existing lines to begin with; None for all.

        Raises:
            RunLost: The run has ended, and its output does not exist any more.
        """
        if tail is not None and not follow and (end := self._read_last_lines(tail)) is not None:
            yield end
            return
        try:
            size = self._execution.log_size()
        except FileNotFoundError as error:
            raise RunLost(run_id=self._run_id, detail=str(error)) from error
        begin = 0 if tail is None else find_tail(self._read_block, size, tail, SEARCH_BLOCK)
        if follow and tail is None:
            size = 0  # the events begin with the existing output
        else:
            yield from self.read_range(begin, size)
        if follow:
            yield from self._follow(size)

    def read_end(self, length: int) -> bytes:
        """Return the last bytes of the output.

        Raises:
            FileNotFoundError: The run has ended, and its output does not exist any more.
        """
        size = self._execution.log_size()
        return b"".join(self.read_range(max(0, size - length), size))

    def read_range(self, offset: int, end: int) -> Iterator[bytes]:
        """Yield the output between two offsets in pieces. It ends early if the output has become shorter."""
        while offset < end and (data := self._execution.read_log(offset)[: end - offset]):
            offset += len(data)
            yield data

    def _read_block(self, offset: int, end: int) -> bytes:
        return b"".join(self.read_range(offset, end))

    def _read_last_lines(self, count: int) -> bytes | None:
        """Return the last lines if the backend can read them without the rest of the output; None if it cannot."""
        read_last_lines: Callable[[int], bytes | None] | None = getattr(self._execution, "read_last_lines", None)
        return None if read_last_lines is None else read_last_lines(count)

    def _follow(self, offset: int) -> Iterator[bytes]:
        for event in self._events_from(offset):
            match event:
                case OutputEvent(data):
                    yield data
                case MessageEvent(text, MessageLevel.WARNING):
                    self._warn(text)

    def _events_from(self, offset: int) -> Iterator[RunEvent]:
        events_from: Callable[[int], Iterator[RunEvent]] | None = getattr(self._execution, "events_from", None)
        return skip_output(self._execution.events(), offset) if events_from is None else events_from(offset)
