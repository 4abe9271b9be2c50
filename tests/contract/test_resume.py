"""``resume="auto"``: attempts continue from the newest complete checkpoint, also of a script that never does."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from skyrl_modal import RunState, VolumeSpec
from tests.conftest import MakeLauncher
from tests.contract.conftest import divide
from tests.support.small_trainer import SCRIPT, add_to_checkout

POINTER = "latest_ckpt_global_step.txt"


@pytest.fixture
def trainer_checkout(checkout: Path) -> Path:
    """Return the checkout with a small trainer and a script with ``resume_mode=null``."""
    add_to_checkout(checkout)
    return checkout


def steps_of(output: io.BytesIO) -> list[int]:
    """Return the steps that were trained, in their order."""
    lines = output.getvalue().decode().splitlines()
    return [int(line.split()[1]) for line in lines if line.startswith("step ")]


FAULTS = {
    "cut pointer": (4, f"wrote 4 to {POINTER} (it is empty)"),
    "before the pointer": (4, f"wrote 4 to {POINTER} (it named step 2)"),
    "incomplete": (2, "moved global_step_4 to incomplete/global_step_4.2 (trainer_state.pt: missing)"),
    "before the model": (2, "moved global_step_4 to incomplete/global_step_4.2 (trainer_state.pt: missing, "),
    "pointer names an incomplete one": (2, f"wrote 2 to {POINTER} (it named step 4)"),
    "everything": (0, "no complete checkpoint"),
}


@pytest.mark.usefixtures("trainer_checkout")
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("backend", ["local"], indirect=True)
def test_killed_attempt_is_continued_locally(launcher: MakeLauncher, fault: str) -> None:
    """After a kill at any moment of a save, the next attempt continues from the newest complete checkpoint."""
    check_fault(launcher, fault)


@pytest.mark.usefixtures("trainer_checkout")
@divide("fault", "before the pointer", "incomplete")
def test_killed_attempt_is_continued(launcher: MakeLauncher, fault: str) -> None:
    """The same on both backends."""
    check_fault(launcher, fault)


def check_fault(launcher: MakeLauncher, fault: str) -> None:
    begin, message = FAULTS[fault]
    output = io.BytesIO()

    result = launcher(retries=1, resume="auto", env={"FAULT": fault}).run(f"bash {SCRIPT}", output=output, quiet=True)

    text = output.getvalue().decode()
    assert (result.state, result.attempts) == (RunState.SUCCEEDED, 2), text
    assert steps_of(output) == [1, 2, 3, 4, *range(begin + 1, 7)]
    [line] = [line for line in text.splitlines() if "resume: " in line]
    assert message in line


@pytest.mark.usefixtures("trainer_checkout")
def test_next_run_continues_and_moves_nothing(launcher: MakeLauncher, volume: VolumeSpec) -> None:
    """A further run of the command continues from the last checkpoint, and its folder is unchanged."""
    run = launcher(resume="auto")
    run.run(f"bash {SCRIPT}", output=io.BytesIO(), quiet=True, check=True)
    before = [entry.path for entry in run.ls("/root/data/ckpts/a")]
    output = io.BytesIO()

    run.run(f"bash {SCRIPT}", output=output, quiet=True, check=True)

    assert "begins after step 6" in output.getvalue().decode()
    assert [entry.path for entry in run.ls("/root/data/ckpts/a")] == before
