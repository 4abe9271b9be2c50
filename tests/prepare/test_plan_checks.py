"""Plans make the checks of runs, with the same errors, and `strict` refuses findings that are errors."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import evolve

from skyrl_modal import Launcher, SpecError, VolumeSpec
from skyrl_modal.run.index import RunIndex

#: A trainer without a key for its tracker, which is an error.
MAIN = "python -m skyrl.train.entrypoints.main_base trainer.logger=wandb"
ABSENT = "SKYRL_MODAL_TEST_ABSENT"


@pytest.fixture
def launcher(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Launcher:
    """Return a launcher for Modal with a token that no server has issued."""
    monkeypatch.setenv("MODAL_TOKEN_ID", "ak-none")
    monkeypatch.setenv("MODAL_TOKEN_SECRET", "as-none")
    monkeypatch.delenv(ABSENT, raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    return Launcher(checkout=checkout, backend="modal")


def error_of(call: Callable[[], object]) -> tuple[str, object, str]:
    """Return the error of a call."""
    with pytest.raises(SpecError) as caught:
        call()
    return caught.value.field, caught.value.value, caught.value.remedy


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"timeout": "25h"}, "timeout"),
        ({"nodes": 2, "gpu": "H100:4"}, "gpu"),
        ({"nodes": 2, "gpu": None}, "gpu"),
        ({"secrets": [ABSENT]}, "secrets"),
        ({"backend": "local", "secrets": [ABSENT]}, "secrets"),
        ({"backend": "local", "volumes": [VolumeSpec(name="absent", create_if_missing=False)]}, "volumes"),
    ],
)
def test_plan_raises_the_error_of_a_run(launcher: Launcher, fields: dict[str, object], field: str) -> None:
    """A plan and a run raise the same error for a value that the backend does not accept, and for a missing secret."""
    refused = evolve(launcher, **fields)  # type: ignore[arg-type]  # fields of any type

    error = error_of(lambda: refused.run("true", quiet=True))

    assert error[0] == field
    assert error_of(lambda: refused.plan("true")) == error
    assert error_of(lambda: refused.submit("true")) == error


@pytest.mark.parametrize("arguments", [["--timeout", "25h"], ["--nodes", "2", "--gpu", "H100:4"], ["--secret", ABSENT]])
def test_exit_code_of_a_refused_plan(launcher: Launcher, arguments: list[str]) -> None:
    """`skyrl-modal plan` exits with 125 where `run` would, without a request."""
    command = [sys.executable, "-m", "skyrl_modal", "plan", *arguments, "--checkout", str(launcher.checkout), "true"]

    assert subprocess.run(command, capture_output=True, check=False).returncode == 125


def test_unavailable_backend_is_a_finding(launcher: Launcher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A plan can be made without a token for Modal. With a check, that is a finding."""
    for name in ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("MODAL_CONFIG_PATH", str(tmp_path / "absent.toml"))
    code = (
        "from skyrl_modal import Launcher\n"
        f"launcher = Launcher(checkout={str(launcher.checkout)!r}, backend='modal')\n"
        "print([[item.code for item in launcher.plan('true', check=check).findings] for check in (False, True)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[[], ['backend-unavailable']]"


def test_warnings_of_the_backend_are_findings(launcher: Launcher) -> None:
    """What a run reports about its backend is in the findings of the plan."""
    findings = evolve(launcher, timeout="24h", retries=3).plan("true").findings

    assert [finding.code for finding in findings] == ["backend"]


def test_strict_refuses_errors(launcher: Launcher) -> None:
    """Each method that starts runs refuses a command with an error if it is strict, and starts nothing."""
    strict = evolve(launcher, backend="local", ray=None)
    calls: list[Callable[[], object]] = [
        lambda: strict.run(MAIN, strict=True, quiet=True),
        lambda: strict.submit(MAIN, strict=True),
        lambda: strict.map(["true", MAIN], strict=True, quiet=True),
        lambda: asyncio.run(strict.arun(MAIN, strict=True, quiet=True)),
        lambda: asyncio.run(strict.asubmit(MAIN, strict=True)),
    ]

    before = [record.job.run_id for record in RunIndex().newest_first()]  # of other tests

    for call in calls:
        field, value, remedy = error_of(call)
        assert (field, value) == ("command", MAIN)
        assert "[wandb-key-missing]" in remedy
    assert [record.job.run_id for record in RunIndex().newest_first()] == before


def test_strict_accepts_warnings(launcher: Launcher) -> None:
    """A command without errors runs, also if it has warnings."""
    command = f"{MAIN} trainer.logger=console trainer.ckpt_interval=10 trainer.ckpt_path=/tmp/x || exit 7"
    strict = evolve(launcher, backend="local", ray=None)

    assert strict.plan(command).warnings
    assert strict.run(command, strict=True, quiet=True).returncode == 7


def test_forms_of_findings(launcher: Launcher) -> None:
    """Text and JSON have all findings, the errors first in the text. HTML is escaped."""
    command = f"{MAIN} trainer.ckpt_interval=10 trainer.ckpt_path='/tmp/<b>'"
    plan = launcher.plan(command)

    text, values, page = str(plan), json.loads(plan.to_json()), plan._repr_html_()

    assert text.index("[wandb-key-missing]") < text.index("[ckpt-path]")
    assert {"wandb-key-missing", "ckpt-path"} <= {finding["code"] for finding in values["findings"]}
    assert values["fixed_command"] == plan.fixed_command != command
    assert [start["kind"] for start in values["starts"]] == ["train"]
    assert "&lt;b&gt;" in page
    assert "<b>" not in page


def test_uv_is_searched_where_the_command_finds_it(
    launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A local command needs uv in the PATH of the run, which begins with the programs of the caller's Python."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    local = evolve(launcher, backend="local", ray=None)
    other = tmp_path / "other"
    other.mkdir()

    def codes(**fields: object) -> set[str]:
        return {found.code for found in evolve(local, **fields).plan(f"uv run {MAIN}").findings}  # type: ignore[arg-type]  # fields of any type

    assert "uv-missing" in codes()
    (other / "uv").write_text("#!/bin/sh\n")
    (other / "uv").chmod(0o755)
    assert "uv-missing" in codes()
    assert "uv-missing" not in codes(env={"PATH": str(other)})
    (other / "uv").rename(python.parent / "uv")
    assert "uv-missing" not in codes()
