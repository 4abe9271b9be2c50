"""Line plots of plain text.

plotext would be a dependency for this one function, and its version 6 (2026) has removed the functions of version 5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

#: Bits of the dots of a braille character, by column and row in it (Unicode, block "Braille Patterns").
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_BRAILLE = 0x2800
#: Characters of the labels of the vertical axis.
_LABEL_WIDTH = 10


def plot_lines(
    steps: Sequence[float], values: Sequence[float], *, width: int = 80, height: int = 10, is_ascii: bool = False
) -> list[str]:
    """Return the lines of a plot, without colors. Values that are not finite are left out.

    Args:
        steps: Horizontal positions, in ascending order.
        values: Vertical positions.
        width: Number of columns, with the labels.
        height: Number of lines of the plot, without the labels below it.
        is_ascii: Whether to use only characters of ASCII.
    """
    points = [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
    if not points:
        return ["(no finite values)"]
    low, high = min(value for _, value in points), max(value for _, value in points)
    first, last = points[0][0], points[-1][0]
    columns = max(10, width - _LABEL_WIDTH - 2)
    across, down = (1, 1) if is_ascii else (2, 4)
    grid = [[0] * columns for _ in range(height)]
    for column, top, bottom in _strokes(points, columns * across, height * down):
        for row in range(top, bottom + 1):
            grid[row // down][column // across] |= _DOTS[column % across][row % down]
    labels = {0: format_number(high), height - 1: format_number(low)}
    if low == high:  # the label is next to the line, which is in the middle
        labels = {number: format_number(low) for number, cells in enumerate(grid) if any(cells)}
    lines = []
    for number, cells in enumerate(grid):
        label = labels.get(number, "")
        text = "".join("*" if is_ascii and cell else chr(_BRAILLE + cell) if cell else " " for cell in cells)
        lines.append(f"{label:>{_LABEL_WIDTH}} {'|' if is_ascii else '┤' if label else '│'}{text}".rstrip())
    begin, end = f"{first:,.0f}", f"{last:,.0f}"
    return [*lines, f"{' ' * _LABEL_WIDTH}  {begin}{end:>{max(0, columns - len(begin))}}"]


def format_number(value: float) -> str:
    """Return a number with at most ten characters.

    Example:
        >>> format_number(0.123456789), format_number(-123456789.0)
        ('0.12346', '-1.235e+08')
    """
    texts = (f"{value:.5g}", f"{value:.3e}", f"{value:.2e}")
    return next(text for text in texts if len(text) <= _LABEL_WIDTH)


def _strokes(points: Sequence[tuple[float, float]], columns: int, rows: int) -> list[tuple[int, int, int]]:
    """Return column, top and bottom of vertical strokes that connect points."""
    low, high = min(value for _, value in points), max(value for _, value in points)
    first, last = points[0][0], points[-1][0]

    def column_of(step: float) -> int:
        return 0 if last == first else round((step - first) / (last - first) * (columns - 1))

    def row_of(value: float) -> int:
        # Divided first: the difference of two large numbers may be infinite. That of the least ones is 0 then.
        span = high / 2 - low / 2
        share = (value / 2 - low / 2) / span if span else 0.5
        return rows - 1 - round(share * (rows - 1))

    strokes: list[tuple[int, int, int]] = []
    before: tuple[int, int] | None = None
    for step, value in points:
        column, row = column_of(step), row_of(value)
        if before is None or before[0] == column:
            top, bottom = (row, row) if before is None else sorted((row, before[1]))
            strokes.append((column, top, bottom))
        else:
            start, level = before
            for number in range(start + 1, column + 1):
                reached = level + round((row - level) * (number - start) / (column - start))
                earlier = level + round((row - level) * (number - 1 - start) / (column - start))
                strokes.append((number, min(earlier, reached), max(earlier, reached)))
        before = (column, row)
    return strokes
