"""Logs that a run on Modal keeps when its container is preempted or killed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from skyrl_modal import Launcher, RunState, VolumeSpec
from tests.support.loopback import LoopbackModal

Make = Callable[..., Launcher]
WRITE = 'mkdir -p /tmp/skyrl-logs; echo "engine of $MODAL_TASK_ID failed" >> /tmp/skyrl-logs/infra-1.log; '


def test_preempted_container_leaves_its_logs(server: LoopbackModal, launcher: Make) -> None:
    """A preempted attempt that is started again in another container has two folders, each with its own logs."""
    run = launcher().submit(f"{WRITE} f=$SKYRL_DATA/twice; [ -e $f ] && exit 3; touch $f; echo up; sleep 600")
    assert next(iter(run.logs(follow=True))) == "up"

    server.preempt()

    result = run.wait(90)
    assert (result.returncode, result.attempts) == (3, 1)
    logs = run.kept_logs(pattern="skyrl-logs/*")
    assert [(log.attempt, log.start, log.name) for log in logs] == [
        (1, 1, "skyrl-logs/infra-1.log"),
        (1, 2, "skyrl-logs/infra-1.log"),
    ]
    assert len({log.read() for log in logs}) == 2


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "reload_after_commit"])
def test_killed_container_leaves_its_logs(
    make_server: Callable[..., Any], launcher: Make, volume: VolumeSpec, mode: str
) -> None:
    """What was committed at the interval remains if the container is killed; the command always sees its files."""
    server = make_server(crashes_allowed=0, **({} if mode == "default" else {"mode": mode}))
    # It exits if a file of the volume is missing, as it would be while the volume is reloaded.
    watch = "touch $SKYRL_DATA/file; while [ -e $SKYRL_DATA/file ]; do sleep 0.02; done; echo missing; exit 9"
    run = launcher().submit(f"{WRITE} echo up; {watch}")
    assert next(iter(run.logs(follow=True))) == "up"

    folder = server.volume(volume.name)
    server.wait_until(lambda: list(folder.glob(".skyrl_modal/runs/*/logs/0/1/skyrl-logs/infra-1.log")))
    assert run.state is RunState.RUNNING
    server.kill(server.wait_for_container("busy"))

    assert run.wait(90).state is RunState.LOST
    [log] = run.kept_logs(pattern="skyrl-logs/*")
    assert log.read().endswith(b"failed\n")
    assert "missing" not in list(run.logs())
