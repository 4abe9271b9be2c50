"""Metrics in columns, and curves with fewer points."""

from __future__ import annotations

import json
import math
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyrl_modal.formats.metrics_rows import FileReader, MergedRows
from skyrl_modal.web.columns import Curve, MetricColumns
from skyrl_modal.web.downsampling import sample

#: Rows as processes log them: attempt, source, keys, step, time.
ROWS = st.lists(
    st.tuples(
        st.integers(1, 3),
        st.sampled_from(["tracking", "own"]),
        st.sampled_from([("a",), ("a", "b"), ("b", "c")]),
        st.integers(0, 6),
        st.integers(1, 9),
    ),
    max_size=30,
)


def read(rows: list[tuple[int, str, tuple[str, ...], int, int]]) -> list[FileReader]:
    """Return readers that have read a file with each row. Times are distinct: equal ones have no defined order."""
    readers = []
    for number, (attempt, source, keys, step, time) in enumerate(rows):
        reader = FileReader((attempt, 0))
        table = {"table": 0, "source": source, "keys": list(keys)}
        reader.feed(json.dumps(table).encode() + b"\n")
        values = [float(number)] * len(keys)
        packed = array("d", values).tobytes()
        reader.pieces.append((step, time + number / 100, reader._tables[0], packed))
        readers.append(reader)
    return readers


@settings(max_examples=200)
@given(ROWS)
def test_curves_are_those_of_merged_rows(rows: list[tuple[int, str, tuple[str, ...], int, int]]) -> None:
    """Each curve has the steps and values that Run.metrics returns, however attempts and processes overlap."""
    readers = read(rows)
    merged = MergedRows(readers)
    expected = {key: merged.series(key) for key in merged.keys}

    columns = MetricColumns()
    for reader in readers:
        columns.take(reader)

    assert columns.names() == sorted({key for row in rows for key in row[2]})
    for key, (steps, values) in expected.items():
        curve = columns.curve(key)
        assert curve.steps.tolist() == steps
        assert curve.values.tolist() == values
        assert columns.last_values()[key] == values[-1]


def test_growing_curve_is_that_of_all_rows() -> None:
    """Rows that are read later, also of earlier steps, give the same curve as all of them together."""
    rows = [(1, "tracking", ("a",), step, 1) for step in (5, 6, 2, 3, 9, 8, 8)]
    grown = MetricColumns()
    for reader in read(rows):
        grown.take(reader)
        assert grown.curve("a").steps.tolist() == sorted(set(grown.curve("a").steps))

    assert grown.curve("a").steps.tolist() == [2, 3, 5, 6, 8, 9]
    assert grown.step_range() == (2, 9)
    assert grown.version == len(rows)


@given(st.lists(st.floats(width=32), min_size=1, max_size=300), st.integers(2, 40))
def test_points_keep_the_extremes(values: list[float], points: int) -> None:
    """The extremes and the last value of a curve are those of all its values, and the number of points is limited."""
    curve = Curve(array("q", range(len(values))), array("d", range(len(values))), array("d", values))

    found = sample(curve, points)

    finite = [value for value in values if math.isfinite(value)]
    assert len(found.x) <= points
    assert found.count == len(values)
    assert found.x[-1] == len(values) - 1
    assert max((high for high in found.high if high is not None), default=None) == max(finite, default=None)
    assert min((low for low in found.low if low is not None), default=None) == min(finite, default=None)
    assert found.y[-1] == (values[-1] if math.isfinite(values[-1]) else None)
    json.dumps([found.y, found.low, found.high], allow_nan=False)


@pytest.mark.parametrize("by_time", [False, True])
def test_section_has_its_neighbours(by_time: bool) -> None:
    """A section of the x axis begins with the value before it and ends with the one after it."""
    curve = Curve(array("q", range(10)), array("d", range(10)), array("d", range(10)))

    assert sample(curve, 100, by_time=by_time, begin=3.5, end=5.5).x == [3, 4, 5, 6]


def test_time_axis_is_sorted() -> None:
    """Values whose times are not in the order of the steps are sorted by time."""
    curve = Curve(array("q", [1, 2, 3]), array("d", [3.0, 1.0, 2.0]), array("d", [10, 20, 30]))

    found = sample(curve, 10, by_time=True)

    assert (found.x, found.y) == ([1.0, 2.0, 3.0], [20.0, 30.0, 10.0])
