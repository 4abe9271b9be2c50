"""Lines of output from chunks of bytes."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator

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
