"""Tests of the command's environment: what the caller declares, what the container has, and what the run sets."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from skyrl_modal.container.environment import remove_runtime_folders, replaced_variables, run_environment
from skyrl_modal.machine import complete_path
from skyrl_modal.protocol.job import RayOptions, Volume
from skyrl_modal.protocol.rank_config import RankConfig
from tests.container.records import make_job

PYTHON = os.path.dirname(sys.executable)


def make_program(folder: Path, name: str) -> str:
    """Create a program and return its folder."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o755)
    return str(folder)


def test_declared_path_is_completed(tmp_path: Path) -> None:
    """What the run needs is first, unless the caller's value contains it or leads to a Ray of its own."""
    of_ray, own = make_program(tmp_path / "a", "ray"), make_program(tmp_path / "b", "ray")
    base = f"{of_ray}:/usr/bin"

    assert complete_path("/x:/usr/bin", base=base, needs_ray=True) == f"{PYTHON}:{of_ray}:/x:/usr/bin"
    assert complete_path("/x", base=base, needs_ray=False) == f"{PYTHON}:/x"
    assert complete_path(f"/x:{PYTHON}", base=base, needs_ray=False) == f"/x:{PYTHON}"
    assert complete_path(f"{own}:/x", base=base, needs_ray=True) == f"{own}:/x"
    assert complete_path("", base=None, needs_ray=False) == PYTHON
    assert complete_path("/x", base=None, needs_ray=False) == f"{PYTHON}:/x"


def test_path_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A declared PATH is completed, another one is not; folders of programs of the image are last in both."""
    config = RankConfig(has_modal_runtime=True)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")

    paths = [
        run_environment(make_job(tmp_path, **fields), config)["PATH"]
        for fields in ({}, {"env": {"PATH": "/x"}}, {"secret_names": ("PATH",)})
    ]

    last = "/home/ray/.local/bin"
    assert paths == [f"/usr/bin:/bin:{last}", f"{PYTHON}:/x:{last}", f"{PYTHON}:/usr/bin:/bin:{last}"]


def test_variables_that_the_run_does_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Ray, checkout and volume their variables are those that the caller has declared."""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # of the image, or of a secret
    monkeypatch.setenv("SKYRL_DATA", "/from/a/secret")
    monkeypatch.setenv("SKYRL_REPO_ROOT", "/home/user/SkyRL")
    job = make_job(tmp_path, env={"RAY_AUTH_MODE": "token"}, secret_names=("SKYRL_DATA",))

    env = run_environment(job, RankConfig())

    assert {"RAY_ADDRESS": "10.0.0.1:6379", "RAY_AUTH_MODE": "token", "SKYRL_DATA": "/from/a/secret"}.items() <= (
        env.items()
    )
    assert "SKYRL_REPO_ROOT" not in env


def test_gpus_of_declared_devices(tmp_path: Path) -> None:
    """NUM_GPUS is the number of devices that the caller declares, if the machine's own are counted."""
    env = run_environment(make_job(tmp_path, env={"CUDA_VISIBLE_DEVICES": "4,6"}), RankConfig())

    assert env["NUM_GPUS"] == "2"


def test_replaced_variables_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of the image or of a stored secret that the run replaces are found, and equal ones are not."""
    job = make_job(tmp_path, ray=RayOptions(), nodes=1, gpus_per_node=2)
    for name in ("RAY_ADDRESS", "NUM_GPUS", "NUM_NODES", "MINE"):
        monkeypatch.setenv(name, "1")

    assert replaced_variables(job, run_environment(job, RankConfig())) == ["NUM_GPUS", "RAY_ADDRESS"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/root:/pkg", ""),
        ("/root:/pkg:/opt/mine", "/opt/mine"),
        ("/opt/mine:/root:/pkg/:/__modal/deps", "/opt/mine"),
        ("/__modal/deps:/pkg/x", ""),
        ("/root:/opt/mine", "/root:/opt/mine"),
        ("/root:/pkg:/root", "/root"),
        ("/pkgs:/package", "/pkgs:/package"),
        ("", ""),
    ],
)
def test_runtime_is_removed_from_the_python_path(value: str, expected: str) -> None:
    """The folders of Modal's runtime are removed, and those of the image or the user are kept in their order."""
    assert remove_runtime_folders(value) == expected


def test_trackers_write_to_the_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trackers write below the run's folder, if it is on a volume. What the user or the image defines is kept."""
    monkeypatch.setenv("SWANLAB_LOG_DIR", "/opt/swanlab")
    volume = Volume(name="v", mount_path=str(tmp_path))
    job = make_job(tmp_path, volumes=(volume,), env={"TENSORBOARD_DIR": "/opt/mine"})
    names = ("TENSORBOARD_DIR", "WANDB_DIR", "MLFLOW_TRACKING_URI", "SWANLAB_LOG_DIR")

    env = run_environment(job, RankConfig())
    without = run_environment(make_job(tmp_path), RankConfig())

    folder = f"{job.run_folder}/trackers"
    assert [env[name] for name in names] == ["/opt/mine", folder, f"sqlite:///{folder}/mlflow.db", "/opt/swanlab"]
    assert [name for name in names if name in without] == ["SWANLAB_LOG_DIR"]


def test_attempts_continue_one_wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The W&B run has the id of the run if its attempts continue, unless the user names another one."""
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    names = ("WANDB_RUN_ID", "WANDB_RESUME")

    def values(**fields: object) -> list[str | None]:
        env = run_environment(make_job(tmp_path, run_id="r1", **fields), RankConfig())
        return [env.get(name) for name in names]

    assert values() == [None, None]
    assert values(continues_wandb_run=True) == ["r1", "allow"]
    assert values(continues_wandb_run=True, env={"WANDB_RESUME": "must"}) == ["r1", "must"]
    assert values(continues_wandb_run=True, env={"WANDB_RUN_ID": "mine"}) == ["mine", None]
