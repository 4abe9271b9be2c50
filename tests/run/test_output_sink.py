"""Tests of destinations of output."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from skyrl_modal import SpecError
from skyrl_modal.run.output_sink import open_sink
from skyrl_modal.views.standard_streams import discard_standard_output


class SlowFile(io.RawIOBase):
    """An unbuffered file that writes at most three bytes for each call."""

    def __init__(self) -> None:
        self.content = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.content += bytes(data[:3])
        return len(data[:3])


def test_partial_writes_are_continued() -> None:
    """A file that writes only a part for each call receives all bytes."""
    file = SlowFile()

    open_sink(file)(b"ten bytes.")

    assert file.content == b"ten bytes."


def test_callable_receives_chunks() -> None:
    """A callable receives each chunk."""
    chunks: list[bytes] = []

    sink = open_sink(chunks.append)
    sink(b"one")
    sink(b"two")

    assert chunks == [b"one", b"two"]


def test_text_file_is_refused(tmp_path: Path) -> None:
    """A file that is open for text raises SpecError."""
    with (tmp_path / "x").open("w") as file, pytest.raises(SpecError, match="output"):
        open_sink(file)  # type: ignore[arg-type]  # the refusal is what is tested


@pytest.mark.parametrize("target", [3, "path", b"bytes"])
def test_other_objects_are_refused(target: Any) -> None:
    """An object that is neither a callable nor a file raises SpecError."""
    with pytest.raises(SpecError, match="output"):
        open_sink(target)


def test_standard_output_may_accept_text_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a notebook, bytes are decoded, also if a character is divided between two chunks."""
    text = io.StringIO()
    monkeypatch.setattr(sys, "stdout", text)

    sink = open_sink(None)
    sink("ä".encode()[:1])
    sink("ä".encode()[1:] + b"\xff")

    assert text.getvalue() == "ä\ufffd"


def test_standard_output_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without standard output discards the output."""
    monkeypatch.setattr(sys, "stdout", None)

    open_sink(None)(b"text")


class FullFile(io.TextIOWrapper):
    """A standard output whose disk is full."""

    def __init__(self) -> None:
        super().__init__(open("/dev/full", "wb"))  # noqa: SIM115  # closed with this object


class ListReporter:
    """A reporter that stores warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def info(self, text: str) -> None:
        """Discard a message."""

    def warn(self, text: str) -> None:
        """Store a warning."""
        self.warnings.append(text)


def test_full_standard_output_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """If standard output cannot be written to, the output is discarded with one warning, and the run continues."""
    stream = FullFile()
    monkeypatch.setattr(sys, "stdout", stream)
    reporter = ListReporter()

    sink = open_sink(None, reporter)
    sink(b"one")
    sink(b"two")
    stream.close()

    [warning] = reporter.warnings
    assert "No space left on device" in warning


def test_closed_reader_of_standard_output_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that closes the pipe ends the run, as it ends other programs."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8", closefd=False) as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        with pytest.raises(BrokenPipeError):
            open_sink(None)(b"text")
        discard_standard_output()
    os.close(writer)


def test_text_output_of_another_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text stream without a buffer receives escapes for characters that its encoding does not have."""

    class AsciiText(io.StringIO):
        encoding = "ascii"

        def write(self, text: str) -> int:
            text.encode("ascii")
            return super().write(text)

    text = AsciiText()
    monkeypatch.setattr(sys, "stdout", text)

    open_sink(None)("naïve".encode())

    assert text.getvalue() == "na\\xefve"
