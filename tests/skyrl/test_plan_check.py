"""Tests of plans that ask the backend and earlier runs."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

import attrs
import pytest

from skyrl_modal import Launcher, VolumeSpec
from skyrl_modal.findings import Severity
from skyrl_modal.skyrl.progress import find_seconds_per_step

MAIN = "python -m skyrl.train.entrypoints.main_base trainer.logger=console"


@pytest.fixture
def launcher(skyrl_checkout: Path) -> Launcher:
    """Return a launcher on this machine with a volume of its own."""
    volume = VolumeSpec(name=f"test-{uuid.uuid4().hex[:12]}")
    return Launcher(checkout=skyrl_checkout, backend="local", volumes=[volume], ray=None, gpu=None)


def codes(launcher: Launcher, command: str, *, check: bool = True) -> dict[str, Severity]:
    """Return the codes and severities of the findings of a plan."""
    return {finding.code: finding.severity for finding in launcher.plan(command, check=check).findings}


def test_files_on_the_volume_are_asked_for(launcher: Launcher, tmp_path: Path) -> None:
    """Data files that do not exist are an error, and existing checkpoints a note, only with a check."""
    data = "data.train_data=/root/data/a.parquet data.val_data=/root/data/a.parquet"
    command = f"{MAIN} {data} trainer.ckpt_path=/root/data/ckpts/a"
    (tmp_path / "a.parquet").touch()

    before = codes(launcher, command)
    launcher.push(tmp_path / "a.parquet", "/root/data/a.parquet")
    launcher.push(tmp_path, "/root/data/ckpts/a")
    after = codes(launcher, command)

    assert before["data-missing"] is Severity.ERROR
    assert "ckpt-exists" not in before
    assert "data-missing" not in after
    assert after["ckpt-exists"] is Severity.NOTE
    assert not {"data-missing", "ckpt-exists"} & set(codes(launcher, command, check=False))


def test_folder_of_an_active_run_is_in_use(launcher: Launcher) -> None:
    """A checkpoint folder that another run uses is an error until that run has ended."""
    command = f"{MAIN} trainer.ckpt_path=/root/data/ckpts/a"
    run = launcher.submit(f"sleep 1000; {command}")
    try:
        during = codes(launcher, command)
        other = codes(launcher, f"{MAIN} trainer.ckpt_path=/root/data/ckpts/b")
    finally:
        run.cancel()
        run.wait()

    assert during["ckpt-in-use"] is Severity.ERROR
    assert "ckpt-in-use" not in other
    assert "ckpt-in-use" not in codes(launcher, command)


def test_step_time_of_an_earlier_run_is_used(launcher: Launcher) -> None:
    """If the timeout is reached before the first checkpoint, by the time of an earlier step, this is a warning."""
    command = f"echo \"'timing/step': '600.5'\"; {MAIN} trainer.ckpt_path=/root/data/ckpts/a"

    before = codes(launcher, command)
    launcher.run(command, output=lambda content: None, quiet=True)

    assert "ckpt-interval-long" not in before
    assert codes(launcher, command)["ckpt-interval-long"] is Severity.WARNING


def test_files_of_trackers_are_kept(skyrl_checkout: Path) -> None:
    """Trackers write to the volume. This is a finding if another folder is defined, or if there is no volume."""
    launcher = Launcher(checkout=skyrl_checkout, backend="modal", gpu=None, volumes=[VolumeSpec(name="test")])
    command = f"{MAIN} trainer.logger=tensorboard trainer.ckpt_path=/root/data/ckpts/a"

    assert "tracker-path" not in codes(launcher, command, check=False)
    elsewhere = attrs.evolve(launcher, env={"TENSORBOARD_DIR": "/opt/tensorboard"})
    assert codes(elsewhere, command, check=False)["tracker-path"] is Severity.WARNING
    assert codes(attrs.evolve(launcher, volumes=[]), command, check=False)["tracker-path"] is Severity.WARNING


def test_one_trainer_continues_one_wandb_run(launcher: Launcher) -> None:
    """A run that resumes logs to one W&B run, unless it starts two programs that log."""
    resumed = attrs.evolve(launcher, resume="auto")
    first, second = (f"{MAIN} trainer.ckpt_path=/root/data/ckpts/{name}" for name in ("a", "b"))

    assert resumed.plan(first).job.continues_wandb_run
    assert not resumed.plan(f"{first}; {second}").job.continues_wandb_run
    assert not resumed.plan("echo").job.continues_wandb_run
    assert not launcher.plan(first).job.continues_wandb_run


def test_exit_code_of_the_command_line(skyrl_checkout: Path) -> None:
    """`plan --check` exits with 1 if a finding is an error, and `plan` with 0."""

    def exit_code(*arguments: str) -> int:
        command = [
            sys.executable,
            "-m",
            "skyrl_modal",
            "plan",
            "--backend",
            "local",
            *arguments,
            "--checkout",
            str(skyrl_checkout),
        ]
        return subprocess.run([*command, "--", *MAIN.split(), "trainer.absent=1"], check=False).returncode

    assert exit_code() == 0
    assert exit_code("--check") == 1


@pytest.mark.parametrize(
    ("output", "seconds"),
    [
        ("'timing/step': '1.5000',\n(pid=1) 'timing/step': '2.5000',\n 'timing/step': '9.0000'", 2.5),
        (
            "Training Batches Processed:   2%| | 1/60 [, 9.0s/it]\rTraining Batches Processed: 3%| | 2/60 [, 7.0s/it]",
            7,
        ),
        ("Training Batches Processed:  2%| | 1/60 [00:01<00:30, 2.0it/s]", 0.5),
        ("Loading: 1/3 [00:10, 10.0s/it]", None),
        ("", None),
    ],
)
def test_step_time_is_read(output: str, seconds: float | None) -> None:
    """The time of a step is the median of the tracker's, else that of the last progress bar of the training."""
    assert find_seconds_per_step(output) == seconds
