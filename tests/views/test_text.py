"""Tests of text for people."""

from __future__ import annotations

import contextlib
import io
import sys

import pytest

from skyrl_modal.protocol.state import RunState
from skyrl_modal.views.table import LiveRunTable, print_table
from skyrl_modal.views.text import StderrReporter, escape_controls, format_columns, format_rows, write_text


def test_reporter_prefixes_each_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Messages and warnings are written to standard error with the prefix before each line."""
    reporter = StderrReporter()

    reporter.info("one\ntwo")
    reporter.warn("three")

    assert capsys.readouterr() == ("", "skyrl-modal | one\nskyrl-modal | two\nskyrl-modal | warning: three\n")


def test_reporter_without_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without standard error discards messages."""
    monkeypatch.setattr(sys, "stderr", None)

    StderrReporter().info("text")


def test_labels_are_aligned() -> None:
    """The values of label and value pairs begin in the same column."""
    assert format_rows([("a", "1"), ("volume", "2")]) == "       a  1\n  volume  2"


def test_columns_are_aligned() -> None:
    """The cells of a column begin at the same position, without spaces at the end of a line."""
    assert format_columns([("a", "1", ""), ("long", "2", "x")]) == "a     1\nlong  2  x"


def test_run_table_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal, the table prints one line for each change of a state."""
    with LiveRunTable(["first", "second"]) as table:
        table.update(0, state=RunState.RUNNING, run_id="r1", line="step 1")
        table.update(0, line="step 2")
        table.update(0, state=RunState.RUNNING)
        table.update(1, state=RunState.FAILED, line="exit code 1")

    assert capsys.readouterr().err.splitlines() == [
        "skyrl-modal | first: running r1 step 1",
        "skyrl-modal | second: failed  exit code 1",
    ]


def test_table_shows_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    """Text in brackets, which rich would take for markup, is displayed."""
    print_table(("name",), [("[bold]x[/bold]",)])

    assert "[bold]x[/bold]" in capsys.readouterr().out


def test_table_shows_whole_cells(capsys: pytest.CaptureFixture[str]) -> None:
    """A long cell is folded and not cut: its end can be the command that corrects a problem."""
    print_table(("ok", "detail"), [("no", f"run {'x' * 300} end")])

    shown = "".join(capsys.readouterr().out.split())
    assert "x" * 300 + "end" in shown


CONTROLS = {
    "clear screen": "\x1b[2J",
    "title": "\x1b]0;title\x07",
    "c1": "\x9b2J",
    "carriage return": "ok\rfailed",
    "backspace": "a\b",
    "delete": "\x7f",
    "right-to-left override": "\u202etxt.exe",
    "isolate": "\u2067",
    "line separator": "\u2028",
    "surrogate of a file name": "\udcff",
    "newline": "one\n backend  modal",
}


@pytest.mark.parametrize("text", CONTROLS.values(), ids=CONTROLS)
def test_controls_are_escaped_in_every_view(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """No view contains a control character of a value, or lets a value begin a line of its own."""
    StderrReporter().info(text)
    message = capsys.readouterr().err
    views = [message, format_rows([("name", text)]), format_columns([(text, "x")]), escape_controls(text)]

    for view in views:
        assert escape_controls(view, multiline=True) == view
    assert all(line.startswith("skyrl-modal | ") for line in message.splitlines())
    assert all(line.startswith((" " * 4 + "name", " " * 10)) for line in views[1].splitlines())
    assert len(views[2].splitlines()) == len(views[3].splitlines()) == 1


@pytest.mark.parametrize("text", ["plain", "naïve", "日本語", "emoji 👩‍🚀", "a  b", ""])
def test_other_text_is_unchanged(text: str) -> None:
    """Text without control characters is not changed."""
    assert escape_controls(text) == text


def test_table_contains_no_controls(capsys: pytest.CaptureFixture[str]) -> None:
    """The table of runs shows the output without colors and with other control characters escaped."""
    with LiveRunTable(["first\x1b[2J"]) as table:
        table.update(0, state=RunState.RUNNING, line="\x1b[31mred\x1b[0m\x1b[2J")

    assert capsys.readouterr().err == "skyrl-modal | first\\x1b[2J: running  red\\x1b[2J\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_text_is_written_in_any_encoding(encoding: str) -> None:
    """Characters that an encoding does not have are escaped."""
    binary = io.BytesIO()
    stream = io.TextIOWrapper(binary, encoding=encoding)

    write_text(stream, "日 a\n")

    expected = "日 a\n" if encoding == "utf-8" else "\\u65e5 a\n"
    assert binary.getvalue().decode(encoding) == expected


@pytest.mark.parametrize("kind", ["full", "closed", "absent"])
def test_message_that_cannot_be_written(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message for a stream that is full or closed is discarded, and raises nothing."""
    stream = None if kind == "absent" else open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115  # closed below
    if stream is not None and kind == "closed":
        stream.close()
    monkeypatch.setattr("sys.stderr", stream)

    StderrReporter().info("text")

    if stream is not None:
        with contextlib.suppress(OSError):
            stream.close()
