"""The log of a call on Modal: pieces of text, which may be repeated, late or damaged, as one stream of events."""

from __future__ import annotations

import asyncio
import hashlib

from skyrl_modal.backends.modal.container_wait import ContainerWait
from skyrl_modal.backends.modal.event_channel import EventChannel
from skyrl_modal.protocol.events import OutputEvent, StateEvent
from skyrl_modal.protocol.log_lines import parse_line, parse_state_line
from skyrl_modal.protocol.result import StreamDigest


class LogStream:
    """Deduplicates the entries of a call's log across reconnections, and forwards them as events.

    The command's output is standard output. The container's messages and states are lines of standard error. Modal's
    own messages have the source ``system``.

    Args:
        channel: Receives the events.
        wait: Is notified of what shows that a container has started or is preempted; None if nothing waits for it.

    Attributes:
        is_finished: Whether nothing is to be forwarded any more.
    """

    def __init__(self, channel: EventChannel, wait: ContainerWait | None = None) -> None:
        self.is_finished = False
        self._channel = channel
        self._wait = wait
        #: Characters of each source that were forwarded, and those that a repeated log still has to skip.
        self._forwarded = {"stdout": 0, "stderr": 0, "system": 0}
        self._to_skip = dict(self._forwarded)
        self._hash = hashlib.sha256()
        self._partial_lines = {"stderr": "", "system": ""}
        self._output_added = asyncio.Event()

    def restart(self) -> None:
        """Expect the log from its beginning. What was forwarded is skipped."""
        self._to_skip = dict(self._forwarded)

    def add(self, source: str, text: str) -> None:
        """Forward an entry of the log, without the part that was forwarded before."""
        skipped = min(self._to_skip[source], len(text))
        self._to_skip[source] -= skipped
        new = text[skipped:]
        if not new:
            return
        self._forwarded[source] += len(new)
        if self._wait is not None:
            self._wait.entry_arrived()
        if source == "stdout":
            data = new.encode("utf-8", "replace")
            self._hash.update(data)
            self._channel.put(OutputEvent(data))
            self._output_added.set()
            return
        *lines, self._partial_lines[source] = (self._partial_lines[source] + new).split("\n")
        for line in lines:
            self._forward_line(source, line)

    def _forward_line(self, source: str, line: str) -> None:
        if source == "system":
            self._channel.message(f"Modal: {line}")
        elif (reported := parse_state_line(line)) is not None:
            event = StateEvent(*reported)
            if self._wait is not None:
                self._wait.state_arrived(event.state)
            self._channel.put(event)
        else:
            text, cause = parse_line(line)
            if self._wait is not None:
                self._wait.message_arrived(cause)
            self._channel.message(text, cause)

    def flush(self) -> None:
        """Forward last lines that have no newline."""
        for source, line in self._partial_lines.items():
            if line:
                self._forward_line(source, line)
            self._partial_lines[source] = ""

    async def wait_until_complete(self, expected: StreamDigest, timeout: float) -> None:
        """Wait until all characters of the output were forwarded, or none has arrived for ``timeout`` seconds."""
        while self._forwarded["stdout"] < expected.characters:
            self._output_added.clear()
            try:
                async with asyncio.timeout(timeout):
                    await self._output_added.wait()
            except TimeoutError:
                return

    def is_complete(self, expected: StreamDigest) -> bool:
        """Return whether the forwarded output is the text that the container wrote."""
        return StreamDigest(characters=self._forwarded["stdout"], sha256=self._hash.hexdigest()) == expected

    def add_missing_end(self, output: str) -> bool:
        """Forward the end of the output that was not forwarded yet. The log itself is ignored from then on.

        Args:
            output: The complete output.

        Returns:
            False, without forwarding anything, if the forwarded output is not the beginning of it.
        """
        forwarded = self._forwarded["stdout"]
        if hashlib.sha256(output[:forwarded].encode("utf-8", "replace")).digest() != self._hash.digest():
            return False
        self.is_finished = True
        self._to_skip["stdout"] = 0
        self.add("stdout", output[forwarded:])
        return True


def stream_digest(text: str) -> StreamDigest:
    """Return the digest of a text, as the container calculates it for the text that it writes."""
    return StreamDigest(characters=len(text), sha256=hashlib.sha256(text.encode("utf-8", "replace")).hexdigest())
