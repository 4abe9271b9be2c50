"""Lines of output from chunks of bytes."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator

#: Number of lines of output in an error.
TAIL_LINES = 30
#: Number of bytes at the end of the output from which these lines are extracted.
TAIL_BYTES = 1 << 16


def decode_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    r"""Yield lines without their newline from chunks, which may end anywhere, also inside a character.

    Example:
        >>> list(decode_lines([b"on", b"e\ntw", b"o"]))
        ['one', 'two']
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    parts: list[str] = []  # of the last line, which are joined when it ends: it may be as long as the output
    for chunk in chunks:
        first, *others = decoder.decode(chunk).split("\n")
        parts.append(first)
        if others:
            yield "".join(parts)
            yield from others[:-1]
            parts = [others[-1]]
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
