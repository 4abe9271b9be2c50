"""Tests of the prefix of launcher messages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_modal.protocol.log_lines import LINE_PREFIX, parse_line, prefixed
from skyrl_modal.protocol.state import FailureCause

# Control characters include line separators, at which a text is split into lines.
LINES = st.lists(st.text(st.characters(exclude_categories=("Cc", "Zl", "Zp", "Cs"))), min_size=1, max_size=4)


@given(LINES, st.none() | st.sampled_from(FailureCause))
def test_prefixed_lines_are_parsed_again(lines: list[str], cause: FailureCause | None) -> None:
    """Parsing the lines of a prefixed text returns its lines and its cause."""
    text = prefixed("\n".join(lines), cause)

    parsed = [parse_line(line) for line in text.splitlines()]

    expected = "\n".join(lines).splitlines() or [""]
    assert parsed == [(line, cause) for line in expected]


def test_empty_text_is_one_line() -> None:
    """An empty text becomes one line with the prefix only."""
    assert prefixed("") == f"{LINE_PREFIX}\n"


@pytest.mark.parametrize("line", ["", "text", "skyrl-modal", "skyrl-modal: error", " skyrl-modal | indented"])
def test_line_without_prefix_is_unchanged(line: str) -> None:
    """A line of other programs is returned unchanged and without a cause."""
    assert parse_line(line) == (line, None)


def test_unknown_cause_is_parsed() -> None:
    """A cause of a later version becomes UNKNOWN."""
    assert parse_line("skyrl-modal (new_cause) | text") == ("text", FailureCause.UNKNOWN)
