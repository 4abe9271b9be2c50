"""Tests of ``skyrl-modal logs`` with ``--grep``, ``--since`` and ``--timestamps``."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from skyrl_modal import Launcher


@pytest.fixture(scope="module")
def run_id(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the id of a run that printed two lines at different times."""
    launcher = Launcher(backend="local", ray=None, mounts=[])
    return launcher.run("echo first; sleep 3; echo second", quiet=True, output=bytearray().extend).run_id


def logs(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Call `skyrl-modal logs`."""
    command = [sys.executable, "-m", "skyrl_modal", "logs", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


def test_timestamps(run_id: str) -> None:
    """Each line follows its time in UTC, from which --since selects."""
    rows = [line.split(" ") for line in logs("--timestamps", run_id).stdout.splitlines()]

    assert [row[1] for row in rows] == ["first", "second"]
    first, second = (datetime.strptime(row[0], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC) for row in rows)
    assert timedelta(seconds=2) <= second - first <= timedelta(seconds=60)
    assert logs("--since", second.isoformat(), run_id).stdout == "second\n"
    assert logs("--since", first.isoformat(), "-n", "1", run_id).stdout == "second\n"
    assert logs("--since", "1d", "--grep", "^f", run_id).stdout == "first\n"
    assert logs("--since", "0.001s", run_id).stdout == ""


def test_grep_follows_a_run(run_id: str, tmp_path: Path) -> None:
    """With --follow, lines are selected until the run has ended."""
    launcher = Launcher(backend="local", ray=None, mounts=[])
    run = launcher.submit("for i in 1 2 3 4 5 6; do echo line $i; sleep 0.3; done")

    done = logs("--follow", "--timestamps", "--grep", "[246]$", run.id)

    assert re.fullmatch(r"(\d{4}-\S+Z line [246]\n){3}", done.stdout)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--grep", "("), 125, "--grep '(': it is not a regular expression"),
        (("--since", "never"), 125, "--since 'never': pass a duration"),
        (("--timestamps", "--rank", "0"), 2, "omit --since and --timestamps"),
        (("--since", "1h", "--list"), 2, "omit --since and --timestamps"),
    ],
)
def test_invalid_selection(run_id: str, arguments: tuple[str, ...], code: int, message: str) -> None:
    """Invalid values are refused."""
    done = logs(*arguments, run_id)

    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
