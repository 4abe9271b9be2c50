"""Charts of metrics: SVG for a notebook, and plain text everywhere else.

The SVG has no script, no style sheet and no reference, so that it can be stored, sent and displayed anywhere. Lines and
labels of the axes have the color of the text around them, and the colors of the curves are readable on light and dark.
"""

from __future__ import annotations

import html
import math
import sys
from collections.abc import Iterator, Sequence

from skyrl_modal.dataclass import dataclass
from skyrl_modal.views.plot import format_number, plot_lines
from skyrl_modal.views.text import escape_controls

#: Points of a curve in the SVG, at most.
MAX_POINTS = 2000
#: Points that stand for one section of a longer curve: its first, lowest, highest and last value.
_POINTS_OF_SECTION = 4
#: Size of a chart, and of its parts around the curves, in the units of the SVG.
_WIDTH, _HEIGHT = 480, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 36, 30, 34
#: Colors with a contrast of at least 3 to white and to nearly black.
_COLORS = ("#3b82f6", "#d97706", "#16a34a", "#a855f7", "#ef4444", "#0891b2", "#db2777", "#78716c")
#: Number of labels of an axis, about, and at most.
_TICKS, _MAX_TICKS = 5, 10
#: Characters of a title or of a label of a curve.
_MAX_TITLE, _MAX_LABEL = 56, 40
_FONT = "font-family:system-ui,sans-serif;font-size:12px"


@dataclass(frozen=True, slots=True)
class Curve:
    """The values of a metric.

    Attributes:
        steps: The steps, in ascending order.
        values: The values.
        label: What the curve is called in a chart of several ones.
    """

    steps: Sequence[float]
    values: Sequence[float]
    label: str = ""


class Chart:
    """Curves of metrics, one below the other: a notebook shows SVG, and ``print`` writes plain text.

    Args:
        curves: The curves of each metric by its name.
        text: What is shown if there are none.

    Example:
        >>> chart = Chart({"loss": [Curve([1, 2, 3], [3.0, 2.0, 1.0])]})
        >>> chart._repr_html_().count("<svg")
        1
        >>> Chart({}, "no metrics yet")
        no metrics yet
    """

    def __init__(self, curves: dict[str, list[Curve]], text: str = "no curves") -> None:
        self.curves = curves
        self._text = text

    def __repr__(self) -> str:
        encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower()
        lines: list[str] = []
        for key, curves in self.curves.items():
            for curve in curves:
                lines += [] if not lines else [""]
                lines.append(" ".join(filter(None, (_title(key, curves), escape_controls(curve.label)))))
                lines += plot_lines(curve.steps, curve.values, is_ascii=not encoding.startswith("utf"))
        return "\n".join(lines) or escape_controls(self._text)

    def _repr_html_(self) -> str:
        if not self.curves:
            return f"<p>{html.escape(escape_controls(self._text))}</p>"
        return f'<div style="line-height:0">{"".join(map(curves_to_svg, self.curves, self.curves.values()))}</div>'


