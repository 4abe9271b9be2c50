"""Destinations of a command's output."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Callable
from typing import IO

from skyrl_modal.errors import SpecError

#: A callable that accepts bytes, a binary file, or None for standard output.
OutputTarget = Callable[[bytes], object] | IO[bytes] | None
Sink = Callable[[bytes], object]


def open_sink(target: OutputTarget) -> Sink:
    """Return a function that writes output to a target.

    Raises:
        SpecError: The target is neither a callable nor a binary file.
    """
    if target is None:
        return _StandardOutput().write
    if callable(target):
        return target
    write = getattr(target, "write", None)
    if write is None or isinstance(getattr(target, "encoding", None), str):
        raise SpecError("output", target, 'pass a callable that accepts bytes, or a file opened with "wb"')

    def write_completely(data: bytes) -> None:
        view = memoryview(data)
        while view:
            # An unbuffered file may write a part only; other objects return None.
            written = write(view)
            view = view[len(view) if written is None else written :]
        flush = getattr(target, "flush", None)
        if flush is not None:
            flush()

    return write_completely


class _StandardOutput:
    """Writes to ``sys.stdout`` as it is at that time: bytes if it accepts them, else text, as in a notebook."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def write(self, data: bytes) -> None:
        stream = sys.stdout
        if stream is None:
            return
        binary = getattr(stream, "buffer", None)
        if binary is not None:
            stream.flush()
            binary.write(data)
            binary.flush()
        else:
            stream.write(self._decoder.decode(data))
            stream.flush()
