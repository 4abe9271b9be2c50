"""Curves with fewer points, of which none of the extremes is lost."""

from __future__ import annotations

import math
import operator
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING

from skyrl_modal.dataclass import dataclass

if TYPE_CHECKING:
    from skyrl_modal.web.columns import Curve


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """A curve for a plot. Each point stands for some consecutive values.

    Attributes:
        x: Step, or time in seconds since the epoch, of the last value of each point.
        y: The last value; None if it is not finite.
        low: The least finite value; None if there is none.
        high: The greatest finite value; None if there is none.
        count: Number of values.
    """

    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None]
    high: Sequence[float | None]
    count: int


def sample(
    curve: Curve, points: int, *, by_time: bool = False, begin: float = -math.inf, end: float = math.inf
) -> Sampled:
    """Return a curve with a limited number of points.

    A point stands for a power of 2 of values, so that points do not change when values are added to the curve.

    Args:
        curve: All values.
        points: Number of points at most.
        by_time: Whether the x axis is the time instead of the step.
        begin: Leave out values before this x. The last one before it is kept, for the line that leads to the next.
        end: Leave out values after this x, except for the first.

    Example:
        >>> from skyrl_modal.web.columns import Curve
        >>> curve = Curve(array("q", range(8)), array("d", range(8)), array("d", [0, 9, 1, 2, -7, 3, 4, 5]))
        >>> sample(curve, 2).low, sample(curve, 2).high, sample(curve, 2).y
        ([0.0, -7.0], [9.0, 5.0], [2.0, 5.0])
    """
    xs: Sequence[float] = curve.times if by_time else curve.steps
    values: array[float] = curve.values
    if by_time and any(map(operator.gt, xs, xs[1:])):
        order = sorted(range(len(xs)), key=xs.__getitem__)
        xs, values = array("d", (xs[index] for index in order)), array("d", (values[index] for index in order))
    first = max(0, bisect_left(xs, begin) - 1)
    last = min(len(xs), bisect_right(xs, end) + 1)
    count = last - first
    size = 1
    while count > size * points:
        size *= 2
    if size == 1:
        y = [value if math.isfinite(value) else None for value in values[first:last]]
        return Sampled(x=xs[first:last].tolist(), y=y, low=y, high=y, count=count)  # type: ignore[attr-defined]
    first -= first % size  # the same values form a point wherever the section begins
    ends = [*range(first + size, last, size), last]
    low, high = [], []
    for stop in ends:
        extremes = _extremes(values[(stop - 1) // size * size : stop])
        low.append(extremes[0])
        high.append(extremes[1])
    y = [value if math.isfinite(value) else None for value in (values[stop - 1] for stop in ends)]
    return Sampled(x=[xs[stop - 1] for stop in ends], y=y, low=low, high=high, count=count)


def _extremes(values: array[float]) -> tuple[float | None, float | None]:
    """Return the least and the greatest finite value."""
    if math.isfinite(sum(values)):
        return min(values), max(values)
    finite = [value for value in values if math.isfinite(value)]
    return (min(finite), max(finite)) if finite else (None, None)
