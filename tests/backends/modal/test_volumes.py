"""Transfers between this machine and Modal's volumes: as on the local backend, or reported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_modal import Launcher, VolumeSpec
from skyrl_modal.backends.staging import STAGING_PREFIX
from skyrl_modal.errors import PathNotFound, SkyRLModalError, SpecError, StorageError
from tests.support.loopback import LoopbackModal

#: Transfers a folder, and is killed when the first file is written or uploaded.
KILLED_TRANSFER = """
import os, signal, sys
import modal
from skyrl_modal import Launcher, VolumeSpec
from skyrl_modal.backends.staged_files import StagedFiles

def kill(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[2] == "pull":
    StagedFiles.writing = kill
else:
    from modal.volume import _VolumeUploadContextManager
    _VolumeUploadContextManager._upload_file = kill
launcher = Launcher(backend="modal", mounts=[], volumes=[VolumeSpec(name=sys.argv[1])])
getattr(launcher, sys.argv[2])(*sys.argv[3:])
"""


@pytest.fixture
def folder(server: LoopbackModal, volume: VolumeSpec) -> Path:
    """Return the files of a volume on the server."""
    return server.volume(volume.name, create=True)


@pytest.fixture
def made(launcher: Callable[..., Launcher], folder: Path) -> Launcher:
    """Return a launcher with the volume."""
    return launcher()


def names(folder: Path) -> list[str]:
    """Return the paths below a folder, sorted. Links are not followed."""
    return sorted(
        os.path.relpath(os.path.join(parent, name), folder)
        for parent, folders, files in os.walk(folder)
        for name in [*folders, *files]
    )


def test_whole_volume_is_pushed_and_pulled(made: Launcher, folder: Path, tmp_path: Path) -> None:
    """The mount path itself can be pushed to and pulled. A file that is pushed to a folder keeps its name."""
    (tmp_path / "up" / "sub").mkdir(parents=True)
    (tmp_path / "up" / "sub" / "file").write_text("content")

    made.push(f"{tmp_path / 'up'}/", "/root/data")
    made.push(tmp_path / "up" / "sub" / "file", "/root/data")
    made.push(tmp_path / "up" / "sub" / "file", "/root/data/sub/new")
    made.push(tmp_path / "up" / "sub" / "file", "/root/data/sub/new")
    (folder / "empty").mkdir()

    assert names(folder) == ["empty", "file", "sub", "sub/file", "sub/new"]
    assert names(made.pull("/root/data", tmp_path / "all")) == ["empty", "file", "sub", "sub/file", "sub/new"]
    assert names(made.pull("/root/data/empty", tmp_path / "new")) == []


def test_links_and_empty_folders_are_reported(made: Launcher, folder: Path, tmp_path: Path) -> None:
    """A link within a pushed folder is uploaded as a file. What Modal cannot store is named in a warning."""
    up = tmp_path / "up"
    (up / "empty").mkdir(parents=True)
    (up / "file").write_text("content")
    (up / "inside").symlink_to("file")
    (up / "outside").symlink_to("/etc/passwd")
    (up / "folder-link").symlink_to("empty")
    os.mkfifo(up / "pipe")

    with pytest.warns(UserWarning, match="was not copied") as caught:
        made.push(up, "/root/data/copy")

    assert names(folder / "copy") == ["file", "inside"]
    assert [str(item.message).split("'")[1] for item in caught] == ["folder-link", "outside", "pipe", "empty"]


def test_links_on_a_volume_are_reported(made: Launcher, folder: Path, tmp_path: Path) -> None:
    """Modal's API cannot read a link: in a folder it is named in a warning."""
    (folder / "ck" / "step_10").mkdir(parents=True)
    (folder / "ck" / "step_10" / "weights").write_text("w")
    (folder / "ck" / "latest").symlink_to("step_10")
    (folder / "ck" / "passwd").symlink_to("/etc/passwd")

    with pytest.warns(UserWarning, match="'(latest|passwd)' was not copied") as caught:
        copy = made.pull("/root/data/ck", tmp_path / "ck")

    assert len(caught) == 2
    assert names(copy) == ["step_10", "step_10/weights"]
    with pytest.raises(SkyRLModalError):
        made.pull("/root/data/ck/passwd", tmp_path / "passwd")
    assert not (tmp_path / "passwd").exists()


def test_link_at_the_target_is_not_followed(made: Launcher, folder: Path, tmp_path: Path) -> None:
    """A pulled file replaces a link. A pulled folder is not written through one."""
    (folder / "sub").mkdir()
    (folder / "sub" / "file").write_text("new")
    (tmp_path / "victim").write_text("unchanged")
    (tmp_path / "link").symlink_to("victim")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to("elsewhere")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "sub").symlink_to("../elsewhere")

    assert made.pull("/root/data/sub/file", tmp_path / "link").read_text() == "new"
    with pytest.raises(SpecError):
        made.pull("/root/data/sub", tmp_path / "out")
    with pytest.raises(StorageError):
        made.pull("/root/data/", tmp_path / "copy")

    assert (tmp_path / "victim").read_text() == "unchanged"
    assert names(tmp_path / "elsewhere") == []


def test_missing_path_creates_nothing(made: Launcher, tmp_path: Path) -> None:
    """A failed pull leaves no folder for its target. A volume that may not be created is not created."""
    with pytest.raises(PathNotFound):
        made.pull("/root/data/none", tmp_path / "new" / "file")
    other = VolumeSpec(name="never-created", create_if_missing=False)
    with pytest.raises(PathNotFound):
        Launcher(backend="modal", mounts=[], volumes=[other]).push(__file__, "/root/data/x")

    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("verb", ["pull", "push"])
def test_killed_transfer_leaves_nothing_incomplete(
    made: Launcher, folder: Path, volume: VolumeSpec, tmp_path: Path, verb: str
) -> None:
    """After SIGKILL the target is unchanged, and the next transfer completes the copy."""
    for place in (folder, tmp_path / "up"):
        place.mkdir(exist_ok=True)
        (place / "file").write_text("new")
    before = names(folder)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "file").write_text("old")
    arguments = ["/root/data/", str(tmp_path / "copy")]
    if verb == "push":
        arguments = [str(tmp_path / "up"), "/root/data/pushed"]

    command = [sys.executable, "-c", KILLED_TRANSFER, volume.name, verb, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)

    assert done.returncode == -signal.SIGKILL, done.stderr
    assert names(folder) == before
    assert (tmp_path / "copy" / "file").read_text() == "old"
    if verb == "pull":
        made.pull("/root/data/", tmp_path / "copy")
        assert (tmp_path / "copy" / "file").read_text() == "new"
    assert [name for name in os.listdir(tmp_path / "copy") if name.startswith(STAGING_PREFIX)] == []
