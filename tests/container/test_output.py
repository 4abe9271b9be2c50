"""What becomes of the command's output: the log, the live view, and the counted text."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from skyrl_modal.container.counted_text import CountedText
from skyrl_modal.container.live_view import FunctionView
from skyrl_modal.container.masking import SecretMask
from skyrl_modal.container.output import OutputRecorder
from skyrl_modal.protocol.result import OutputRecord


def pipe_with(data: bytes) -> int:
    """Return a descriptor from which the data can be read."""
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    return reader


def test_output_is_masked_and_appended(tmp_path: Path) -> None:
    """Log and live view get the same masked bytes, after those of an earlier attempt."""
    path, shown = tmp_path / "output.log", bytearray()
    path.write_bytes(b"first\n")
    recorder = OutputRecorder(path, FunctionView(shown.extend), pytest.fail, SecretMask(["s3cret"]))

    recorder.copy_from(pipe_with(b"key=s3cret\n"))

    assert bytes(shown) == b"key=********\n"
    assert path.read_bytes() == b"first\nkey=********\n"
    assert recorder.record == OutputRecord(bytes=19, total=13, stored=0)


def test_messages_have_a_prefix(tmp_path: Path) -> None:
    """Each line of a message has the launcher's prefix, and is masked."""
    recorder = OutputRecorder(
        tmp_path / "output.log", FunctionView(lambda data: None), pytest.fail, SecretMask(["s3cret"])
    )

    recorder.write_message("one\ns3cret")

    assert (tmp_path / "output.log").read_text() == "skyrl-modal | one\nskyrl-modal | ********\n"


def test_full_disk_does_not_end_the_command(tmp_path: Path) -> None:
    """The live view gets all output although the log cannot be written, and the record has the reason."""
    messages: list[str] = []
    shown = bytearray()
    path = tmp_path / "output.log"
    path.symlink_to("/dev/full")
    recorder = OutputRecorder(path, FunctionView(shown.extend), messages.append, SecretMask())

    recorder.copy_from(pipe_with(b"text"))

    assert bytes(shown) == b"text"
    assert recorder.record.error == "output.log ends after 0 bytes: No space left on device"
    assert len(messages) == 1


def test_closed_live_view_does_not_end_the_log(tmp_path: Path) -> None:
    """The log is complete if the reader of the live view has exited."""

    def show(data: bytes) -> None:
        raise BrokenPipeError

    recorder = OutputRecorder(tmp_path / "output.log", FunctionView(show), pytest.fail, SecretMask())

    recorder.write_message("one")
    recorder.copy_from(pipe_with(b"two\n"))

    assert (tmp_path / "output.log").read_text() == "skyrl-modal | one\ntwo\n"


def test_divided_characters_are_counted_once() -> None:
    """A character that two chunks divide is returned with the second, and counts as one."""
    text, encoded = CountedText(), "aé".encode()

    parts = [text.count(encoded[:2]), text.count(encoded[2:]), text.count(b"", final=True)]

    assert parts == [b"a", "é".encode(), b""]
    assert text.digest.characters == 2
    assert text.digest.sha256 == hashlib.sha256(encoded).hexdigest()


def test_invalid_bytes_are_replaced() -> None:
    """Invalid UTF-8 counts as the replacement character, also at the end."""
    text = CountedText()

    assert text.count(b"\xff") + text.count(b"\xc3", final=True) == "\ufffd\ufffd".encode()
    assert text.digest.characters == 2
