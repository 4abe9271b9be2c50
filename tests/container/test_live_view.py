"""The live view of the output: what a reader receives that stops reading, and how long the writer waits for it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from skyrl_modal.container.live_view import MAX_UNSTORED_BYTES, READER_TIMEOUT, PipeWriter

CHUNK = bytes(range(256)) * 4096


class Pipe:
    """A pipe writer, the other end of its pipe, and the file that contains the stream.

    Attributes:
        writer: The writer.
        reader: The end to read from.
        stream: Everything that was written.
        stored: The size of the file.
    """

    def __init__(self, folder: Path) -> None:
        self.reader, self._descriptor = os.pipe()
        self._path = folder / "output.log"
        self._path.touch()
        self.writer = PipeWriter(self._descriptor, self._path)
        self.stream = b""
        self.stored = 0
        self._is_reader_closed = False

    def write(self, data: bytes, *, is_stored: bool = True) -> None:
        """Write to the pipe, and to the file before."""
        if is_stored:
            with self._path.open("ab") as file:
                file.write(data)
            self.stored += len(data)
        self.stream += data
        self.writer.write(data, self.stored)

    def remove_file(self) -> None:
        """Remove the file, as a command may do."""
        self._path.unlink()

    def read(self, size: int) -> bytes:
        """Read a number of bytes, or less if the pipe was closed."""
        data = b""
        while len(data) < size and (chunk := os.read(self.reader, size - len(data))):
            data += chunk
        return data

    def read_available(self) -> bytes:
        """Read until the pipe is empty."""
        os.set_blocking(self.reader, False)
        data = b""
        try:
            while chunk := os.read(self.reader, 1 << 20):
                data += chunk
        except BlockingIOError:
            pass
        return data

    def close_reader(self) -> None:
        """Close the end to read from."""
        if not self._is_reader_closed:
            self._is_reader_closed = True
            os.close(self.reader)

    def close(self) -> None:
        """Close both ends, when the thread of the writer has ended."""
        self.close_reader()
        if self.writer._thread is not None:
            self.writer.write(b"ends the thread if it waits for data")
            self.writer._thread.join()
        os.close(self._descriptor)


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Pipe]:
    """Return a pipe."""
    pipe = Pipe(tmp_path)
    yield pipe
    pipe.close()


def test_reader_continues_from_the_file(pipe: Pipe) -> None:
    """A reader that stopped receives the whole stream later; bytes that the file contains are not kept in memory."""
    for _ in range(5):
        pipe.write(CHUNK)

    assert pipe.writer.unstored_bytes == 0
    assert pipe.read(len(pipe.stream)) == pipe.stream
    pipe.write(b"end")
    assert pipe.read(3) == b"end"


def test_reader_continues_from_memory(pipe: Pipe) -> None:
    """Bytes that could not be stored, from the middle of a chunk on, are kept in memory in their order."""
    pipe.write(CHUNK)
    pipe.write(CHUNK, is_stored=False)
    pipe.write(b"end", is_stored=False)

    assert pipe.read(len(pipe.stream)) == pipe.stream
    pipe.writer.finish()
    assert pipe.writer.unstored_bytes == 0


def test_writer_without_a_reader_does_not_wait(pipe: Pipe) -> None:
    """If the file contains everything, the end does not wait for the reader, which has received a beginning."""
    for _ in range(3):
        pipe.write(CHUNK)

    begin = time.monotonic()
    pipe.writer.wait_for_space()
    pipe.writer.finish()

    assert time.monotonic() - begin < READER_TIMEOUT
    received = pipe.read_available()
    assert received
    assert pipe.stream.startswith(received)


def test_memory_is_limited(pipe: Pipe) -> None:
    """The writer waits if neither the file nor the memory accepts more, until the reader continues."""
    while pipe.writer.unstored_bytes <= MAX_UNSTORED_BYTES:
        pipe.write(CHUNK, is_stored=False)
    waiting = threading.Thread(target=pipe.writer.wait_for_space)
    waiting.start()

    waiting.join(0.2)
    assert waiting.is_alive()
    assert pipe.read(len(pipe.stream)) == pipe.stream
    waiting.join()


def test_end_of_the_command_limits_the_wait(pipe: Pipe) -> None:
    """When the command has ended, a reader that makes no progress is not waited for any more."""
    while pipe.writer.unstored_bytes <= MAX_UNSTORED_BYTES:
        pipe.write(CHUNK, is_stored=False)
    waiting = threading.Thread(target=pipe.writer.wait_for_space)
    waiting.start()

    pipe.writer.end()

    waiting.join()
    assert pipe.writer.unstored_bytes == 0
    pipe.write(b"later", is_stored=False)
    assert pipe.stream.startswith(pipe.read_available())


def test_closed_pipe_ends_the_stream(pipe: Pipe) -> None:
    """A reader that has exited is no error, whether or not the pipe was full."""
    for _ in range(3):
        pipe.write(CHUNK, is_stored=False)
    pipe.close_reader()

    pipe.writer.finish()

    pipe.write(CHUNK, is_stored=False)
    assert pipe.writer.unstored_bytes == 0


def test_removed_file_ends_the_stream(pipe: Pipe) -> None:
    """If the command removes the file, the reader receives a beginning of the stream and nothing else."""
    for _ in range(3):
        pipe.write(CHUNK)
        if pipe.stored == len(CHUNK):
            pipe.remove_file()
    pipe.writer.finish()

    received = pipe.read_available()
    assert pipe.stream.startswith(received)
