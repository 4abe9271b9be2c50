"""The command line on runs: started, listed, followed, waited for, cancelled."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_modal.protocol.job import Job
from skyrl_modal.run.index import IndexRecord, RunIndex

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def skyrl(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Calls the command line in a checkout, with records of its own and no account."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("SKYRL_MODAL_BACKEND", "local")
    monkeypatch.setenv("MODAL_CONFIG_PATH", str(tmp_path / "none.toml"))
    for name in ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET", "MODAL_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "skyrl_modal", *words]
        return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False, timeout=100)

    return call


def test_a_run_is_started_found_and_followed(skyrl: Command) -> None:
    run_id = skyrl("submit", "--no-ray", "echo one; sleep 0.5; echo two; exit 3").stdout.strip()

    followed = skyrl("attach", run_id)
    assert (followed.returncode, followed.stdout) == (3, "one\ntwo\n")
    assert skyrl("wait", run_id).returncode == 3
    assert skyrl("logs", "--tail", "1", run_id).stdout == "two\n"
    assert skyrl("logs", "-f", run_id).stdout == "one\ntwo\n"
    [line] = skyrl("ps").stdout.splitlines()
    assert line.split()[:3] == [run_id, "failed", "local"]


def test_a_run_is_cancelled(skyrl: Command) -> None:
    run_id = skyrl("submit", "--no-ray", "sleep 600").stdout.strip()

    assert skyrl("cancel", run_id).returncode == 0
    assert skyrl("wait", run_id).returncode in (130, 143)
    assert skyrl("cancel", run_id).returncode == 0


def test_runs_that_cannot_be_asked_about_do_not_hide_the_others(skyrl: Command) -> None:
    skyrl("run", "--no-ray", "-q", "true")
    job = Job(id="20200101-000000-aaaaaa", command="python train.py", workdir="/", run_dir="/")
    RunIndex().add(IndexRecord(job, "modal", {"call_id": "fc-123"}))

    listed = skyrl("ps")

    assert listed.returncode == 0
    assert [line.split()[1] for line in listed.stdout.splitlines()] == ["succeeded", "unknown"]
    assert "modal setup" in listed.stderr


def test_files_are_pushed_listed_and_pulled(skyrl: Command, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("content")
    volume = ("--volume", f"/root/data={tmp_path.name}")

    assert skyrl("push", *volume, str(tmp_path / "x"), "/root/data/folder/x").returncode == 0
    assert skyrl("ls", *volume, "/root/data/folder").stdout.split()[-1] == "/root/data/folder/x"
    assert skyrl("pull", *volume, "/root/data/folder/x", str(tmp_path / "y")).returncode == 0
    assert (tmp_path / "y").read_text() == "content"
    wrong = skyrl("pull", *volume, "/root/data/none")
    assert (wrong.returncode, "has no none" in wrong.stderr) == (2, True)


def test_a_plan_shows_files_and_starts_nothing(skyrl: Command) -> None:
    plan = skyrl("plan", "python train.py")

    assert plan.returncode == 0
    assert "skyrl-gym/skyrl_gym/__init__.py" in plan.stdout
    assert skyrl("ps").stdout == ""


@pytest.mark.parametrize("words", [("logs", "none"), ("attach", "none"), ("cancel", "none"), ("wait", "none")])
def test_an_unknown_run_is_said_in_a_line(skyrl: Command, words: tuple[str, ...]) -> None:
    done = skyrl(*words)

    assert done.returncode == 2
    assert done.stderr.startswith("skyrl-modal: no run has the id 'none'")
