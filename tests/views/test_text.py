"""Tests of text for people."""

from __future__ import annotations

import sys

import pytest

from skyrl_modal.protocol.state import RunState
from skyrl_modal.views.table import LiveRunTable, print_table
from skyrl_modal.views.text import StderrReporter, format_columns, format_rows


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
