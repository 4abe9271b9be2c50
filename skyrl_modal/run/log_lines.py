"""Lines of output from chunks of bytes."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Iterator

#: Number of lines of output in an error.
TAIL_LINES = 30
#: Number of bytes at the end of the output from which these lines are extracted.
TAIL_BYTES = 1 << 16
#: Characters after which a line is divided, so that an output without newlines does not fill the memory. Commands may
#: print lines of 100 MB.
MAX_LINE_LENGTH = 128 << 20


def decode_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    r"""Yield lines without their newline from chunks, which may end anywhere, also inside a character.

    Only ``\n`` ends a line: ``\r`` and other line ends of Unicode are part of it. The last line may have no newline.
    Bytes that are not UTF-8 become U+FFFD. A line that is longer than ``MAX_LINE_LENGTH`` is divided. The time is
    proportional to the length, also without newlines.

    Example:
        >>> list(decode_lines([b"on", b"e\ntw", b"o"]))
        ['one', 'two']
        >>> list(decode_lines([b"10 %\r", b"20 %\r\n", b"\xff"]))
        ['10 %\r20 %\r', '\ufffd']
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    parts: list[str] = []  # of the last line, which are joined when it ends
    length = 0
    for chunk in chunks:
        first, *others = decoder.decode(chunk).split("\n")
        parts.append(first)
        length += len(first)
        if others:
            yield "".join(parts)
            yield from others[:-1]
            parts, length = [others[-1]], len(others[-1])
        elif length > MAX_LINE_LENGTH:
            yield "".join(parts)
            parts, length = [], 0
    rest = "".join(parts) + decoder.decode(b"", final=True)
    if rest:
        yield rest


def last_lines(data: bytes, count: int) -> list[str]:
    r"""Return the last lines of some output.

    Example:
        >>> last_lines(b"one\ntwo\nthree\n", 2)
        ['two', 'three']
    """
    lines = data.decode("utf-8", "replace").split("\n")
    if lines[-1] == "":
        lines.pop()
    return lines[-count:] if count > 0 else []


def find_tail(read: Callable[[int, int], bytes], size: int, count: int, block: int) -> int:
    r"""Return the offset at which the last lines of some output begin. One block is in the memory at a time.

    Args:
        read: Returns the bytes between two offsets.
        size: Size of the output.
        count: Number of lines. A last line may have no newline.
        block: Number of bytes to read at a time.

    Example:
        >>> content = b"one\ntwo\nthree\n"
        >>> find_tail(lambda begin, end: content[begin:end], len(content), 2, block=4)
        4
    """
    if count <= 0 or size <= 0:
        return size
    end = size
    while end > 0:
        begin = max(0, end - block)
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
