"""Checkpoints on this machine: without namespaces, outside of volumes, and on volumes with hostile files."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from skyrl_modal import Run, RunState, SpecError, VolumeSpec
from skyrl_modal.backends.local.volume_folder import volume_folder
from skyrl_modal.container.checkpoint_claims import LOCK_SUFFIX
from tests.conftest import MakeLauncher
from tests.support.small_trainer import SCRIPT, SCRIPT_TEXT, add_to_checkout

COMMAND = f"bash {SCRIPT}"


@pytest.fixture
def outside() -> Iterator[Path]:
    """Return a folder of this machine that is on no volume and not in /tmp."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        yield Path(name)


def test_resume_without_namespaces(
    launcher: MakeLauncher, checkout: Path, volume: VolumeSpec, no_namespaces: None
) -> None:
    """Checkpoints are found at this machine's own paths."""
    add_to_checkout(checkout)
    output = io.BytesIO()

    result = launcher(retries=1, resume="auto", env={"FAULT": "cut pointer"}).run(COMMAND, output=output, quiet=True)

    assert (result.state, result.attempts) == (RunState.SUCCEEDED, 2)
    assert "begins after step 4" in output.getvalue().decode()
    assert str(volume_folder(volume.name)) in output.getvalue().decode()
    assert [item.step for item in Run.attach(result.run_id).checkpoints()] == [2, 4, 6]


def test_checkpoints_outside_of_volumes(launcher: MakeLauncher, checkout: Path, outside: Path) -> None:
    """Files outside of volumes remain on this machine: they are listed, and continued from without a volume too."""
    add_to_checkout(checkout, SCRIPT_TEXT.replace("$SKYRL_DATA/ckpts/a", f"{outside}/ckpts/a"))
    output = io.BytesIO()
    used = launcher(retries=1, resume="auto", volumes=[], env={"FAULT": "incomplete"})

    result = used.run(COMMAND, output=output, quiet=True)

    assert result.state is RunState.SUCCEEDED
    assert "begins after step 2" in output.getvalue().decode()
    found = Run.attach(result.run_id).checkpoints()
    assert [(item.step, item.path) for item in found][-1] == (6, f"{outside}/ckpts/a/global_step_6")
    assert not [name for name in os.listdir(outside / "ckpts") if name.endswith(LOCK_SUFFIX)]


def test_links_on_a_volume_are_not_followed(
    launcher: MakeLauncher, checkout: Path, volume: VolumeSpec, outside: Path
) -> None:
    """A link of another user of the volume leads to no file of this machine."""
    add_to_checkout(checkout)
    result = launcher().run(COMMAND, output=io.BytesIO(), quiet=True, check=True)
    run, folder = Run.attach(result.run_id), volume_folder(volume.name) / "ckpts" / "a"
    (folder / "global_step_2").rename(outside / "global_step_2")
    (folder / "global_step_2").symlink_to(outside / "global_step_2")
    (folder / "global_step_4" / "trainer_state.pt").unlink()
    (folder / "global_step_4" / "trainer_state.pt").symlink_to("/etc/hostname")

    missing = [item.missing for item in run.checkpoints()]

    link = "a symbolic link, which is not followed"
    assert missing == [(link,), (f"trainer_state.pt: {link}",), ()]
    folder.rename(outside / "a")
    folder.symlink_to(outside / "a")
    with pytest.raises(SpecError, match="outside of the volume"):
        run.checkpoints()
