"""Tests of destinations of output."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from skyrl_modal import SpecError
from skyrl_modal.run.output_sink import open_sink


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
