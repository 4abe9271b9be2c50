"""Tests of the state of a run that has not ended, for each of its readers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from grpclib import Status

from skyrl_modal import Launcher, RaySpec, Run, RunState, VolumeSpec
from skyrl_modal.backends.modal import ModalBackend
from skyrl_modal.protocol.events import OutputEvent, StateEvent
from tests.support.loopback import LoopbackModal

Make = Callable[..., Launcher]


def ps(run: Run) -> RunState:
    """Return the state that ``skyrl-modal ps`` prints."""
    command = [sys.executable, "-m", "skyrl_modal", "ps", "--json"]
    rows = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    [state] = [row["state"] for row in rows if row["run_id"] == run.id]
    return RunState(state)


def by_call_id(run: Run) -> RunState:
    """Return the state of a run of which only the id of its call is known."""
    execution = ModalBackend().attach_by_call_id(str(run._execution.handle["call_id"]))
    assert execution is not None
    return execution.state()


READERS: dict[str, Callable[[Run], RunState]] = {
    "caller": lambda run: run.state,
    "attached": lambda run: Run.attach(run.id).state,
    "call id": by_call_id,
    "ps": ps,
}


@pytest.fixture(autouse=True)
def own_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use an index of its own: ``ps`` waits 10 s for each run of another test, whose control plane has ended."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def submit(launcher: Make) -> Iterator[Callable[..., Run]]:
    """Return a function that submits a command, without Ray by default; the run is killed at the end of the test."""
    runs: list[Run] = []

    def start(command: str, **fields: object) -> Run:
        runs.append(launcher(**{"ray": None, **fields}).submit(command))
        return runs[-1]

    yield start
    for run in runs:
        run.cancel(now=True)


@pytest.mark.parametrize("case", ["volume", "no volume", "read-only volume", "failed commits"])
def test_printing_run_is_running(
    server: LoopbackModal, submit: Callable[..., Run], volume: VolumeSpec, case: str
) -> None:
    """A run that prints is running for every reader, also if nothing on a volume shows it."""
    fields: dict[str, object] = {}
    if case == "no volume":
        fields = {"volumes": []}
    elif case == "read-only volume":
        fields = {"volumes": [VolumeSpec(name=volume.name, read_only=True)]}
    elif case == "failed commits":
        server.faults.unavailable(600, names="VolumeCommit", side="container", status=Status.DATA_LOSS)
    run = submit("echo up; sleep 600", **fields)
    server.wait_for_text("up\n")

    assert {name: read(run) for name, read in READERS.items()} == dict.fromkeys(READERS, RunState.RUNNING)


def test_state_before_the_command(
    make_server: Callable[..., LoopbackModal], submit: Callable[..., Run], tmp_path: Path
) -> None:
    """A run is pending until its container starts, and preparing for every reader while Ray starts.

    The volume does not show it: no commit succeeds.
    """
    ray = tmp_path / "bin" / "ray"
    ray.parent.mkdir()
    ray.write_text("#!/bin/sh\nexec sleep 600\n")
    ray.chmod(0o755)
    server = make_server(container_path=[ray.parent], visible=[ray.parent])
    server.faults.unavailable(600, names="VolumeCommit", side="container", status=Status.DATA_LOSS)
    server.faults.slow_start(8)
    run = submit("echo up; sleep 600", ray=RaySpec())
    before = {name: read(run) for name, read in READERS.items() if name != "ps"}
    server.wait_for_text("state | preparing")

    assert set(before.values()) == {RunState.PENDING}
    assert {name: read(run) for name, read in READERS.items()} == dict.fromkeys(READERS, RunState.PREPARING)


def test_states_are_events(server: LoopbackModal, submit: Callable[..., Run]) -> None:
    """Events of a run contain its states, before its output."""
    seen = []
    for event in submit("echo up; sleep 600").events():
        if isinstance(event, StateEvent):
            seen.append(event.state)
        elif isinstance(event, OutputEvent):
            break

    assert seen == [RunState.RUNNING]  # without Ray there is nothing to prepare


def test_state_of_a_running_run_costs_no_log_request(server: LoopbackModal, submit: Callable[..., Run]) -> None:
    """Once the volume shows that the command runs, Modal's log is not requested for the state."""
    run = submit("echo up; sleep 600")
    server.wait_for_text("up\n")
    states = [run.state, run.state, Run.attach(run.id).state]

    assert states == [RunState.RUNNING] * 3
    assert server.requests("AppFetchLogs") == []
    assert server.requests("AppCountLogs") == []
