"""Tests of problems that are found in a plan."""

from __future__ import annotations

import os
from pathlib import Path

import attrs
import pytest

from skyrl_modal import Launcher, MountSpec
from skyrl_modal.findings import Finding, Severity
from skyrl_modal.skyrl.scripts import scripts_of_command


def find(launcher: Launcher, command: str) -> dict[str, Finding]:
    """Return the findings of a plan by code, except for those about the Ray that is installed on this machine."""
    return {finding.code: finding for finding in launcher.plan(command).findings if finding.code != "ray-version"}


@pytest.fixture
def scripts(checkout: Path) -> Path:
    """Return the folder of scripts: run.sh calls ``ray start``, outer runs run.sh, fine.sh mentions it only."""
    folder = checkout / "scripts"
    folder.mkdir()
    (folder / "run.sh").write_text("#!/bin/bash\nset -e\n  ray start --head\n")
    (folder / "outer").write_text('exec bash "$(dirname "$0")/run.sh"\n')
    (folder / "fine.sh").write_text("# ray start is done by the launcher\npython train.py\n")
    return folder


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("ray start --head && python train.py", "ray-start-call", "the command calls `ray start`"),
        ("cd x; ray   stop", "ray-stop-call", "the command calls `ray stop`"),
        ("bash scripts/run.sh", "ray-start-call", "scripts/run.sh calls `ray start`"),
        ("python train.py # ray start", "ray-start-call", "the command calls `ray start`"),
        ("source scripts/run.sh", "ray-start-call", "scripts/run.sh calls `ray start`"),
        ("cd scripts && ./run.sh", "ray-start-call", "scripts/run.sh calls `ray start`"),
        ("bash scripts/outer", "ray-start-call", "scripts/run.sh calls `ray start`"),
        ("bash scripts/fine.sh", "", ""),
        ("echo array start; ray starting; ray status", "", ""),
        ("echo 'not closed", "", ""),
    ],
)
def test_ray_calls_are_found(checkout: Path, scripts: Path, command: str, code: str, message: str) -> None:
    """Calls of `ray start` and `ray stop` are found in the command and in the scripts that it names."""
    found = find(Launcher(checkout=checkout, backend="local"), command)

    assert list(found) == ([code] if code else [])
    assert all(finding.message.startswith(message) for finding in found.values())


def test_ray_start_is_allowed_without_ray(checkout: Path) -> None:
    """A command may start Ray if the launcher does not."""
    found = find(Launcher(checkout=checkout, backend="local", ray=None), "ray start --head; ray stop")

    assert list(found) == ["ray-stop-call"]


def test_large_script_is_not_read(checkout: Path, scripts: Path) -> None:
    """A file that is too large for a script is not read."""
    (scripts / "run.sh").write_text("#" * 2_000_000 + "\nray start\n")

    assert find(Launcher(checkout=checkout, backend="local"), "bash scripts/run.sh") == {}


def test_named_pipe_is_not_read(checkout: Path, scripts: Path) -> None:
    """A named pipe in place of a script does not block the planner."""
    os.mkfifo(scripts / "pipe.sh")

    found = scripts_of_command(
        "bash scripts/pipe.sh",
        workdir="/root/SkyRL",
        remote_path="/root/SkyRL",
        root=checkout,
        files={"scripts/pipe.sh"},
    )

    assert list(found) == []


def test_nodes_without_ray_are_found(checkout: Path) -> None:
    """Several nodes without Ray are a warning, since only rank 0 runs the command."""
    launcher = Launcher(checkout=checkout, backend="local", ray=None, nodes=2)

    found = find(launcher, "true")

    assert found["nodes-without-ray"].severity is Severity.WARNING
    assert ("nodes", "2") in launcher.plan("true").rows()


def test_longer_grace_than_modals_is_found(checkout: Path) -> None:
    """A grace period of more than 20 s is a warning on Modal, which ends containers earlier, and is none locally."""
    launcher = Launcher(checkout=checkout, backend="modal", gpu=None, ray=None, grace=21)

    assert find(launcher, "true")["grace-limited"].severity is Severity.WARNING
    assert "SIGKILL 20 s after SIGINT" in str(launcher.plan("true"))
    for allowed in (attrs.evolve(launcher, grace=20), attrs.evolve(launcher, backend="local")):
        assert "grace-limited" not in find(allowed, "true")


def test_excluded_env_file_is_found(checkout: Path) -> None:
    """An ignored .env file is a warning, since SkyRL's workers read it. Excluding it intentionally is none."""
    (checkout / ".env").write_text("WANDB_API_KEY=x\n")
    (checkout / ".gitignore").write_text(".env\n")

    found = find(Launcher(checkout=checkout, backend="local"), "true")
    intentional = find(Launcher(checkout=checkout, backend="local", mounts=[MountSpec(exclude=".env")]), "true")

    assert 'include=["/.env"]' in found["env-file-excluded"].remedy
    assert "env-file-excluded" not in intentional


def test_warnings_contain_the_remedy(checkout: Path) -> None:
    """The text of a warning contains the message and the remedy of its finding."""
    plan = Launcher(checkout=checkout, backend="local", ray=None).plan("ray stop")

    [finding] = plan.findings
    assert plan.warnings == (f"{finding.message}. {finding.remedy}",)
    assert f" warning  {finding.message}" in str(plan)
