"""`skyrl-modal top` on a terminal and without one, with a run that trains meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator

import pytest

from skyrl_modal import Launcher, Run, VolumeSpec
from tests.support.terminals import Terminal

#: Trains until it is stopped. Its lines have sequences that would change the terminal.
PROGRAM = r"""
import itertools, time
from skyrl_modal import log_metrics
for step in itertools.count(1):
    log_metrics({"reward/avg_raw_reward": step % 7, "policy/final_loss": 1 / step, "ray/gpu.util.avg": 87.0}, step=step)
    print(f"Training Batches Processed:  12%|# | {step}/90000 [01:10<08:50, 10.0s/it]", end="\r", flush=True)
    print(f"\nline {step} \x1b[2J\x1b]0;title\x07\x1b[?1049l\u202eend", flush=True)
    time.sleep(0.1)
"""
ENTER, LEAVE, HOME = "\x1b[?1049h\x1b[?25l", "\x1b[0m\x1b[?25h\x1b[?1049l", "\x1b[H"


@pytest.fixture(scope="module")
def run(isolated_user_folders: None) -> Iterator[Run]:
    """Return an active run that has logged some steps."""
    launcher = Launcher(backend="local", mounts=[], ray=None, volumes=[VolumeSpec(name="test-top")], name="curve")
    run = launcher.submit([sys.executable, "-c", PROGRAM])
    for row in run.metrics(follow=True):
        if row["step"] >= 5:
            break
    yield run
    run.cancel(now=True)
    run.wait()


def command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command line without a terminal."""
    program = [sys.executable, "-m", "skyrl_modal", "top", *arguments]
    environment = {**os.environ, **variables}
    return subprocess.run(program, capture_output=True, text=True, check=False, env=environment, encoding="utf-8")


@contextlib.contextmanager
def on_terminal(*arguments: str, **variables: str) -> Iterator[tuple[Terminal, subprocess.Popen[bytes]]]:
    """Start the command with a terminal of 80 columns that controls it."""
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONUTF8": "1", **variables}
    environment.pop("COLUMNS", None)
    with Terminal() as terminal:
        process = subprocess.Popen(
            [sys.executable, "-m", "skyrl_modal", "top", *arguments],
            stdin=terminal.device,
            stdout=terminal.device,
            stderr=terminal.device,
            env=environment,
            preexec_fn=lambda: os.login_tty(os.dup(terminal.device)),  # noqa: PLW1509  # there are no other threads
        )
        try:
            yield terminal, process
        finally:
            process.kill()
            process.wait()


def test_live_view(run: Run) -> None:
    """Steps advance, keys choose metrics, the size is followed, and q restores the terminal; the run continues."""
    with on_terminal(NO_COLOR="1") as (terminal, process):
        modes = termios.tcgetattr(terminal.device)
        first = int(terminal.wait_for(r"\x1b\[H.*running  [\s\S]*step (\d+) of 90,000 ")[1])
        assert ENTER in terminal.received
        assert not termios.tcgetattr(terminal.device)[3] & termios.ECHO
        while int(terminal.wait_for(r"step (\d+) of 90,000 [\s\S]*q quit")[1]) <= first:
            terminal.forget()
        terminal.wait_for(r"GPU 87%[\s\S]*line \d+ \\u202eend|GPU 87%[\s\S]*line \d+ +\\u202eend")
        assert run.id in terminal.received
        assert "\x1b[2J\x1b]" not in terminal.received
        terminal.write("2")
        terminal.forget()
        terminal.wait_for(r"\r\npolicy/final_loss\x1b\[K")

        terminal.resize(50)
        terminal.forget()
        terminal.wait_for(r"\r\n {8,10}\d?[\s\S]*\x1b\[J\x1b\[H[\s\S]*\x1b\[J")
        rows = re.split(r"[\r\n]+", re.sub(r"\x1b\[[KJH]", "", terminal.received.split(HOME)[-1]))
        assert max(map(len, rows)) < 50

        terminal.write("\x1a")  # Ctrl-Z
        assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
        assert termios.tcgetattr(terminal.device) == modes
        terminal.wait_for(re.escape(LEAVE))
        terminal.forget()
        process.send_signal(signal.SIGCONT)
        terminal.wait_for(rf"{re.escape(ENTER)}[\s\S]*running")

        terminal.write("q")
        assert process.wait() == 0
        assert termios.tcgetattr(terminal.device) == modes
        rest = terminal.read_rest()
    assert rest.count(LEAVE) == 1
    assert f"{run.id} continues: `skyrl-modal cancel {run.id}` stops it" in re.sub(r"\s+", " ", rest.split(LEAVE)[1])
    assert run.state == "running"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 0)])
def test_signals_restore_the_terminal(run: Run, number: signal.Signals, code: int) -> None:
    """SIGTERM ends the process, and Ctrl-C the view, with a restored terminal."""
    with on_terminal(run.id) as (terminal, process):
        modes = termios.tcgetattr(terminal.device)
        terminal.wait_for(r"running.*\x1b")
        process.send_signal(number)
        assert process.wait() == code
        assert termios.tcgetattr(terminal.device) == modes
        assert terminal.read_rest().count(LEAVE) == 1


def test_without_a_terminal(run: Run) -> None:
    """One frame is printed as text, without sequences."""
    done = command()

    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert lines[0] == f"running  {run.id}  curve  local"
    assert re.match(r"elapsed \d+\w*  step \d+ of 90,000  ends in ", lines[1])
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 24
    assert "\x1b" not in done.stdout


def test_dumb_terminal(run: Run) -> None:
    """A terminal without sequences shows one frame, and a message."""
    with on_terminal(TERM="dumb") as (terminal, process):
        terminal.wait_for("one frame is shown")
        rest = terminal.read_rest()
        assert process.wait() == 0
    assert run.id in rest
    assert "\x1b" not in rest


def test_json(run: Run) -> None:
    """--json prints one object with the newest values."""
    done = json.loads(command("curve", "--json").stdout)

    assert done["run_id"] == run.id
    assert done["state"] == "running"
    assert done["total_steps"] == 90_000
    assert done["gpu_use"] == 87.0
    assert done["metrics"].keys() == {"reward/avg_raw_reward", "policy/final_loss"}
    assert done["lines"]
    assert not re.search("[\x00-\x1f\x80-\x9f]", "".join(done["lines"]))


def test_no_run() -> None:
    """Without a run, the error names the command that starts one."""
    done = command(XDG_STATE_HOME="/nonexistent")

    assert done.returncode == 125
    assert "no run was started from this machine. `skyrl-modal submit COMMAND` starts one." in done.stderr
