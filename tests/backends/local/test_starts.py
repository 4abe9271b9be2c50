"""Starts at the same time, and starts with another environment, do not affect each other's files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_modal import Launcher, VolumeSpec
from skyrl_modal.backends.local.run_lock import state_folder
from skyrl_modal.backends.local.scratch import abandoned_folders, scratch_root
from skyrl_modal.backends.local.volume_folder import volume_folder
from tests.support.start_storm import run_storm

#: Prints a line, waits until the test writes to a named pipe, uses its files, and reports to another one.
USE_FILES = (
    'mkfifo "$SKYRL_DATA/go" "$SKYRL_DATA/done"; echo up; read line < "$SKYRL_DATA/go"; cd "$SKYRL_REPO_ROOT"; '
    '{ cat train.py && touch "$TMPDIR/x" && echo new > train.py && ls "$TMPDIR"; } > "$SKYRL_DATA/done" 2>&1'
)
#: Starts a run and cleans up, in an environment of its own.
OTHER_START = """
import sys
from skyrl_modal import Launcher
from skyrl_modal.run.cleanup import clean_up
assert Launcher(backend="local", mounts=[], volumes=[], gpu=None, ray=None).run("true", quiet=True).returncode == 0
clean_up()
"""
VARIABLES = {
    "same": (),
    "state": ("XDG_STATE_HOME",),
    "data": ("XDG_DATA_HOME",),
    "state_and_data": ("XDG_STATE_HOME", "XDG_DATA_HOME"),
    "cache": ("XDG_CACHE_HOME",),
    "temporary": ("TMPDIR",),
    "home": ("HOME",),
    "all_but_cache": ("XDG_STATE_HOME", "XDG_DATA_HOME", "TMPDIR", "HOME"),
}
#: The environments that are tried without namespaces.
WITHOUT_NAMESPACES = ("same", "state", "cache")


def start_elsewhere(folder: Path, variables: tuple[str, ...]) -> None:
    """Start another run and clean up, with some variables set to new folders."""
    env = dict(os.environ)
    for name in variables:
        (folder / name).mkdir()
        env[name] = str(folder / name)
    subprocess.run([sys.executable, "-c", OTHER_START], env=env, check=True, cwd=folder)


def assert_files_are_intact(volume: VolumeSpec) -> None:
    """Let the command of ``USE_FILES`` continue, and check that its files were not removed."""
    folder = volume_folder(volume.name)
    (folder / "go").write_text("\n")
    lines = (folder / "done").read_text().splitlines()
    assert lines[0] == "print('training')"
    assert "x" in lines[1:]


@pytest.mark.parametrize("namespaces", [True, False])
def test_another_environment_removes_no_files(
    launcher: Callable[..., Launcher],
    volume: VolumeSpec,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    namespaces: bool,
) -> None:
    """No start and no clean-up removes the files of an active run, whatever folders the user has there.

    Without namespaces, the files of the run are in the folder for temporary files.
    """
    if not namespaces:
        request.getfixturevalue("no_namespaces")
    run = launcher().submit(USE_FILES)
    assert next(run.logs(follow=True)) == "up"

    for name, variables in VARIABLES.items():
        if namespaces or name in WITHOUT_NAMESPACES:
            (tmp_path / name).mkdir()
            start_elsewhere(tmp_path / name, variables)

    assert_files_are_intact(volume)
    assert run.wait(60).returncode == 0


@pytest.mark.parametrize("damage", ["state_removed", "marker_removed", "marker_replaced"])
def test_damaged_records_remove_no_files(
    launcher: Callable[..., Launcher], volume: VolumeSpec, tmp_path: Path, damage: str
) -> None:
    """The files of an active run are kept if its state folder was removed, or its folder's marker was changed."""
    run = launcher().submit(USE_FILES)
    assert next(run.logs(follow=True)) == "up"
    scratch = scratch_root() / run.id
    if damage == "state_removed":
        shutil.rmtree(state_folder(run.id))
    else:
        (scratch / "skyrl-modal-run").unlink()
        if damage == "marker_replaced":
            (scratch / "skyrl-modal-run").symlink_to("other machine:20000101-000000-000000")

    start_elsewhere(tmp_path, ())

    assert scratch.is_dir()
    assert scratch not in list(abandoned_folders())
    assert_files_are_intact(volume)


@pytest.mark.parametrize("namespaces", [True, False])
def test_starts_at_the_same_time_are_independent(namespaces: bool) -> None:
    """Runs that start at the same time in two processes have layers of their own, and leave nothing."""
    report = run_storm(runs=12, parallel=12, namespaces=namespaces)

    assert report.problems(has_namespaces=namespaces) == []
    assert len(report.runs) == 12


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("namespaces", [True, False])
def test_starts_with_ray_are_independent(namespaces: bool) -> None:
    """The same with Ray: each run has its own, and nothing of it is left."""
    report = run_storm(runs=0, parallel=1, ray=4, ray_parallel=2, namespaces=namespaces)

    assert report.problems(has_namespaces=namespaces) == []
    assert len(report.runs) == 4
