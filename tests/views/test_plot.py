"""Plots of plain text."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_modal.views.plot import format_number, plot_lines


def test_rising_line() -> None:
    """A rising line goes from the lower left to the upper right, with the limits as labels."""
    lines = plot_lines(range(5), [float(value) for value in range(5)], width=22, height=5, is_ascii=True)

    assert lines == [
        "         4 |         *",
        "           |      ****",
        "           |    ***",
        "           |  ***",
        "         0 |***",
        "            0        4",
    ]


def test_constant_and_single_values() -> None:
    """One value, and a line without change, are plotted in the middle; values that are not finite are left out."""
    [line] = [line for line in plot_lines([5], [1.0], is_ascii=True) if "*" in line]
    assert line.split() == ["1", "|*"]  # the label is next to the line, and there is no other one
    assert sum("1 " in line for line in plot_lines([2, 3], [1.0, 1.0])) == 1
    assert plot_lines([1, 2], [math.nan, math.inf]) == ["(no finite values)"]


@given(
    values=st.lists(st.floats(), min_size=1, max_size=50),
    width=st.integers(20, 200),
    is_ascii=st.booleans(),
)
def test_any_values_fit(values: list[float], width: int, is_ascii: bool) -> None:
    """Whatever the values, no line is longer than requested, and no error is raised."""
    lines = plot_lines(range(len(values)), values, width=max(width, 22), is_ascii=is_ascii)

    assert all(len(line) <= max(width, 22) for line in lines)
    assert not is_ascii or all(line.isascii() for line in lines)


@pytest.mark.parametrize("value", [0.0, 1e-300, -1.5e300, 123456789.123, math.nan, -math.inf, 0.1 + 0.2])
def test_numbers_fit_into_a_column(value: float) -> None:
    """A number has at most ten characters."""
    assert len(format_number(value)) <= 10
