"""The question before a run that costs more per hour than the user has configured."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]
RUN = ("run", "-q", "--backend", "local", "--no-ray", "--rate", "5")


@pytest.fixture
def skyrl(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Return a function that calls the command line without a terminal, with a configuration folder of its own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("SKYRL_MODAL_CONFIRM_ABOVE", raising=False)

    def call(*arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "skyrl_modal", *arguments]
        return subprocess.run(
            command,
            cwd=checkout,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
            input=options.get("input", ""),
        )

    return call


def test_nothing_is_asked_by_default(skyrl: Command) -> None:
    """A run starts, whatever it costs."""
    assert skyrl(*RUN, "--rate", "1000", "exit 3").returncode == 3


def test_expensive_run_is_refused_without_a_terminal(skyrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit, nothing starts without --yes; up to the limit, nothing is asked."""
    monkeypatch.setenv("SKYRL_MODAL_CONFIRM_ABOVE", "4.5")

    for start in (RUN, ("submit", *RUN[2:])):
        refused = skyrl(*start, "echo started > $SKYRL_DATA/started")
        assert refused.returncode == 125
        assert "$5" in refused.stderr
        assert "Pass --yes" in refused.stderr
    assert skyrl(*RUN, "--yes", "! [ -e $SKYRL_DATA/started ]").returncode == 0
    monkeypatch.setenv("SKYRL_MODAL_CONFIRM_ABOVE", "5")
    assert skyrl(*RUN, "exit 3").returncode == 3


def test_runs_at_the_same_time_cost_more(skyrl: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost of the runs of a map that run at the same time is added."""
    monkeypatch.setenv("SKYRL_MODAL_CONFIRM_ABOVE", "9")
    options = ("map", *RUN[1:], "--max-parallel")

    refused = skyrl(*options, "2", "-", input="true\ntrue\ntrue\n")
    one_by_one = skyrl(*options, "1", "-", input="true\ntrue\n")

    assert (refused.returncode, one_by_one.returncode) == (125, 0)
    assert "2 runs at the same time" in refused.stderr


def test_own_file_sets_the_limit_and_a_checkout_cannot(skyrl: Command, checkout: Path, tmp_path: Path) -> None:
    """The limit of the user's own file applies. The file of a checkout that sets one is refused."""
    own = tmp_path / "config" / "skyrl_modal" / "config.toml"
    own.parent.mkdir(parents=True)
    own.write_text("confirm_above = 1\n")
    assert skyrl(*RUN, "true").returncode == 125
    own.write_text('confirm_above = "much"\n')
    invalid = skyrl(*RUN, "true")
    assert (invalid.returncode, "confirm_above" in invalid.stderr) == (125, True)
    own.unlink()
    (checkout / "skyrl-modal.toml").write_text("confirm_above = 1000\n")
    refused = skyrl(*RUN, "true")
    assert refused.returncode == 125
    assert "confirm_above" in refused.stderr


@pytest.mark.parametrize(("answer", "code"), [(b"y\n", 3), (b"n\n", 125), (b"\n", 125)])
def test_question_on_a_terminal(checkout: Path, answer: bytes, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, the run starts only if the answer is yes."""
    monkeypatch.setenv("SKYRL_MODAL_CONFIRM_ABOVE", "1")
    main, terminal = pty.openpty()
    command = [sys.executable, "-m", "skyrl_modal", *RUN, "exit 3"]
    process = subprocess.Popen(command, cwd=checkout, stdin=terminal, stdout=subprocess.DEVNULL, stderr=terminal)
    os.close(terminal)
    shown = b""
    while b"Start it?" not in shown:
        shown += os.read(main, 1024)
    os.write(main, answer)

    assert process.wait(timeout=60) == code
    assert b"$5" in shown
    os.close(main)
