"""Tests of lines on a terminal, which are broken at spaces only."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from skyrl_modal.views.wrapping import wrap_for, wrap_lines


def test_lines_of_a_row_are_aligned() -> None:
    """Further lines of a row begin below its value, and those of a message are indented."""
    assert wrap_lines("   mount  /root/SkyRL from the checkout: 363 files, 4.4 MB", 40).splitlines() == [
        "   mount  /root/SkyRL from the checkout:",
        "          363 files, 4.4 MB",
    ]
    assert wrap_lines("warning: the checkout requires another version of Ray", 40).splitlines() == [
        "warning: the checkout requires another",
        "  version of Ray",
    ]


def test_what_is_copied_is_not_broken() -> None:
    """A path, and a command in backticks, are on one line. Spaces in it are kept."""
    path = "/home/user/" + "x" * 60
    command = "`pip  install ray==2.57.0`"

    lines = wrap_lines(f"the log of this run is at {path}, run {command} to continue", 40).splitlines()

    assert [line for line in lines if f"{path}," in line] == [f"  {path},"]
    assert [line for line in lines if command in line]


@pytest.mark.parametrize("text", ["short", "two  spaces", "", "a" * 100, "    indented\n\nlines"])
def test_other_lines_are_unchanged(text: str) -> None:
    """What fits, and what has one word, is not changed; nor is anything on a terminal that is too narrow for it."""
    assert wrap_lines(text, 80) == text
    assert wrap_lines("several spaces " * 5, 20) == "several spaces " * 5


def test_a_pipe_receives_whole_lines() -> None:
    """Without a terminal, lines are not changed."""
    with open(os.devnull, "w", encoding="utf-8") as stream:
        assert wrap_for(stream, "word " * 100) == "word " * 100


def test_an_error_is_broken_at_spaces(tmp_path: Path) -> None:
    """The lines of an error on a terminal of 50 columns are broken at spaces."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 50, 0, 0))
    command = [sys.executable, "-m", "skyrl_modal", "logs", "none-such"]
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | {"NO_COLOR": "1"}
    subprocess.run(
        command, stdin=terminal, stdout=subprocess.DEVNULL, stderr=terminal, cwd=tmp_path, env=environment, check=False
    )
    os.close(terminal)

    lines = os.read(controller, 65536).decode().split("\r\n")

    assert max(map(len, lines)) <= 50
    assert "skyrl-modal: no run has the id 'none-such'." in lines[0]
    assert "`skyrl-modal ps`" in "\n".join(lines)
