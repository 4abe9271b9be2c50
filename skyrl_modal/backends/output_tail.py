"""The last lines of some output, and events from a position of the output on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from skyrl_modal.protocol.events import OutputEvent, RunEvent

#: Bytes at the end that are searched for newlines first.
FIRST_BLOCK = 1 << 16


def find_tail(read: Callable[[int, int], bytes], size: int, count: int, block: int) -> int:
    r"""Return the offset at which the last lines of some output begin. One block is in the memory at a time.

    The first blocks are smaller: a few lines are at the very end.

    Args:
        read: Returns the bytes between two offsets.
        size: Size of the output.
        count: Number of lines. A last line may have no newline.
        block: Number of bytes to read at a time at most.

    Example:
        >>> content = b"one\ntwo\nthree\n"
        >>> find_tail(lambda begin, end: content[begin:end], len(content), 2, block=4)
        4
    """
    if count <= 0 or size <= 0:
        return size
    end, length = size, min(block, FIRST_BLOCK)
    while end > 0:
        begin, length = max(0, end - length), min(block, 2 * length)
        data = read(begin, end)
        # The newline at the very end belongs to the last line, and begins no other one.
        position = len(data) - 1 if end == size and data.endswith(b"\n") else len(data)
        newlines = data.count(b"\n", 0, position)
        if newlines >= count:
            for _ in range(count):
                position = data.rindex(b"\n", 0, position)
            return begin + position + 1
        count -= newlines
        end = begin
    return 0


def last_lines_of(content: bytes, count: int) -> bytes:
    r"""Return the last lines of some output, with their newlines.

    Example:
        >>> last_lines_of(b"one\ntwo\nthree\n", 2)
        b'two\nthree\n'
    """
    return content[find_tail(lambda begin, end: content[begin:end], len(content), count, max(1, len(content))) :]


def skip_output(events: Iterator[RunEvent], skip: int) -> Iterator[RunEvent]:
    """Yield events without the first bytes of the output.

    Example:
        >>> list(skip_output(iter([OutputEvent(b"one"), OutputEvent(b"two")]), 4))
        [OutputEvent(data=b'wo')]
    """
    for event in events:
        if skip and isinstance(event, OutputEvent):
            skipped = min(skip, len(event.data))
            skip -= skipped
            if skipped < len(event.data):
                yield OutputEvent(event.data[skipped:])
        else:
            yield event
