"""The frame of `skyrl-modal top`, and the terminal that it is shown on."""

from __future__ import annotations

import math
import os
import signal
import termios

import pytest
from rich.cells import cell_len

from skyrl_modal.views.full_screen import FullScreen, parse_keys
from skyrl_modal.views.top import Curve, TopFrame, frame_to_lines, key_metrics, lines_to_text, spark_line
from tests.support.terminals import Terminal

STEPS = list(range(50))
FRAME = TopFrame(
    run_id="20260131-120000-1a2b3c",
    name="base\x1b[2Jline",
    command="python\ntrain.py \u202e日本語" + "x" * 300,
    backend="local",
    state="running",
    duration=754.0,
    step=49,
    total_steps=100,
    ends_at=1000.0 + 3900,
    cost=1.25,
    gpu_use=87.4,
    curves=[
        Curve(key=key, steps=STEPS, values=[math.sin(step) for step in STEPS], last=0.5)
        for key in ("reward/avg_raw_reward", "policy/\x1b]0;title\x07loss", "日本語" * 20)
    ],
    lines=["first", "a\x1b[31mb\x07", "日本語" * 100, "\x9b2J", "tab\tend", "last"],
)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (79, 24), (200, 60), (40, 12), (20, 4), (1, 1)])
@pytest.mark.parametrize("is_ascii", [False, True])
@pytest.mark.parametrize("position", [None, (1, 3)])
def test_frame_fits(width: int, height: int, is_ascii: bool, position: tuple[int, int] | None) -> None:
    """A frame has at most the lines and columns of the terminal, and no control character of the run."""
    lines = frame_to_lines(FRAME, width=width, height=height, position=position, now=1000.0, is_ascii=is_ascii)
    written = lines_to_text(lines, has_colors=False)

    assert len(written) <= max(height, 4)
    assert max(map(cell_len, written)) <= max(width, 20)
    assert all(line.isprintable() for line in written)
    assert "running" in written[0]


def test_frame_has_all_facts() -> None:
    """80 columns and 24 lines have the facts, all metrics, a plot, the last lines and the keys."""
    lines = lines_to_text(frame_to_lines(FRAME, position=(2, 3), now=1000.0, chosen=1), has_colors=False)
    text = "\n".join(lines)

    assert len(lines) == 24
    assert lines[1].startswith("elapsed 12m34s  step 49 of 100  ends in 1h05m (")
    assert lines[1].endswith(")  cost $1.25  GPU 87%")
    assert "1 reward/avg_raw_reward" in text
    assert [line for line in lines if line == "policy/\\x1b]0;title\\x07loss"]
    assert lines[-2] == "last"
    assert lines[-1] == "q quit  n/p run 2 of 3  1-3 metric"


def test_chosen_metric_is_shown() -> None:
    """With more metrics than lines beside the plot, those up to the chosen one are listed."""
    frame = TopFrame(run_id="r1", curves=[Curve(key=f"loss{n}", steps=[1, 2], values=[1, 2], last=2) for n in range(9)])
    lines = lines_to_text(frame_to_lines(frame, position=(1, 1), now=1.0, chosen=8), has_colors=False)

    assert len(lines) == 24
    assert lines[-1] == "q quit  1-9 metric"
    assert "loss8" in lines
    assert [line for line in lines if line.startswith("9 loss8")]
    assert not [line for line in lines if line.startswith("1 loss0")]


def test_unknown_values_are_left_out() -> None:
    """A run of which little is known has no placeholders, and an end in the past is no estimate."""
    frame = TopFrame(run_id="r1", state="failed", returncode=3, message="the backend cannot be reached", ends_at=5.0)
    lines = lines_to_text(frame_to_lines(frame, now=10.0), has_colors=False)

    assert lines == ["failed (exit code 3)  r1", "", "the backend cannot be reached", "no output"]


def test_colors() -> None:
    """Lines have sequences only where colors are requested."""
    lines = frame_to_lines(FRAME, now=1000.0)

    assert not any("\x1b" in line for line in lines_to_text(lines, has_colors=False))
    assert lines_to_text(lines, has_colors=True)[0].startswith("\x1b[1;34mrunning\x1b[0m")


def test_spark_line_of_any_values() -> None:
    """Values that are not finite are left out; huge ones do not overflow; many are joined."""
    assert spark_line([math.nan, math.inf], 10) == ""
    assert spark_line([-1.7e308, math.nan, 1.7e308], 10) == "▁█"
    assert len(spark_line(range(100_000), 30)) == 30
    assert spark_line(range(4), 4, is_ascii=True).isascii()


def test_key_metrics() -> None:
    """Rewards are first and timings last; at most nine are shown."""
    names = ["timing/step", "a", "policy/final_loss", *(f"reward/{number}" for number in range(12))]

    assert key_metrics(names)[:2] == ["policy/final_loss", "reward/0"]
    assert len(key_metrics(names)) == 9
    assert key_metrics(["timing/step"]) == ["timing/step"]
    assert key_metrics([]) == []


def test_parts_of_sequences_are_no_keys() -> None:
    """Unknown and incomplete sequences are left out."""
    assert parse_keys("\x1b[1;5D\x1bOBn\x1b[15~\x1b") == ["left", "down", "n"]


class StopError(Exception):
    """An error that a test raises."""


def show_and_fail(device: int) -> None:
    """Show a frame, and raise an error."""
    with FullScreen(device, device) as screen:
        assert not termios.tcgetattr(device)[3] & termios.ECHO
        screen.draw(["one", "two"])
        raise StopError


def test_terminal_is_restored_after_an_error() -> None:
    """An exception leaves the alternate screen, shows the cursor, and restores modes and signal handlers."""
    with Terminal() as terminal:
        modes, handler = termios.tcgetattr(terminal.device), signal.getsignal(signal.SIGTERM)
        with pytest.raises(StopError):
            show_and_fail(terminal.device)
        assert termios.tcgetattr(terminal.device) == modes
        assert signal.getsignal(signal.SIGTERM) is handler
        written = terminal.read_rest().replace("\r\r", "\r")  # the terminal adds one
        assert written.endswith("\x1b[Hone\x1b[K\r\ntwo\x1b[K\x1b[J\x1b[0m\x1b[?25h\x1b[?1049l")


def test_closed_terminal_ends_the_view() -> None:
    """A terminal that was closed has the key q, and its restoration raises no error."""
    with Terminal() as terminal, FullScreen(terminal.device, terminal.device) as screen:
        terminal.hang_up()
        assert screen.wait(60) == ["q"]


def test_signal_ends_the_wait() -> None:
    """SIGTERM is noticed while the program waits for keys."""
    with Terminal() as terminal, FullScreen(terminal.device, terminal.device) as screen:
        os.kill(os.getpid(), signal.SIGTERM)
        assert screen.wait(60) == []
        assert screen.ended_by == signal.SIGTERM
