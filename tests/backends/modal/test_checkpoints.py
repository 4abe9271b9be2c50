"""Tests of checkpoints on Modal: commits while a run continues, claims of folders, and clusters."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import modal
import pytest

from skyrl_modal import Launcher, RunState, VolumeSpec
from skyrl_modal.container import checkpoint_claims
from skyrl_modal.container.checkpoint_claims import ClaimedByOther, StoreClaim
from skyrl_modal.protocol.job import Job, Volume
from skyrl_modal.protocol.leases import CheckpointEntry
from tests.backends.modal.conftest import ActingOutput
from tests.support.checkpoint_folders import POINTER
from tests.support.leases import lease_keys
from tests.support.loopback import LoopbackModal
from tests.support.loopback.modes import Mode
from tests.support.small_trainer import SCRIPT, SCRIPT_TEXT, add_to_checkout

Make = Callable[..., Launcher]
COMMAND = f"bash {SCRIPT}"


@pytest.fixture
def trainer_checkout(checkout: Path) -> Path:
    """Return the checkout with a small trainer and its script."""
    add_to_checkout(checkout)
    return checkout


# -- commits ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("trainer_checkout")
def test_new_checkpoints_are_committed_while_the_run_continues(
    server: LoopbackModal, launcher: Make, volume: VolumeSpec
) -> None:
    """A complete checkpoint is on the volume before the run ends: a container that dies loses none."""
    run = launcher(resume="auto", env={"WAIT_FOR": "/nowhere"}).submit(COMMAND)
    pointer = server.volume(volume.name) / "ckpts" / "a" / POINTER

    server.wait_until(lambda: pointer.exists() and pointer.read_text() == "6", what="step 6 is not committed")

    assert [item.step for item in run.checkpoints() if item.complete] == [2, 4, 6]
    server.kill()
    assert run.wait(60).state is RunState.SUCCEEDED
    assert [line for line in run.logs() if line.startswith("begins")] == ["begins after step 0", "begins after step 6"]


@pytest.mark.slow
@pytest.mark.usefixtures("trainer_checkout")
def test_volume_does_not_look_empty_during_a_commit(
    make_server: Callable[..., LoopbackModal], trainer_checkout: Path, volume: VolumeSpec
) -> None:
    """A commit after a checkpoint leads to no reload, during which a training would find no files."""
    server = make_server(mode=Mode(skip_reload=False, reload_pause=1.5))
    # The open output.log would prevent a reload of the first volume.
    volumes = [volume, VolumeSpec(name=f"{volume.name}-ckpts", mount_path="/root/ckpts")]
    add_to_checkout(trainer_checkout, SCRIPT_TEXT.replace("$SKYRL_DATA/ckpts/a", "/root/ckpts/a"))
    used = Launcher(backend="modal", checkout=trainer_checkout, volumes=volumes, ray=None, gpu=None)
    watch = "(while :; do [ -e /root/ckpts/a/global_step_2 ] || echo EMPTY; sleep 0.1; done) & sleep 12; kill $!"
    output = io.BytesIO()

    result = used.run(f"{COMMAND}; {watch}; true", output=output, quiet=True)

    assert result.state is RunState.SUCCEEDED
    assert (server.volume(volumes[1].name) / "a" / POINTER).read_text() == "6"
    assert "EMPTY" not in output.getvalue().decode()


@pytest.mark.slow
@pytest.mark.usefixtures("trainer_checkout")
def test_preempted_run_continues_in_another_container(server: LoopbackModal, launcher: Make) -> None:
    """After a preemption, the same attempt continues from the checkpoint that the first container has committed."""
    output = ActingOutput("step 6\n", server.preempt)

    result = launcher(resume="auto", env={"WAIT_FOR": "/nowhere"}).run(COMMAND, output=output, quiet=True)

    lines = [line for line in output.getvalue().decode().splitlines() if line.startswith("begins")]
    assert (result.state, result.attempts) == (RunState.SUCCEEDED, 1)
    assert lines == ["begins after step 0", "begins after step 6"]


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.usefixtures("trainer_checkout")
def test_cluster_continues_in_new_containers(server: LoopbackModal, launcher: Make) -> None:
    """Nodes see what others have written when they start, so that each further attempt has new containers."""
    output = io.BytesIO()
    used = launcher(resume="auto", retries=1, nodes=2, gpu="H100:8", env={"FAULT": "cut pointer"})

    result = used.run(COMMAND, output=output, quiet=True)

    text = output.getvalue().decode()
    assert (result.state, result.attempts) == (RunState.SUCCEEDED, 2), text
    assert "begins after step 4" in text
    assert len(server.containers(running=False)) == 4


# -- claims ----------------------------------------------------------------------------------------------------------


def job_of(run_id: str) -> Job:
    """Return a job with nested volumes."""
    volumes = (Volume(name="outer", mount_path="/data"), Volume(name="inner", mount_path="/data/inner"))
    facts = {"run_id": run_id, "command": "true", "workdir": "/", "run_folder": f"/data/{run_id}"}
    return Job(**facts, created_at="2026-01-01", volumes=volumes)


@pytest.fixture
def claim(server: LoopbackModal, monkeypatch: pytest.MonkeyPatch) -> Callable[..., StoreClaim]:
    """Return a function that creates claims in a Dict of the loopback, with short times."""
    monkeypatch.setattr(checkpoint_claims, "RENEWAL_INTERVAL", 0.2)
    monkeypatch.setattr(checkpoint_claims, "EXPIRY_TIMEOUT", 3.0)
    monkeypatch.setattr(checkpoint_claims, "POLL_INTERVAL", 0.4)
    store: Any = modal.Dict.from_name("claims", create_if_missing=True)

    def make(run_id: str, folder: str = "/data/ckpts/a") -> StoreClaim:
        return StoreClaim(store, job_of(run_id), folder, lambda text: None)

    return make


def test_claim_of_a_live_run(server: LoopbackModal, claim: Callable[..., StoreClaim]) -> None:
    """A claim that is renewed refuses another run. When it is released, nothing remains, and the other one gets it."""
    first, second, elsewhere = claim("r1"), claim("r2"), claim("r3", "/data/inner/ckpts/a")
    first.acquire()
    elsewhere.acquire()

    with pytest.raises(ClaimedByOther) as caught:
        second.acquire()

    assert (caught.value.run_id, caught.value.folder) == ("r1", "/data/ckpts/a")
    first.release()
    second.acquire()
    second.release()
    elsewhere.release()
    assert lease_keys(server) == []


def test_claim_of_a_killed_run_expires(claim: Callable[..., StoreClaim]) -> None:
    """A claim that is not renewed any more is taken over, and its former holder does not remove the new one."""
    first, second = claim("r1"), claim("r2")
    first.acquire()
    first.release(is_continued=True)  # as a container that is killed: the entry remains

    second.acquire()
    first.release()

    with pytest.raises(ClaimedByOther, match="the run r2"):
        claim("r3").acquire()
    second.release()


def test_replacement_of_a_container_takes_over(claim: Callable[..., StoreClaim]) -> None:
    """Another container of the same run need not wait."""
    first, again = claim("r1"), claim("r1")
    first.acquire()

    again.acquire()

    again.release()


def test_entries_are_read_tolerantly() -> None:
    """An entry of another version is one of an unknown run, and no error."""
    assert CheckpointEntry.decode(b"\xff").count == 0
    assert CheckpointEntry.decode("") == CheckpointEntry("", "")
    assert CheckpointEntry.decode("r1 a 3 more") == CheckpointEntry("r1", "a", 0)
