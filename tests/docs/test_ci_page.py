"""Tests of the workflow on the page on continuous integration."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.page_blocks import ROOT, blocks_of

PAGE = ROOT / "docs" / "ci.md"
#: What GitHub permits in a job and in a step (of those that the page uses, and of the most common others).
JOB_KEYS = {"name", "if", "needs", "runs-on", "timeout-minutes", "env", "steps", "strategy", "permissions", "defaults"}
STEP_KEYS = {"name", "id", "if", "uses", "with", "run", "env", "shell", "working-directory", "timeout-minutes"}
MAKE_CHECKOUT = "import pathlib, sys, quickstart; quickstart.published_checkout(pathlib.Path(sys.argv[1]))"
#: Steps that change the machine.
NOT_EXECUTED = {"Install", "Allow user namespaces"}


@pytest.fixture(scope="module")
def workflow() -> dict[Any, Any]:
    """Return the workflow of the page."""
    [block] = blocks_of(PAGE, "yaml")
    loaded = yaml.safe_load(block.text)
    assert isinstance(loaded, dict)
    return loaded


def test_workflow_has_the_form_of_github(workflow: dict[Any, Any]) -> None:
    """Jobs and steps have known keys, each step does one thing, and actions have a version."""
    assert set(workflow[True]) == {"pull_request", "workflow_dispatch"}  # YAML 1.1 reads the key "on" as true
    assert set(workflow["jobs"]) == {"smoke", "modal"}
    for job in workflow["jobs"].values():
        assert set(job) <= JOB_KEYS
        assert {"runs-on", "steps", "timeout-minutes"} <= set(job)
        for step in job["steps"]:
            assert set(step) <= STEP_KEYS
            assert ("uses" in step) != ("run" in step), step
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step.get("uses", "actions/x@v1"))


def test_tokens_come_from_secrets(workflow: dict[Any, Any]) -> None:
    """The job on Modal has its token and key from secrets of the repository. No pull request starts it."""
    job = workflow["jobs"]["modal"]

    assert {name: value for name, value in job["env"].items() if name.endswith(("_ID", "_SECRET", "_KEY"))} == {
        name: f"${{{{ secrets.{name} }}}}" for name in ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET", "WANDB_API_KEY")
    }
    assert "workflow_dispatch" in job["if"]
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets." not in str(workflow["jobs"]["smoke"])


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_smoke_test_runs(workflow: dict[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of the job on the CI machine succeed, and those for a failure print why and copy the records."""
    job = workflow["jobs"]["smoke"]
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for name in ("DATA", "STATE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))
    (tmp_path / "skyrl-modal").symlink_to(ROOT)
    subprocess.run(
        [sys.executable, "-c", MAKE_CHECKOUT, str(tmp_path / "SkyRL")],
        cwd=ROOT / "examples",
        check=True,
        capture_output=True,
    )

    for step in job["steps"]:
        if "run" in step and step["name"] not in NOT_EXECUTED:
            done = subprocess.run(
                ["bash", "-eo", "pipefail", "-c", step["run"]],
                cwd=tmp_path / workflow["defaults"]["run"]["working-directory"],
                env={**os.environ, **job["env"]},
                capture_output=True,
                text=True,
                check=False,
                stdin=subprocess.DEVNULL,
            )
            assert done.returncode == 0, done.stdout + done.stderr

    assert list((tmp_path / "SkyRL" / "results").glob("*/result.json"))
