"""The progress of a transfer on a terminal, on a pipe, and where nothing can be displayed."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from skyrl_modal.views.transfer_progress import TransferProgress

#: A transfer that has copied a part, and ends when its standard input is closed.
TRANSFER = """
import sys
from skyrl_modal.views import transfer_progress

transfer_progress._PIPE_INTERVAL = 0.05
with transfer_progress.TransferProgress("pull", quiet="quiet" in sys.argv) as progress:
    for number in range(4):
        progress.found(f"file-{number}", 1_000_000_000, "unchanged" if number == 3 else "new")
    progress.transferred(500_000_000, is_resumed=True)
    progress.transferred(600_000_000)
    progress.completed()
    sys.stdin.read()
print(progress.summary())
"""


def test_live_line_on_a_terminal() -> None:
    """A terminal shows one line, which fits into 80 columns and is removed at the end."""
    controller, terminal = pty.openpty()
    command = [sys.executable, "-c", TRANSFER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=terminal) as process:
        os.close(terminal)
        shown = b""
        while shown.count(b"\r") < 3:
            shown += os.read(controller, 4096)
        process.communicate(timeout=60)
    while True:
        try:
            data = os.read(controller, 4096)
        except OSError:  # the process has closed the terminal
            break
        if not data:
            break
        shown += data
    os.close(controller)

    lines = shown.decode().split("\r\x1b[2K")
    assert "pull: 1 of 3 files, 1.1 GB of 3.0 GB, " in lines[1]
    assert lines[1].rstrip().endswith(" left")
    assert max(map(len, lines)) < 80
    assert "\n" not in shown.decode()
    assert lines[-1] == ""


def test_lines_on_a_pipe() -> None:
    """A pipe receives whole lines without control characters."""
    with subprocess.Popen(
        [sys.executable, "-c", TRANSFER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        line = process.stderr.readline()
        output, _ = process.communicate(timeout=60)

    assert line.startswith("skyrl-modal | pull: 1 of 3 files, 1.1 GB of 3.0 GB, ")
    assert line.endswith(" left\n")
    assert "\x1b" not in line
    assert output.startswith("copied 1 file, 1.1 GB, in ")
    assert output.endswith("; 500.0 MB were there already; 1 file unchanged\n")


def test_first_line_before_anything_is_copied() -> None:
    """Before anything is copied, the number and size of the files are displayed, and no rate."""
    progress = TransferProgress("push")
    progress.found("a", 2_000_000, "new")
    progress.found("b", 1, "unchanged")

    assert progress.line() == "push: examining 2 files, 2.0 MB"


def test_nothing_is_displayed_if_quiet() -> None:
    """With quiet nothing is written to standard error."""
    command = [sys.executable, "-c", TRANSFER, "quiet"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=True)

    assert done.stderr == ""


def test_missing_standard_error_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without standard error can transfer files."""
    monkeypatch.setattr(sys, "stderr", None)
    with TransferProgress("push") as progress:
        progress.completed()

    assert progress.done_files == 1
