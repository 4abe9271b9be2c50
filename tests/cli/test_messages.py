"""Messages about the end of a run, with and without ``--quiet``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from skyrl_modal import RunTimeout


def run(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `skyrl-modal run` without Ray on this machine."""
    command = [sys.executable, "-m", "skyrl_modal", "run", "--backend", "local", "--no-ray", *arguments]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False, timeout=100)


def test_quiet_run_prints_the_reason_of_125(checkout: Path) -> None:
    """With -q, a failure that is not the command's own is explained in one message."""
    done = run(checkout, "-q", "--workdir", "/root/data/none", "true")

    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == "skyrl-modal: workdir /root/data/none does not exist\n"


@pytest.mark.parametrize("code", [0, 7, 125])
def test_quiet_run_is_silent_about_the_commands_own_code(checkout: Path, code: int) -> None:
    """With -q, nothing is added to a command that ends by itself, also with 125."""
    done = run(checkout, "-q", f"exit {code}")

    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_message_names_the_exceeded_limit(checkout: Path) -> None:
    """After a timeout, the messages name the limit, besides the duration."""
    done = run(checkout, "--timeout", "1s", "sleep 600")

    assert done.returncode == 124
    assert "timeout of 1 s exceeded; sending SIGTERM" in done.stderr
    assert "timed_out at the limit of 1 s, exit code 124 after " in done.stderr


def test_long_limit_is_not_rounded() -> None:
    """A limit of days is written with all digits."""
    assert "time limit of 1,296,000 s" in str(RunTimeout("r1", returncode=124, seconds=15 * 86400.0))


@pytest.mark.parametrize("option", ["-i", "-t", "-it", "--interactive", "--tty"])
def test_standard_input_is_refused(checkout: Path, option: str) -> None:
    """A request for standard input or a terminal is a usage error that names other ways."""
    done = run(checkout, option, "cat")

    assert (done.returncode, done.stdout) == (2, "")
    assert "standard input and the terminal are not forwarded to the command" in done.stderr
