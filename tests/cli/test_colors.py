"""Colors of the command line on terminals and pipes, and the line that a terminal shows while a run waits."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_modal import Launcher, VolumeSpec
from skyrl_modal.views.colors import STATE_COLORS, paint_labels, paint_message
from skyrl_modal.views.text import fit_columns
from tests.support.terminals import Screen, Terminal

PROGRAM = [sys.executable, "-m", "skyrl_modal"]
RED = "\x1b[31m"
GREEN = "\x1b[32m"


@pytest.fixture
def run_program(tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """A function that runs the command line with pipes and variables, and returns both streams."""

    def run(*arguments: str, **variables: str) -> tuple[str, str]:
        env = {**os.environ, "NO_COLOR": "", "FORCE_COLOR": "", **variables}
        command = [*PROGRAM, *arguments]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.stdout, done.stderr

    return run


def test_colors_on_pipes(run_program: Callable[..., tuple[str, str]]) -> None:
    """Pipes receive colors with FORCE_COLOR only, unless NO_COLOR is set too."""
    forced = {"FORCE_COLOR": "1"}

    assert "\n\x1b[1mOptions:\x1b[0m\n" in run_program("ps", "--help", **forced)[0]
    assert run_program("why", "none-such", **forced)[1].startswith(f"{RED}skyrl-modal:\x1b[0m no run")
    for output in (*run_program("ps", "--help"), *run_program("why", "none-such", **forced, NO_COLOR="1")):
        assert "\x1b" not in output


def test_states_have_colors() -> None:
    """A success is green, a failure is red, and the columns are aligned as without colors."""
    rows = [("a", "succeeded", "x"), ("b", "failed", "y")]

    shown = fit_columns(("RUN", "STATE", "COMMAND"), rows, width=80, colors=STATE_COLORS)

    assert f"a    {GREEN}succeeded\x1b[0m  x" in shown
    assert f"b    {RED}failed   \x1b[0m  y" in shown


def test_messages_have_colors() -> None:
    """The label of a message has a color, and nothing else that looks like it."""
    with Terminal() as terminal, terminal.stream() as stream, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "xterm")
        patch.delenv("NO_COLOR", raising=False)
        shown = paint_message(stream, "p | succeeded, log: succeeded\np | more\n", "p | ", "succeeded")

    assert shown == f"\x1b[2mp | \x1b[0m{GREEN}succeeded\x1b[0m, log: succeeded\n\x1b[2mp | \x1b[0mmore\n"
    assert paint_labels("   error  no\n warning  error  x\n          error  y") == (
        f"   {RED}error\x1b[0m  no\n \x1b[33mwarning\x1b[0m  error  x\n          error  y"
    )


def test_run_on_a_terminal_leaves_the_output_unchanged(checkout: Path, volume: VolumeSpec) -> None:
    """While a command is silent, the terminal shows a line, which neither standard output nor the last screen has."""
    command = 'while ! [ -e "$SKYRL_DATA/go" ]; do sleep 0.05; done; printf "a\\0b\\r\\n"'
    options = ["--backend", "local", "--no-ray", "--checkout", str(checkout), "--volume", f"/root/data={volume.name}"]
    launcher = Launcher(backend="local", mounts=[], volumes=[volume], ray=None)
    with Terminal(200) as terminal:
        process = subprocess.Popen(
            [*PROGRAM, "run", *options, command], stdout=subprocess.PIPE, stderr=terminal.device,
            env=os.environ | {"TERM": "xterm", "NO_COLOR": "1"},
        )  # fmt: skip
        terminal.wait_for(r"\rskyrl-modal \| running \(\d+ s\)\x1b\[K")
        source = checkout / "go"
        source.touch()
        launcher.push(source, "/root/data/go", quiet=True)
        output, _ = process.communicate(timeout=120)
        received = terminal.read_rest()

    screen = Screen(200)
    screen.write(received)
    assert (process.returncode, output) == (0, b"a\0b\r\n")
    assert [row for row in screen.rows if "running" in row] == []
    assert any(row.startswith("skyrl-modal | succeeded, exit code 0") for row in screen.rows)
