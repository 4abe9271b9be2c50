"""The hook with SkyRL's real trainer, generator and environment: run by ``nox -s skyrl_rollouts``.

``SKYRL_SOURCES`` is a folder with ``skyrl/`` and ``skyrl-gym/``, and ``SKYRL_PYTHON`` a Python with the packages that
SkyRL imports, for the CPU. The engine returns fixed texts, without a model.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from skyrl_modal import Rollout
from skyrl_modal.formats.rollout_files import read_recorded
from tests.formats.hook_process import hook_environment

DRIVER = Path(__file__).with_name("rollouts_driver.py")
ASKED = "Now provide only the final numeric answer in the exact format: '#### ANSWER'."


def run_driver(run_folder: Path | None, *arguments: str) -> tuple[list[dict[str, object]], list[float]]:
    """Run the trainer, and return its steps and the CPU times."""
    environment = hook_environment(run_folder)
    command = [os.environ["SKYRL_PYTHON"], str(DRIVER), *arguments]
    done = subprocess.run(
        command, env=environment, cwd=os.environ["SKYRL_SOURCES"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.partition(" ") for line in done.stdout.splitlines()]
    steps = [json.loads(text) for name, _, text in lines if name == "STEP"]
    [seconds] = [json.loads(text) for name, _, text in lines if name == "SECONDS"]
    return steps, seconds


def recorded(run_folder: Path) -> list[Rollout]:
    """Return what was recorded of the first two steps."""
    found = [
        read_recorded(line) for path in (run_folder / "rollouts").iterdir() for line in path.read_bytes().splitlines()
    ]
    assert all(found)
    return [each for each in found if each is not None and each.step <= 2]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("mode", "rewards"), [("", [1.1, 0.2]), ("step-wise", [1.0, 0.1])])
def test_rollouts_of_the_real_trainer(tmp_path: Path, mode: str, rewards: list[float]) -> None:
    """Both turns of each trajectory are recorded, and what the trainer returns is the same without the hook."""
    arguments = [mode] if mode else []
    steps, seconds = run_driver(tmp_path, *arguments)

    found = recorded(tmp_path)
    assert [(each.step, each.group, each.reward) for each in found] == [
        (step, f"uid-{group}", pytest.approx(reward)) for step in (1, 2) for group in (0, 1) for reward in rewards
    ]
    assert [[(each.role, each.content) for each in rollout.response_messages] for rollout in found[:2]] == [
        [("assistant", "turn 1: #### 4"), ("user", ASKED), ("assistant", f"turn 2: #### {last}")] for last in (3, 4)
    ]
    assert [(each.role, each.content) for each in found[0].prompt_messages] == [("user", "question 0")]
    assert {each.stop_reason for each in found} == {"stop"}
    assert run_driver(None, *arguments)[0] == steps
    print(f"CPU seconds of a step without and with the hook: {seconds}")
