"""`skyrl-modal metrics`: plots, lines of JSON, and messages about wrong use."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from skyrl_modal import Launcher, VolumeSpec


@pytest.fixture(scope="module")
def run_id(isolated_user_folders: None) -> str:
    """Return the id of a run that has logged 50 steps."""
    code = (
        "import math; from skyrl_modal import log_metrics\n"
        "for step in range(50): log_metrics({'reward/avg_raw_reward': step / 50, 'timing/step': 1.0, "
        "'\\x1b[31mred': math.nan}, step=step)"
    )
    launcher = Launcher(backend="local", mounts=[], ray=None, volumes=[VolumeSpec(name="test-metrics")])
    return launcher.run([sys.executable, "-c", code], quiet=True, check=True).run_id


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    return subprocess.run(
        [sys.executable, "-m", "skyrl_modal", "metrics", *arguments], capture_output=True, text=True, check=False
    )


def test_plot_fits_into_a_terminal(run_id: str) -> None:
    """The important metric is plotted in 80 columns without colors, and all are in a table."""
    done = command(run_id)

    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert lines[0] == "reward/avg_raw_reward  (step 49: 0.98)"
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in done.stdout
    assert "Metrics(50 rows, steps 0 to 49, 3 keys)" in lines
    assert [line.split() for line in lines if line.startswith("reward/avg_raw_reward ")][-1][1:] == [
        "0.98",
        "0",
        "0.98",
    ]


def test_json_has_a_line_for_each_step(run_id: str) -> None:
    """Each line is standard JSON with exact values; --key selects metrics."""
    done = command(run_id, "--json")
    rows = [json.loads(line, parse_constant=pytest.fail) for line in done.stdout.splitlines()]
    assert [row["reward/avg_raw_reward"] for row in rows] == [step / 50 for step in range(50)]
    assert {row["\x1b[31mred"] for row in rows} == {"NaN"}

    selected = command(run_id, "--json", "-k", "timing/step", "--follow").stdout.splitlines()
    assert len(selected) == 50
    assert json.loads(selected[3]).keys() == {"step", "time", "timing/step"}


def test_followed_metrics_are_lines(run_id: str) -> None:
    """A followed run prints a line with the important metrics for each step."""
    lines = command(run_id, "--follow").stdout.splitlines()

    assert (len(lines), lines[1]) == (50, "step 1  reward/avg_raw_reward 0.02")


def test_wrong_use(run_id: str) -> None:
    """A metric that was not logged is refused with similar ones, and so is an unknown run."""
    done = command(run_id, "--key", "reward/avg")

    assert done.returncode != 0
    assert "reward/avg_raw_reward" in done.stderr
    assert command("20200101-000000-000000").returncode != 0


def test_run_without_metrics() -> None:
    """A run that has logged nothing prints nothing but a message."""
    launcher = Launcher(backend="local", mounts=[], ray=None, volumes=[VolumeSpec(name="test-metrics")])
    done = command(launcher.run("true", quiet=True).run_id)

    assert (done.returncode, done.stdout) == (0, "")
    assert "no metrics are recorded" in done.stderr
