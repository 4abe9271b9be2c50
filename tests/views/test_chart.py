"""Tests of charts: what the SVG contains, and what of long and unusual curves."""

from __future__ import annotations

import math
import random
import re
import sys
from xml.etree import ElementTree

import pytest

from skyrl_modal.views.chart import MAX_POINTS, Chart, Curve, downsample, ticks

SMALLEST = math.ulp(0.0)


def parsed(chart: Chart) -> ElementTree.Element:
    """Return the HTML of a chart as elements. It raises an exception if it is not well-formed."""
    return ElementTree.fromstring(chart._repr_html_())  # noqa: S314  # it is made by this package


def texts_of(chart: Chart) -> list[str]:
    """Return the labels of a chart."""
    return [element.text or "" for element in parsed(chart).iter("text")]


def positions_of(chart: Chart) -> list[tuple[float, float]]:
    """Return the positions that all curves of a chart have."""
    paths = [element.get("d", "") for element in parsed(chart).iter("path") if element.get("stroke") != "currentColor"]
    return [(float(x), float(y)) for path in paths for x, y in re.findall(r"[ML](\S+?) ([^MLh]+)", path)]


def test_chart_has_axes_and_labels() -> None:
    """Title with the newest value, round labels, and the word for the horizontal axis."""
    chart = Chart({"loss": [Curve([1, 2, 3, 4, 5], [1.0, 0.8, 0.5, 0.25, 0.0])]})

    assert texts_of(chart)[0] == "loss: 0"
    assert {"0", "0.2", "0.4", "0.6", "0.8", "1", "2", "3", "4", "5", "step"} <= set(texts_of(chart))
    assert [element.get("aria-label") for element in parsed(chart).iter("svg")] == ["loss: 0"]
    (first_x, first_y), *_, (last_x, last_y) = positions_of(chart)
    assert (first_x, first_y) < (last_x, last_y)  # from the upper left to the lower right


def test_chart_has_nothing_that_is_loaded_or_executed() -> None:
    """There is no script, style sheet or reference, and names are escaped: the HTML of a run is harmless."""
    name = "<script>alert(1)</script>\x1b[2J\"'&"
    chart = Chart({name: [Curve([1, 2], [0.0, 1.0], "</title><img src=x onerror=y>"), Curve([1, 2], [2.0, 3.0], "b")]})

    page = chart._repr_html_()

    tags = {element.tag for element in parsed(chart).iter()}
    assert tags <= {"div", "svg", "text", "line", "path", "circle", "rect", "title"}
    assert not re.search(r"href|url\(|https?:|\x1b", page)
    assert "<script>alert(1)</script>\\x1b[2J\"'&" in texts_of(chart)
    assert "</title><img src=x onerror=y>" in texts_of(chart)
    assert {element.get("fill") for element in parsed(chart).iter("text")} == {"currentColor"}


@pytest.mark.parametrize("count", [1, 2, MAX_POINTS, MAX_POINTS + 1, 7_777, 100_000])
def test_long_curve_keeps_its_extremes(count: int) -> None:
    """At most so many points are drawn, with the first and the last one, and all peaks."""
    generator = random.Random(count)
    values = [generator.uniform(-1, 1) for _ in range(count)]
    high, low = generator.sample(range(count), 2) if count > 1 else (0, 0)
    values[low], values[high] = -9.0, 9.0

    points = list(downsample(range(count), values))

    assert min(count, 2) <= len(points) <= MAX_POINTS
    assert points == sorted(set(points))
    assert {(high, 9.0), (0, values[0]), (count - 1, values[-1])} <= set(points)
    assert min(points, key=lambda point: point[1]) == (low, values[low])
    assert len(Chart({"a": [Curve(range(count), values)]})._repr_html_()) < 40_000


def test_values_that_are_not_finite_are_gaps() -> None:
    """Neighbors of such a value are not connected, and a value between two of them is a dot."""
    chart = Chart({"a": [Curve(range(6), [1.0, 2.0, math.nan, 3.0, math.inf, 4.0])]})

    (path,) = (element.get("d", "") for element in parsed(chart).iter("path") if element.get("stroke-linecap"))
    assert (path.count("M"), path.count("L")) == (3, 1)
    assert "no finite values" in texts_of(Chart({"a": [Curve([1], [math.nan])]}))


@pytest.mark.parametrize(
    "values",
    [
        [1.0],
        [5.0, 5.0],
        [0.0, SMALLEST],
        [-sys.float_info.max, sys.float_info.max],
        [1.0, 1.0 + 2**-52],
        [1e16, 1e16 + 2],
        [0.1, 0.3],
    ],
)
def test_labels_are_in_the_plot(values: list[float]) -> None:
    """Every range of values has some labels within it, and every point is inside of the chart."""
    chart = Chart({"a": [Curve(range(len(values)), values)]})

    assert 1 <= len(ticks(min(values), max(values))) <= 10
    assert all(min(values) <= tick <= max(values) for tick in ticks(min(values), max(values)))
    assert all(0 <= x <= 480 and 0 <= y <= 220 for x, y in positions_of(chart))
    assert len(positions_of(chart)) == len(values)
    assert str(chart).startswith("a: ")


def test_text_has_a_plot_for_each_curve() -> None:
    """``print`` shows plots of text, with control characters escaped."""
    chart = Chart({"a\x1b": [Curve([1, 2], [0.0, 1.0], "one"), Curve([1, 2], [1.0, 0.0], "two")]})

    lines = str(chart).splitlines()

    assert lines[0] == "a\\x1b one"
    assert "a\\x1b two" in lines
    assert sum(line.startswith(" " * 9 + "1 ") for line in lines) == 2
