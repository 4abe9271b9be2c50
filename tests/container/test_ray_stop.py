"""The exit of Ray that the command itself caused, with ``ray stop``."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from skyrl_modal.container.failures import Failure
from skyrl_modal.container.ray_stop import explain_ray_exit
from skyrl_modal.protocol.state import FailureCause

RAY_EXITED = Failure(FailureCause.RAY_EXITED, "Ray exited", "the end of a log", rank=0)


def causes(failure: Failure | None, command: str, *pids: int) -> FailureCause | None:
    """Return the cause of a failure when the command and its living processes are known."""
    explained = explain_ray_exit(failure, command, lambda: set(pids))
    return None if explained is None else explained.cause


@pytest.mark.parametrize(
    "command",
    ["ray stop", "ray stop --force; sleep 5", "set -e\n ray  stop\npython x.py", "(ray stop)", "a && ray stop"],
)
def test_call_in_the_command_is_the_cause(command: str) -> None:
    """If Ray exits and the command calls `ray stop`, the call is the cause, with its remedy."""
    explained = explain_ray_exit(RAY_EXITED, command, set)

    assert explained is not None
    assert (explained.cause, explained.rank) == (FailureCause.RAY_STOPPED, 0)
    assert "Remove the call" in explained.text


@pytest.mark.parametrize("command", ["python x.py", "array stop", "ray stopped", "ray status; stop"])
def test_other_command_is_not_the_cause(command: str) -> None:
    """Without such a call, the failure is unchanged."""
    assert causes(RAY_EXITED, command) is FailureCause.RAY_EXITED


def test_running_call_is_the_cause(tmp_path: Path) -> None:
    """A call in a script, or by a program, is found while it runs."""
    ray = tmp_path / "ray"
    ray.write_text("#!/bin/sh\necho up\nread line\n")
    ray.chmod(0o755)
    for arguments, cause in ((["stop"], FailureCause.RAY_STOPPED), (["status"], FailureCause.RAY_EXITED)):
        with subprocess.Popen([ray, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            assert causes(RAY_EXITED, "bash x.sh", process.pid) is cause
            process.communicate("\n")


def test_other_failure_is_unchanged() -> None:
    """Only the exit of Ray is explained by the call."""
    assert causes(None, "ray stop") is None
    assert causes(Failure(FailureCause.RANK_LOST, "lost"), "ray stop") is FailureCause.RANK_LOST
