"""What several commands of one call have in common is planned and copied once."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from attrs import evolve

from skyrl_modal import ImageSpec, Launcher, MountSpec, SpecError
from skyrl_modal.errors import SnapshotError
from skyrl_modal.prepare.plan import Plan
from skyrl_modal.prepare.staging import Preparation
from skyrl_modal.reporting import NullReporter

COMMANDS = ["true", "ray start --head", "bash run.sh", "echo short-value", "uv run x.py", "bash -c 'bash run.sh x'"]


def comparable(plan: Plan) -> Plan:
    """Return a plan without what differs in each run."""
    return evolve(plan, job=replace(plan.job, run_id="", created_at="", run_folder=""))


@pytest.mark.parametrize("backend", ["local", "modal"])
def test_plans_are_those_of_single_commands(
    checkout: Path, backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each command has the plan and the findings that it has alone, with an id of its own."""
    (checkout / "run.sh").write_text("ray stop\ncd $HOME/data && uv run train.py\n")
    (checkout / "pyproject.toml").write_text('[project]\ndependencies = ["ray==2.40.0"]\n')
    monkeypatch.setenv("SHORT", "short")
    monkeypatch.setenv("LONG", "a long value")
    launcher = Launcher(
        backend=backend, checkout=checkout, secrets=["SHORT", "LONG"], image=ImageSpec(base="anyscale/ray:2.51.1")
    )
    preparation = Preparation(launcher, backend)

    plans = [preparation.plan(command) for command in COMMANDS]

    assert [comparable(plan) for plan in plans] == [
        comparable(Preparation(launcher, backend).plan(command)) for command in COMMANDS
    ]
    assert len({plan.job.run_id for plan in plans}) == len(COMMANDS)
    assert len({plan.findings for plan in plans}) > 3
    with pytest.raises(SpecError) as caught:
        preparation.plan("echo a long value")
    assert caught.value.field == "command"


def test_all_commands_use_one_snapshot(checkout: Path) -> None:
    """An edit after the first run was prepared does not affect later ones. Each run has a lock of its own."""
    (checkout / "train.py").write_text("old")
    with Preparation(Launcher(backend="local", checkout=checkout), "local") as preparation:
        plans = [preparation.plan(f"echo {number}") for number in range(2)]
        first = preparation.take_snapshots(plans[0], {}, NullReporter())
        (checkout / "train.py").write_text("new")
        second = preparation.take_snapshots(plans[1], {}, NullReporter())
    first.snapshots[0].release()

    assert (second.snapshots[0].path / "train.py").read_text() == "old"
    assert first.job.mounts == second.job.mounts
    assert first.job.run_id != second.job.run_id
    second.snapshots[0].duplicate_lock()
    with pytest.raises(SnapshotError, match="released"):
        first.snapshots[0].share()


def test_later_plans_see_changes(checkout: Path) -> None:
    """A launcher plans anew in each call: commit, files and requirement are those of the moment."""
    launcher = Launcher(backend="local", checkout=checkout)
    before = launcher.plan("true")
    (checkout / "new.py").write_text("x")
    (checkout / "pyproject.toml").write_text('[project]\ndependencies = ["ray==2.40.0"]\n')

    after = launcher.plan("true")

    assert before.checkout is not None
    assert after.checkout is not None
    assert before.checkout.changed_files is not None
    assert after.checkout.changed_files == before.checkout.changed_files + 2
    assert after.checkout.ray_version == "2.40.0"
    assert "new.py" in after.selections[0].files


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_failed_plan_leaves_no_git_process(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the plan fails while git runs, git is killed, and the copy of the index is removed."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").write_text("#!/bin/sh\nexec sleep 600\n")
    (tmp_path / "bin" / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    mounts = [MountSpec(), MountSpec(local_path=tmp_path / "none", remote_path="/none")]
    before = children()

    with pytest.raises(SpecError, match="none"):
        Launcher(backend="local", checkout=checkout, mounts=mounts).plan("true")

    assert children() == before
    assert list((tmp_path / "cache" / "skyrl_modal" / "results").glob(".new-*")) == []


def children() -> set[str]:
    """Return the ids of the processes that this process has started."""
    tasks = Path("/proc/self/task").iterdir()
    return {pid for task in tasks for pid in (task / "children").read_text().split()}
