"""Tests of the selection of lines by pattern, time and number."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_modal import SpecError
from skyrl_modal.run.log_filter import LineFilter, OutputIndex, compile_pattern, parse_times, select_lines

TIMES = OutputIndex([0, 4, 8], [100.0, 200.0, 300.0])
OUTPUT = b"one\ntwo\nsix\n"


def selected(wanted: LineFilter, *pieces: bytes, times: OutputIndex = TIMES) -> bytes:
    """Return the selected lines of an output."""
    return b"".join(select_lines(pieces, wanted, times))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (LineFilter(), b"one\ntwo\nsix\n"),
        (LineFilter(pattern=re.compile("o$|x")), b"two\nsix\n"),
        (LineFilter(since=200.0), b"two\nsix\n"),
        (LineFilter(since=201.0), b"six\n"),
        (LineFilter(since=301.0), b""),
        (LineFilter(tail=1), b"six\n"),
        (LineFilter(tail=0), b""),
        (LineFilter(pattern=re.compile("o"), tail=1), b"two\n"),
        (LineFilter(pattern=re.compile("six"), has_timestamps=True), b"1970-01-01T00:05:00Z six\n"),
    ],
)
def test_lines_are_selected(wanted: LineFilter, expected: bytes) -> None:
    """The pattern, the time and the number decide together, the number last."""
    assert selected(wanted, OUTPUT) == expected


@given(data=st.binary(max_size=200), cuts=st.lists(st.integers(0, 200), max_size=5))
def test_pieces_may_end_anywhere(data: bytes, cuts: list[int]) -> None:
    """Without a condition, the output is returned unchanged, however it is divided."""
    positions = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[begin:end] for begin, end in itertools.pairwise(positions)]

    assert selected(LineFilter(), *pieces) == data


@given(
    content=st.binary(max_size=300)
    | st.lists(st.tuples(st.integers(), st.floats())).map(
        lambda rows: "".join(f"{position} {time:.3f}\n" for position, time in rows).encode()
    )
)
def test_any_content_is_an_index(content: bytes) -> None:
    """The file can have any content, since the command can change it. The times can be displayed."""
    times = parse_times(content)

    assert list(times.positions) == sorted(times.positions)
    selected(LineFilter(has_timestamps=True), OUTPUT, times=times)


def test_followed_lines_have_the_time_of_their_arrival() -> None:
    """What follows the existing output has the current time, and is not delayed by the number of lines."""
    lines = select_lines(
        [b"old\n", b"new\n"], LineFilter(tail=0, has_timestamps=True), OutputIndex([0], [1.0]), end=4, now=lambda: 60.0
    )

    assert list(lines) == [b"1970-01-01T00:01:00Z new\n"]


def test_unknown_time() -> None:
    """A line whose time is not known has a dash, and is not selected by time."""
    nothing = OutputIndex((), ())

    assert selected(LineFilter(has_timestamps=True), b"a", times=nothing) == b"-                    a"
    assert selected(LineFilter(since=0.0), b"a", times=nothing) == b""


@pytest.mark.parametrize("pattern", ["(", "*", "a{99999999999}"])
def test_invalid_pattern(pattern: str) -> None:
    """An expression that is not valid is a SpecError."""
    with pytest.raises(SpecError):
        compile_pattern(pattern)
