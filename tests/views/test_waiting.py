"""What a run waits for, on terminals, on pipes, and where nothing can be displayed."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Iterator, Sequence

import attrs
import pytest

from skyrl_modal.backends.base import Progress
from skyrl_modal.views import live_line, text, waiting
from skyrl_modal.views.colors import has_colors
from skyrl_modal.views.live_line import cut
from skyrl_modal.views.text import StderrReporter
from skyrl_modal.views.waiting import WaitingDisplay
from tests.support.terminals import Screen, Terminal


@attrs.define
class FakeExecution:
    """An execution that waits as a test requests."""

    current: Progress | None = None
    lines: list[str] = attrs.Factory(list)
    asked: threading.Event = attrs.Factory(threading.Event)

    def progress(self) -> Progress | None:
        """Return what it waits for."""
        self.asked.set()
        return self.current

    def take_lines(self) -> Sequence[str]:
        """Return the lines since the last call."""
        taken, self.lines = self.lines, []
        return taken


class Lines(io.StringIO):
    """Standard error that is no terminal. A test can wait for a number of lines."""

    def __init__(self) -> None:
        super().__init__()
        self._written = threading.Condition()

    def write(self, data: str) -> int:
        """Append a text."""
        with self._written:
            self._written.notify_all()
            return super().write(data)

    def wait_for(self, count: int) -> list[str]:
        """Return the first lines, as soon as there are so many."""
        with self._written:
            self._written.wait_for(lambda: self.getvalue().count("\n") >= count)
        return self.getvalue().splitlines()[:count]


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the times, and define the terminal."""
    for name, seconds in {
        "FIRST_DELAY": 0.01, "UPDATE_INTERVAL": 0.01, "IDLE_INTERVAL": 0.01, "PHASE_DELAY": 0.02,
        "REPORT_INTERVAL": 3600.0, "LONG_REPORT_INTERVAL": 3600.0,
    }.items():  # fmt: skip
        monkeypatch.setattr(waiting, name, seconds)
    for name in ("NO_COLOR", "FORCE_COLOR", "XTERM_VERSION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """A terminal with 80 columns."""
    with Terminal(80) as opened:
        yield opened


@contextlib.contextmanager
def displayed(target: Terminal | Lines, *, is_verbose: bool = False) -> Iterator[WaitingDisplay]:
    """Display on a terminal or on a pipe, which is standard error in the block. pytest replaces it between fixtures."""
    with contextlib.ExitStack() as stack:
        stream = target
        if isinstance(target, Terminal):
            stack.enter_context(contextlib.suppress(OSError))  # of a terminal that was closed
            stream = stack.enter_context(target.stream())
        stack.enter_context(contextlib.redirect_stderr(stream))
        yield stack.enter_context(WaitingDisplay(StderrReporter(), is_verbose=is_verbose))


# -- terminals ---------------------------------------------------------------------------------------------------------


def test_line_is_removed_before_the_output(terminal: Terminal) -> None:
    """The live line has phase, elapsed time and detail, and nothing of it remains when the output is written."""
    written: list[bytes] = []
    execution = FakeExecution(Progress("waiting for H100:8", "no capacity", 75))
    with displayed(terminal) as display:
        display.watch(execution)
        terminal.wait_for("no capacity")
        execution.current = None
        display.write(lambda data: written.append(terminal_rest(terminal, data)), b"output")
        terminal.forget()
        display.write(written.append, b"\n")

    screen = Screen(80)
    screen.write(written[0].decode())
    assert "skyrl-modal | \x1b[0mwaiting for H100:8 (1 min 15 s)" in written[0].decode()
    assert screen.rows == ["output"]
    assert written[1:] == [b"\n"]


def terminal_rest(terminal: Terminal, data: bytes) -> bytes:
    """Write a mark to the terminal, and return what it has received until then, with data instead of the mark."""
    os.write(terminal.device, b"END")
    terminal.wait_for("END")
    return terminal.received.removesuffix("END").encode() + data


def test_messages_are_above_the_line(terminal: Terminal) -> None:
    """A message replaces the line, which is drawn again below it; the end leaves the messages alone."""
    with displayed(terminal) as display:
        display.begin("copying the selected files")
        terminal.wait_for("copying the selected files")
        display.info("first")
        display.warn("second")
        terminal.wait_for("second\r\n.*copying the selected files")

    os.write(terminal.device, b"END")
    terminal.wait_for("END")
    screen = Screen(80)
    screen.write(terminal.received)
    assert screen.rows == ["skyrl-modal | first", "skyrl-modal | warning: second", "END"]


@pytest.mark.parametrize("columns", [20, 80, 200])
def test_line_fits_into_the_terminal(terminal: Terminal, columns: int) -> None:
    """A line with wide characters, colors and controls is cut, so that it has one row."""
    terminal.resize(columns)
    detail = "\x1b[32mStep 1\x1b[0m: \x1b[2J" + 300 * "日本 "
    with displayed(terminal) as display:
        display.watch(FakeExecution(Progress("building", detail, 1)))
        terminal.wait_for("…")
        shown = terminal.received

    screen = Screen(columns)
    screen.write(shown)
    [row] = screen.rows
    width = live_line.text_width(row)
    assert columns - 3 <= width <= columns - 1
    assert "\x1b[2J" not in shown
    if columns > 40:
        assert row.startswith("skyrl-modal | building (1 s): Step 1: \\x1b[2J日本 日本")


def test_line_follows_the_width(terminal: Terminal) -> None:
    """After the terminal has become narrower, the rows into which it has broken the line are removed."""
    with displayed(terminal) as display:
        display.watch(FakeExecution(Progress("building", 20 * "abcdefghi ", 1)))
        terminal.wait_for("…")
        terminal.resize(40)
        terminal.forget()
        begin, frame = terminal.wait_for(r"((?:\r|\x1b\[1A|\x1b\[2K)+)([^\r]*…)").groups()
        terminal.resize(200)
        terminal.forget()
        long = terminal.wait_for(r"\r([^\r]*…)")[1]

    screens = [Screen(columns) for columns in (40, 200)]
    for screen, shown in zip(screens, (frame, long), strict=True):
        screen.write(shown)
    assert begin == "\r\x1b[2K\x1b[1A\x1b[2K"
    assert [len(screen.rows[0]) for screen in screens] == [39, 199]


def test_line_does_not_hide_unfinished_output(terminal: Terminal) -> None:
    """After output without a newline, such as a progress bar, nothing is drawn, even if the run waits again."""
    execution = FakeExecution()
    with displayed(terminal) as display:
        display.watch(execution)
        display.begin("running", is_command=True)
        terminal.wait_for("running")
        display.write(lambda data: os.write(terminal.device, data), b"50 %")
        execution.current = Progress("waiting for another container")
        for _ in range(2):  # the first answer has been displayed when the second one is requested
            execution.asked.clear()
            execution.asked.wait()
        terminal.wait_for("50 %")
        terminal.forget()
        display.write(lambda data: os.write(terminal.device, data), b"\n")
        terminal.wait_for("waiting for another container")

    assert terminal.received.startswith("\r\n")


def test_caller_prints_without_the_line(terminal: Terminal) -> None:
    """While code of the caller is called, the line is hidden, so that it can print."""
    with displayed(terminal) as display:
        display.begin("copying")
        terminal.wait_for("copying")
        terminal.forget()
        display.call(os.write, terminal.device, b"printed\n")
        terminal.wait_for("copying")

    assert terminal.received.startswith("\r\x1b[2Kprinted\r\n")


def test_second_run_of_the_process_has_no_line(terminal: Terminal) -> None:
    """Of two runs at the same time one has a live line, and the output of the other one removes it for good."""
    with displayed(terminal) as first:
        first.begin("first")
        terminal.wait_for("first")
        with displayed(terminal) as second:
            second.begin("second")
            terminal.wait_for("second[^\r]*\r\n")
            second.write(lambda data: os.write(terminal.device, data), b"output\n")
        assert text.live_lines == []
        terminal.wait_for("output\r\n")


def test_line_on_a_closed_terminal_is_ignored(terminal: Terminal) -> None:
    """A terminal that is closed during the wait changes nothing about the run."""
    received: list[bytes] = []
    with displayed(terminal) as display:
        display.begin("copying")
        terminal.wait_for("copying")
        terminal.hang_up()
        display.info("a message")
        display.begin("another phase")
        display.write(received.append, b"output")

    assert received == [b"output"]


@pytest.mark.parametrize("value", ["dumb", "unknown", ""])
def test_dumb_terminal_receives_lines(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """A terminal that cannot move the cursor receives lines without control characters."""
    monkeypatch.setenv("TERM", value)
    with displayed(terminal) as display:
        display.begin("copying")
        terminal.wait_for("\n")

    assert terminal.received.replace("\x1b[2m", "").replace("\x1b[0m", "") == "skyrl-modal | copying\r\n"


# -- without a terminal ------------------------------------------------------------------------------------------------


def test_phases_are_lines_on_a_pipe() -> None:
    """A phase that lasts is one line without control characters; the running command is none."""
    pipe = Lines()
    execution = FakeExecution()
    with displayed(pipe) as display:
        display.begin("copying")
        pipe.wait_for(1)
        display.watch(execution)
        execution.current = Progress("waiting for H100:8", "no capacity\x1b[2J", 90)
        lines = pipe.wait_for(2)
        execution.current = None
        display.begin("running", is_command=True)

    assert lines == [
        "skyrl-modal | copying",
        "skyrl-modal | waiting for H100:8 (1 min 30 s): no capacity\\x1b[2J",
    ]


def test_phase_is_repeated_on_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """A phase is reported again after an interval in which nothing else was written."""
    pipe = Lines()
    monkeypatch.setattr(waiting, "REPORT_INTERVAL", 0.02)
    with displayed(pipe) as display:
        display.begin("copying")
        lines = pipe.wait_for(3)

    assert lines == ["skyrl-modal | copying"] * 3


def test_verbose_writes_everything_as_lines(terminal: Terminal) -> None:
    """With verbose, each phase is reported when it begins, with all lines of long steps, and there is no live line."""
    execution = FakeExecution(lines=["Step 1", "Step 2"])
    with displayed(terminal, is_verbose=True) as display:
        display.begin("copying")
        display.begin("starting")
        display.watch(execution)
        display.info("a message")
        display.begin("running", is_command=True)
        execution.lines = ["Step 3"]
        display.write(lambda data: os.write(terminal.device, data), b"output\n")
        terminal.wait_for("output")

    expected = ["copying", "starting", "Step 1", "Step 2", "a message", "running", "Step 3"]
    lines = terminal.received.replace("\x1b[2m", "").replace("\x1b[0m", "").split("\r\n")
    assert lines == [f"skyrl-modal | {line}" for line in expected] + ["output", ""]


def test_short_start_writes_nothing() -> None:
    """A start whose phases do not last writes nothing."""
    pipe = Lines()
    with displayed(pipe) as display:
        display.begin("copying")

    assert pipe.getvalue() == ""


def test_closed_standard_error_is_ignored() -> None:
    """A process whose standard error is closed can run commands."""
    pipe = Lines()
    received: list[bytes] = []
    pipe.close()
    with displayed(pipe) as display:
        display.begin("copying")
        display.info("a message")
        display.write(received.append, b"output")

    assert received == [b"output"]


# -- parts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "on_terminal", "expected"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, True, False),
    ],
)
def test_colors(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], on_terminal: bool, expected: bool
) -> None:
    """Colors are for terminals, unless NO_COLOR or FORCE_COLOR is set; the former has precedence."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    with terminal.stream() as stream:
        assert has_colors(stream if on_terminal else io.StringIO()) is expected


def test_text_is_cut_by_its_columns() -> None:
    """Characters of two columns are counted as such, and a text that fits is unchanged."""
    assert [cut("日本語", width) for width in (6, 5, 4, 1, 0)] == ["日本語", "日本…", "日…", "…", ""]
