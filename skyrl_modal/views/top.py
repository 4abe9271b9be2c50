"""One frame of ``skyrl-modal top``: lines with styles that fit into a terminal. Imported only by that command."""

from __future__ import annotations

import io
import itertools
import math
import re
import time
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from skyrl_modal.dataclass import dataclass
from skyrl_modal.views.colors import BLUE, GREEN, RED, STATE_COLORS, YELLOW
from skyrl_modal.views.metrics import important_keys
from skyrl_modal.views.money import format_money
from skyrl_modal.views.plot import format_number, plot_lines
from skyrl_modal.views.text import escape_controls

#: Metrics that are shown: each has a digit as its key.
MAX_CURVES = 9
#: The names of further metrics, after the most important ones, in their order.
_FURTHER = tuple(map(re.compile, (r"reward", r"^eval/", r"loss", r"entropy|kl", r"grad_norm|accuracy|score|length")))
_OTHERS = re.compile(r"^(timing|ray|vllm|trainer|system)/")
#: Characters of a small plot, from the lowest to the highest value.
_BLOCKS, _ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.-=+*#"
_COLOR_NAMES = {GREEN: "green", BLUE: "blue", RED: "red", YELLOW: "yellow"}
#: Columns of the number and the last value of a metric, and the most of its name and its small plot.
_NUMBER_WIDTH, _VALUE_WIDTH, _NAME_WIDTH, _SPARK_WIDTH = 2, 11, 36, 60
#: Lines of the plot, with its axis, and the fewest lines of output that are shown beside it.
_PLOT_LINES, _MIN_OUTPUT = 8, 4
#: The fewest metrics that are listed beside a plot.
_MIN_CURVES = 3
_MIN_WIDTH, _MIN_HEIGHT = 20, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The values of one metric.

    Attributes:
        key: Its name.
        steps: The steps, in ascending order.
        values: The values.
        last: The newest value.
    """

    key: str
    steps: Sequence[float] = ()
    values: Sequence[float] = ()
    last: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class TopFrame:
    """What is shown of a run.

    Attributes:
        run_id: Its id.
        name: Its name; empty if it has none.
        command: The command.
        backend: The name of its backend.
        state: Its state.
        returncode: Its exit code; None while it has not ended.
        duration: Seconds since it was created, or until its end; None if that is not known.
        step: The newest step; None if there is none.
        total_steps: The number of steps of the training; None if it is not known.
        ends_at: When it is expected to end: seconds since the epoch; None if that is not known.
        cost: What it has cost, in US dollars; None if that is not known.
        gpu_use: The use of its GPUs in percent; None if it is not known.
        curves: The most important metrics.
        lines: The last lines of its output, without control characters.
        message: Why something cannot be shown; empty if all can.
    """

    run_id: str
    name: str = ""
    command: str = ""
    backend: str = ""
    state: str = "unknown"
    returncode: int | None = None
    duration: float | None = None
    step: int | None = None
    total_steps: int | None = None
    ends_at: float | None = None
    cost: float | None = None
    gpu_use: float | None = None
    curves: Sequence[Curve] = ()
    lines: Sequence[str] = ()
    message: str = ""


def key_metrics(names: Sequence[str]) -> list[str]:
    """Return the names of the metrics to show, the most important ones first.

    Example:
        >>> key_metrics(["timing/step", "policy/final_loss", "reward/avg_raw_reward"])
        ['reward/avg_raw_reward', 'policy/final_loss']
    """
    found = dict.fromkeys(key for key in important_keys(names) if not _OTHERS.match(key))
    others = [key for key in names if not _OTHERS.match(key)]
    for pattern in _FURTHER:
        found.update(dict.fromkeys(key for key in others if pattern.search(key)))
    return [*found, *(key for key in others if key not in found)][:MAX_CURVES] or list(names)[:MAX_CURVES]


def spark_line(values: Sequence[float], width: int, *, is_ascii: bool = False) -> str:
    """Return a plot of one line. Values that are not finite are left out.

    Example:
        >>> spark_line([0, 1, 2, 3], 4), spark_line([1, 1], 4), spark_line([], 4)
        ('▁▃▆█', '▄▄', '')
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite or width < 1:
        return ""
    count = min(width, len(finite))
    limits = [len(finite) * number // count for number in range(count + 1)]
    parts = [finite[begin:end] for begin, end in itertools.pairwise(limits)]
    means = [math.fsum(value / len(part) for value in part) for part in parts]
    blocks = _ASCII_BLOCKS if is_ascii else _BLOCKS
    low, high = min(means), max(means)
    if low == high:
        return blocks[(len(blocks) - 1) // 2] * count
    # Divided first: the difference of two large numbers may be infinite.
    shares = ((value / 2 - low / 2) / (high / 2 - low / 2) for value in means)
    return "".join(blocks[round(share * (len(blocks) - 1))] for share in shares)


def format_elapsed(seconds: float) -> str:
    """Return a duration with at most two units.

    Example:
        >>> format_elapsed(5), format_elapsed(754), format_elapsed(7384), format_elapsed(180000)
        ('5s', '12m34s', '2h03m', '2d02h')
    """
    whole = max(0, int(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days}d{hours % 24:02}h"
    if hours:
        return f"{hours}h{minutes % 60:02}m"
    return f"{minutes}m{whole % 60:02}s" if minutes else f"{whole}s"


def frame_to_lines(
    frame: TopFrame,
    *,
    width: int = 80,
    height: int = 24,
    chosen: int = 0,
    position: tuple[int, int] | None = None,
    now: float | None = None,
    is_ascii: bool = False,
) -> list[Text]:
    """Return the lines of a frame. None is longer than ``width``, and there are at most ``height``.

    Args:
        frame: What is shown.
        width: Number of columns.
        height: Number of lines.
        chosen: Index of the metric with a large plot.
        position: Number of the run in the list, and the number of runs, for a line that shows the keys; None for no
            such line.
        now: The time; None to ask the system.
        is_ascii: Whether to use only characters of ASCII, except in texts of the run.
    """
    width, height = max(width, _MIN_WIDTH), max(height, _MIN_HEIGHT)
    head = [_title(frame), _facts(frame, time.time() if now is None else now, width)]
    head += [Text(escape_controls(frame.command.replace("\n", " ")), "dim")] if frame.command and height > 8 else []
    head += [Text(escape_controls(frame.message), "yellow")] if frame.message else []
    tail = [] if position is None else [_keys(*position, len(frame.curves))]
    room = height - len(head) - len(tail)
    beside_plot = room - _PLOT_LINES - 2 - _MIN_OUTPUT
    has_plot = bool(frame.curves) and beside_plot >= min(_MIN_CURVES, len(frame.curves))
    limit = beside_plot if has_plot else max(0, room - _MIN_OUTPUT - 1)
    chosen = min(chosen, len(frame.curves) - 1)
    first = max(0, chosen - limit + 1)  # the chosen one is always shown
    curves = list(enumerate(frame.curves))[first : first + min(MAX_CURVES, limit)]
    body = [_metric_line(curve, number, chosen, width, is_ascii) for number, curve in curves]
    if has_plot:
        extra = min(8, (room - len(body) - _PLOT_LINES - 2 - _MIN_OUTPUT) // 3)
        curve, rows = frame.curves[chosen], _PLOT_LINES - 1 + extra
        body.append(Text(escape_controls(curve.key), "bold"))
        plot = plot_lines(curve.steps, curve.values, width=width, height=rows, is_ascii=is_ascii)
        body += [Text(line, "cyan") for line in plot]
    body = [Text(), *body] if body and room - len(body) > _MIN_OUTPUT else body
    shown = room - len(body) - 1
    if shown > 0 and frame.lines:
        body += [Text(f"{'-' * 2 if is_ascii else '─' * 2} last lines", "dim")]
        body += [Text(escape_controls(line.expandtabs(4))) for line in frame.lines[-shown:]]
    elif shown > 0:
        body.append(Text("no output yet" if frame.returncode is None else "no output", "dim"))
    if tail:
        body += [Text()] * (room - len(body))
    lines = [*head, *body[:room], *tail][:height]
    for line in lines:
        line.truncate(width, overflow="crop" if is_ascii else "ellipsis")
    return lines


def _title(frame: TopFrame) -> Text:
    state = frame.state if frame.returncode in (None, 0) else f"{frame.state} (exit code {frame.returncode})"
    title = Text.assemble(
        (escape_controls(state), f"bold {_COLOR_NAMES.get(STATE_COLORS.get(frame.state, ''), '')}".rstrip()), "  "
    )
    title.append(escape_controls(frame.run_id), "bold")
    title.append(f"  {escape_controls(frame.name)}" if frame.name else "")
    title.append(f"  {escape_controls(frame.backend)}" if frame.backend else "", "dim")
    return title


def _facts(frame: TopFrame, now: float, width: int) -> Text:
    line = _all_facts(frame, now, has_time=True)
    return line if line.cell_len <= width else _all_facts(frame, now, has_time=False)


def _all_facts(frame: TopFrame, now: float, *, has_time: bool) -> Text:
    facts = []
    if frame.duration is not None:
        facts.append(("elapsed", format_elapsed(frame.duration)))
    if frame.step is not None:
        facts.append(("step", f"{frame.step:,}" + ("" if frame.total_steps is None else f" of {frame.total_steps:,}")))
    if frame.ends_at is not None and frame.ends_at > now:
        at = time.strftime(" (%H:%M)", time.localtime(frame.ends_at)) if has_time else ""
        facts.append(("ends in", f"{format_elapsed(frame.ends_at - now)}{at}"))
    if frame.cost is not None:
        facts.append(("cost", format_money(frame.cost)))
    if frame.gpu_use is not None:
        facts.append(("GPU", f"{frame.gpu_use:.0f}%"))
    line = Text()
    for label, value in facts:
        line.append("  " if line else "").append(f"{label} ", "dim").append(value)
    return line


def _keys(number: int, count: int, curves: int) -> Text:
    keys = [("q", "quit")]
    if count > 1:
        keys.append(("n/p", f"run {number} of {count}"))
    if curves > 1:
        keys.append((f"1-{curves}", "metric"))
    line = Text()
    for key, meaning in keys:
        line.append("  " if line else "").append(key, "bold").append(f" {meaning}", "dim")
    return line


def _metric_line(curve: Curve, number: int, chosen: int, width: int, is_ascii: bool) -> Text:
    name_width = min(_NAME_WIDTH, max(8, (width - _NUMBER_WIDTH - _VALUE_WIDTH - 2) // 2))
    spark_width = min(_SPARK_WIDTH, width - _NUMBER_WIDTH - name_width - _VALUE_WIDTH - 2)
    name = Text(escape_controls(curve.key))
    name.truncate(name_width, overflow="crop" if is_ascii else "ellipsis", pad=True)
    line = Text.assemble((f"{number + 1} ", "dim")).append(name.plain, "bold" if number == chosen else "")
    line.append(f"{format_number(curve.last):>{_VALUE_WIDTH}}  ")
    return line.append(spark_line(curve.values, spark_width, is_ascii=is_ascii), "cyan")


def lines_to_text(lines: Sequence[Text], *, has_colors: bool) -> list[str]:
    """Return lines as they are written to a terminal: with sequences for colors, or without any sequence.

    Args:
        lines: The lines.
        has_colors: Whether they get colors.
    """
    console = Console(
        file=io.StringIO(), width=10_000, force_terminal=has_colors, color_system="standard" if has_colors else None,
        no_color=False, highlight=False, markup=False, emoji=False, legacy_windows=False,
    )  # fmt: skip
    written = []
    for line in lines:
        with console.capture() as capture:
            console.print(line, end="", soft_wrap=True)
        written.append(capture.get().rstrip("\n"))
    return written
