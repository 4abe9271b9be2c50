"""The exit of Ray that the command itself caused, with ``ray stop``."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from skyrl_modal.container.failures import Failure
from skyrl_modal.container.ray_stop import explain_ray_exit, ray_exit_failure, was_terminated
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


def test_node_that_was_stopped_is_named() -> None:
    """A node that exited while `ray stop` ran on it has this cause, with its rank."""
    stopped = ray_exit_failure("raylet exited", "the end of a log", 1, is_stopped=True)
    exited = ray_exit_failure("raylet exited", "the end of a log", 1, is_stopped=False)

    assert (stopped.cause, stopped.rank, stopped.detail) == (FailureCause.RAY_STOPPED, 1, "")
    assert stopped.text.startswith("rank 1: Ray was ended by SIGTERM, which `ray stop` sends. Remove the call")
    assert (exited.cause, exited.rank, exited.detail) == (FailureCause.RAY_EXITED, 1, "the end of a log")


def test_terminated_raylet_is_found_by_its_log(tmp_path: Path) -> None:
    """The end of the log of a raylet shows whether SIGTERM ended it; without a log, it is not known."""
    log = tmp_path / "raylet.out"
    assert not was_terminated(log)

    log.write_bytes(b"[2026-11-26] (raylet) main.cc:226: started\n" * 10_000)
    assert not was_terminated(log)

    with log.open("a") as file:
        file.write("main.cc:481: Raylet graceful shutdown triggered with death info: reason: EXPECTED_TERMINATION\n")
        file.write('reason_message: "received SIGTERM"\n\nstats.h:176: Stats module has shutdown.\n')
    assert was_terminated(log)


def test_other_failure_is_unchanged() -> None:
    """Only the exit of Ray is explained by the call."""
    assert causes(None, "ray stop") is None
    assert causes(Failure(FailureCause.RANK_LOST, "lost"), "ray stop") is FailureCause.RANK_LOST
