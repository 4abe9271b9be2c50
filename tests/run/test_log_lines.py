"""Tests of lines of output."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_modal.run.log_lines import decode_lines, last_lines


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=6))
def test_chunks_may_end_anywhere(content: bytes, positions: list[int]) -> None:
    """The lines do not depend on how the output is divided into chunks."""
    bounds = [0, *sorted(min(position, len(content)) for position in positions), len(content)]
    chunks = [content[start:end] for start, end in itertools.pairwise(bounds)]

    assert list(decode_lines(chunks)) == list(decode_lines([content]))


@given(st.binary(max_size=60), st.integers(-1, 10))
def test_last_lines_are_the_end_of_all_lines(content: bytes, count: int) -> None:
    """The last lines are the end of the list of all lines."""
    lines = list(decode_lines([content]))

    assert last_lines(content, count) == (lines[-count:] if count > 0 else [])


def test_endless_line_is_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that is longer than the limit is divided, so that it does not fill the memory."""
    monkeypatch.setattr("skyrl_modal.run.log_lines.MAX_LINE_LENGTH", 10)

    assert list(decode_lines([b"12345678", b"12345678", b"12\nx"])) == ["1234567812345678", "12", "x"]
