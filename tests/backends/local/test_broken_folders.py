"""Runs while a folder that they write is full, read-only, on another file system, or in place of a file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.small_mounts import run_with_mount

FOLDERS = {"data": "DATA", "state": "STATE", "cache": "CACHE"}
COMMAND = [sys.executable, "-m", "skyrl_modal", "run", "--backend", "local", "--no-ray", "--gpu", "none"]
FILL = "head -c 30000000 /dev/zero >fill 2>/dev/null; true"


@pytest.fixture
def user_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Path]:
    """Return empty folders of the user."""
    folders = {}
    for name, variable in FOLDERS.items():
        monkeypatch.setenv(f"XDG_{variable}_HOME", str(tmp_path / name))
        folders[name] = tmp_path / name / "skyrl_modal"
        folders[name].mkdir(parents=True)
    return folders


def left(folders: Mapping[str, Path]) -> list[str]:
    """Return what is left of runs that did not start."""
    found = []
    for folder in (folders["cache"] / "scratch", folders["state"] / "runs"):
        found += [str(path) for path in folder.iterdir()] if folder.is_dir() else []
    return found


def run(checkout: Path) -> subprocess.CompletedProcess[str]:
    """Run a command without a broken folder."""
    return subprocess.run([*COMMAND, "exit 7"], cwd=checkout, capture_output=True, text=True, check=False)


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the lines about a folder that cannot be written."""
    return [line for line in done.stderr.splitlines() if "No space left" in line or "Read-only file" in line]


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize(
    ("options", "prepare"),
    [("size=256k", FILL), ("size=256k,nr_inodes=2", "true"), ("size=256k", 'mount -o remount,ro "$0"')],
    ids=["full", "no-inodes", "read-only"],
)
def test_folder_that_cannot_be_written(
    user_folders: Mapping[str, Path], checkout: Path, folder: str, options: str, prepare: str
) -> None:
    """The run does not start, one sentence names the folder, nothing is left, and the next run works."""
    place = user_folders[folder]

    done = run_with_mount(place, options, [*COMMAND, "exit 7"], prepare=prepare, cwd=checkout)

    # A run whose record in the index cannot be written is run all the same, and the record's file is named. One whose
    # volume is full is started and fails, so that `ps` lists it.
    is_started = prepare == FILL and folder in ("data", "state")
    is_record = folder == "state" and prepare == FILL
    assert done.returncode == (7 if is_record else 125), done.stderr
    assert len(errors(done)) == 1, done.stderr
    # The supervisor names the folder by its path in the run.
    assert str(place) in errors(done)[0] or (folder == "data" and "/root/data" in errors(done)[0])
    assert "Traceback" not in done.stderr
    assert "[Errno" not in done.stderr
    assert is_started or left(user_folders) == []
    assert run(checkout).returncode == 7


@pytest.mark.parametrize("folder", FOLDERS)
def test_folder_on_another_file_system(user_folders: Mapping[str, Path], checkout: Path, folder: str) -> None:
    """A folder on a file system of its own is used like any other."""
    done = run_with_mount(user_folders[folder], "size=20m", [*COMMAND, "exit 7"], cwd=checkout)

    assert (done.returncode, errors(done)) == (7, [])


@pytest.mark.parametrize(
    "name", ["data", "state", "cache", "cache/scratch", "cache/snapshots", "data/volumes", "state/runs", "state/index"]
)
@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_file_in_place_of_a_folder(user_folders: Mapping[str, Path], checkout: Path, name: str, kind: str) -> None:
    """A file where a folder has to be is an error that names it, and the next run works."""
    folder, _, inner = name.partition("/")
    place = user_folders[folder] / inner
    if not inner:
        place.rmdir()
    if kind == "file":
        place.touch()
    else:
        place.symlink_to("missing")

    done = run(checkout)

    assert (done.returncode, "Traceback" in done.stderr) == (125 if name != "state/index" else 7, False), done.stderr
    assert str(user_folders[folder]) in done.stderr
    place.unlink()
    assert left({**user_folders}) == [] or name == "state/index"
    assert run(checkout).returncode == 7


@pytest.mark.parametrize("name", ["data", "state", "cache"])
def test_folder_removed_during_the_run(user_folders: Mapping[str, Path], checkout: Path, name: str) -> None:
    """A folder that is removed during a run does not change its exit code, and the next run works."""
    place = user_folders[name]

    done = subprocess.run(
        [*COMMAND, f"rm -rf {place} 2>/dev/null; echo done; exit 7"],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (7, "done\n"), done.stderr
    assert "Traceback" not in done.stderr
    assert run(checkout).returncode == 7


def test_temporary_folder_that_is_full(user_folders: Mapping[str, Path], checkout: Path, tmp_path: Path) -> None:
    """A run in a sandbox needs no space in the temporary folder of the system."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    environment = {"TMPDIR": str(folder)}
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in environment.items():
            patch.setenv(variable, value)
        done = run_with_mount(folder, "size=64k", [*COMMAND, "exit 7"], prepare=FILL, cwd=checkout)

    assert (done.returncode, errors(done)) == (7, [])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write every folder")
@pytest.mark.parametrize("folder", FOLDERS)
def test_folder_without_permission(user_folders: Mapping[str, Path], checkout: Path, folder: str) -> None:
    """A folder that the user may not write is an error that names it, and the next run works."""
    place = user_folders[folder]
    place.chmod(0o500)
    try:
        done = run(checkout)
    finally:
        place.chmod(0o700)

    assert done.returncode == 125
    assert str(place) in done.stderr
    shutil.rmtree(place)
    assert run(checkout).returncode == 7