def curves_to_svg(key: str, curves: Sequence[Curve]) -> str:
    """Return the curves of a metric as an SVG element."""
    sampled = [list(downsample(curve.steps, curve.values)) for curve in curves]
    points = [(step, value) for curve in sampled for step, value in curve if math.isfinite(value)]
    title = html.escape(_title(key, curves))
    if not points:
        return _svg(title, [f'<text x="{_LEFT}" y="{_HEIGHT // 2}" fill="currentColor">no finite values</text>'])
    first, last = min(step for step, _ in points), max(step for step, _ in points)
    low, high = min(value for _, value in points), max(value for _, value in points)
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def x_of(step: float) -> float:
        return _LEFT + _share(step, first, last) * (right - _LEFT)

    def y_of(value: float) -> float:
        return bottom - _share(value, low, high) * (bottom - _TOP)

    parts = []
    for tick in ticks(low, high):
        y = f"{y_of(tick):.1f}"
        parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{y}" y2="{y}" stroke="currentColor" opacity="0.15"/>')
        label = format_number(tick)
        parts.append(f'<text x="{_LEFT - 6}" y="{y}" dy="4" text-anchor="end" fill="currentColor">{label}</text>')
    for tick in ticks(first, last, is_whole=True):
        x = f"{x_of(tick):.1f}"
        parts.append(f'<line x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 4}" stroke="currentColor"/>')
        label = f'<text x="{x}" y="{bottom + 16}" text-anchor="middle" fill="currentColor">{tick:,.0f}</text>'
        parts.append(label)
    parts.append(f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="currentColor" opacity="0.6"/>')
    parts.append(f'<text x="{right}" y="{_HEIGHT - 4}" text-anchor="end" fill="currentColor" opacity="0.7">step</text>')
    for number, curve in enumerate(sampled):
        color = _COLORS[number % len(_COLORS)]
        path, is_drawing = "", False
        for step, value in curve:
            if is_finite := math.isfinite(value):
                point = f"{x_of(step):.1f} {y_of(value):.1f}"
                path += f"L{point}" if is_drawing else f"M{point}h0"  # a point without neighbors is a dot
            is_drawing = is_finite
        name = html.escape(_shorten(curves[number].label, _MAX_LABEL))
        tip = f"<title>{name}</title>" if name else ""
        style = f'fill="none" stroke="{color}" stroke-width="1.5" stroke-linejoin="round" stroke-linecap="round"'
        parts.append(f'<path d="{path}" {style}>{tip}</path>')
        finite = [point for point in curve if math.isfinite(point[1])]
        if finite:  # it is visible also if it is the only point
            step, value = finite[-1]
            parts.append(f'<circle cx="{x_of(step):.1f}" cy="{y_of(value):.1f}" r="3" fill="{color}"/>')
        if name:
            below = _HEIGHT + 16 * number
            parts.append(f'<rect x="{_LEFT}" y="{below}" width="10" height="10" fill="{color}"/>')
            parts.append(f'<text x="{_LEFT + 16}" y="{below + 9}" fill="currentColor">{name}</text>')
    return _svg(title, parts, more=16 * sum(bool(curve.label) for curve in curves))


def _svg(title: str, parts: Sequence[str], *, more: int = 0) -> str:
    style = f"{_FONT};width:{_WIDTH}px;max-width:100%;height:auto"
    heading = f'<text x="{_LEFT}" y="16" fill="currentColor" style="font-weight:600">{title}</text>'
    size = f'viewBox="0 0 {_WIDTH} {_HEIGHT + more}" width="{_WIDTH}"'
    return f'<svg role="img" aria-label="{title}" {size} style="{style}">{heading}{"".join(parts)}</svg>'


def _title(key: str, curves: Sequence[Curve]) -> str:
    """Return the name of a metric, with its newest value if there is one curve."""
    name = _shorten(key, _MAX_TITLE)
    return f"{name}: {format_number(curves[0].values[-1])}" if len(curves) == 1 and len(curves[0].values) else name


def _shorten(text: str, length: int) -> str:
    plain = escape_controls(text)
    return plain if len(plain) <= length else f"{plain[: length - 1]}…"


def _share(value: float, low: float, high: float) -> float:
    """Return where a value is between two limits, from 0 to 1."""
    span = high / 2 - low / 2  # divided first: the difference of large numbers is infinite
    return (value / 2 - low / 2) / span if span else 0.5


def ticks(low: float, high: float, *, is_whole: bool = False) -> list[float]:
    """Return values for the labels of an axis: round ones, else the limits.

    Args:
        low: The lowest value.
        high: The highest value.
        is_whole: Whether the values are whole numbers.

    Example:
        >>> ticks(0.0, 1.1), ticks(3, 3), ticks(1, 3, is_whole=True)
        ([0.0, 0.5, 1.0], [3], [1.0, 2.0, 3.0])
    """
    rough = (high / 2 - low / 2) / (_TICKS / 2)
    if low == high or rough < sys.float_info.min:
        return [low] if low == high else [low, high]
    power: float = 10.0 ** math.floor(math.log10(rough))
    distance = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    if is_whole:
        distance = max(1.0, distance)
    first, last = math.ceil(low / distance), math.floor(high / distance)
    if last - first >= _MAX_TICKS:
        return [low, high]
    found = sorted({number * distance for number in range(first, last + 1)})  # equal ones where the limits nearly are
    return found if len(found) >= 2 and low <= found[0] and found[-1] <= high else [low, high]


def downsample(steps: Sequence[float], values: Sequence[float]) -> Iterator[tuple[float, float]]:
    """Yield the points of a curve, at most ``MAX_POINTS``: of each section the first, lowest, highest and last value.

    Values that are not finite are left out, except where a section has no others.

    Example:
        >>> values = [0.0] * 100_000
        >>> values[12_345] = 7.0
        >>> points = list(downsample(range(100_000), values))
        >>> len(points) <= MAX_POINTS, (12_345, 7.0) in points
        (True, True)
    """
    count = min(len(steps), len(values))
    if count <= MAX_POINTS:
        yield from zip(steps, values, strict=False)
        return
    sections = MAX_POINTS // _POINTS_OF_SECTION
    for number in range(sections):
        begin, end = number * count // sections, (number + 1) * count // sections
        finite = [index for index in range(begin, end) if math.isfinite(values[index])]
        if not finite:
            yield steps[begin], math.nan
            continue
        kept = {finite[0], min(finite, key=values.__getitem__), max(finite, key=values.__getitem__), finite[-1]}
        for index in sorted(kept):
            yield steps[index], values[index]
