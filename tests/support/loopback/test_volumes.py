"""Volumes of the loopback, with the real client and in containers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import modal
import pytest

from . import LoopbackModal


def test_other_containers_see_committed_files_only(loopback: LoopbackModal, running: Any) -> None:
    """Files are visible to clients and other containers after a commit, at the latest at the container's exit."""
    volume = modal.Volume.from_name("data", create_if_missing=True)
    mounted = {"volumes": {"/root/data": volume}, "image": modal.Image.from_registry("ubuntu:22.04")}
    with running("write", **mounted) as write:
        assert write.remote("/root/data/kept", "one", commit="data").startswith("/__modal/volumes/vo-")
        write.remote("/root/data/later", "two")
        assert [entry.path for entry in volume.listdir("/")] == ["kept"]
        with running("tree", **mounted) as tree:
            assert tree.remote("/root/data") == ["kept"]
    loopback.wait_for_no_container()  # the runtime commits when it ends
    assert sorted(entry.path for entry in volume.listdir("/")) == ["kept", "later"]


def test_running_container_sees_a_commit_after_reload(running: Any) -> None:
    """A commit of another container is visible in a running container after its reload."""
    volume = modal.Volume.from_name("data", create_if_missing=True)
    with running("read_after_reload", volumes={"/root/data": volume}) as read:
        assert read.remote("/root/data/x", "data") == ("", "")  # the container is running now
        with running("write", volumes={"/root/data": volume}) as write:
            write.remote("/root/data/x", "new", commit="data")
        assert read.remote("/root/data/x", "data") == ("", "new")


def test_reload_refuses_open_files(running: Any) -> None:
    """A reload fails while a file of the volume is open."""
    volume = modal.Volume.from_name("data", create_if_missing=True)
    with running("reload_with_open_file", volumes={"/root/data": volume}) as reload:
        assert "there are open files" in reload.remote("/root/data/x", "data")


def test_commit_publishes_only_own_changes(loopback: LoopbackModal, running: Any) -> None:
    """A commit overwrites the files that the container changed, and leaves files of other writers."""
    folder = loopback.volume("data", create=True)
    (folder / "old").write_text("old")
    volume = modal.Volume.from_name("data")
    with running("write", volumes={"/root/data": volume}) as write:
        write.remote("/root/data/a", "a")
        (folder / "meanwhile").write_text("b")
        write.remote("/root/data/old", "new", commit="data")
    assert (folder / "old").read_text() == "new"
    assert (folder / "meanwhile").read_text() == "b"


@pytest.mark.parametrize("version", [1, 2])
def test_clients_read_and_write_volumes(loopback: LoopbackModal, tmp_path: Path, version: int) -> None:
    """Clients upload, list, download and remove files on volumes of both versions."""
    volume = modal.Volume.from_name("outside", create_if_missing=True, version=version)
    (tmp_path / "up" / "sub").mkdir(parents=True)
    (tmp_path / "up" / "small").write_text("small")
    large = os.urandom(9 << 20)
    (tmp_path / "up" / "sub" / "large").write_bytes(large)
    with volume.batch_upload() as batch:
        batch.put_directory(tmp_path / "up", "/")
    assert sorted(entry.path for entry in volume.listdir("/", recursive=True)) == ["small", "sub", "sub/large"]
    assert b"".join(volume.read_file("sub/large")) == large
    with (tmp_path / "down").open("wb") as file:
        assert volume.read_file_into_fileobj("sub/large", file) == len(large)
    assert (tmp_path / "down").read_bytes() == large
    with pytest.raises(FileExistsError), volume.batch_upload() as batch:
        batch.put_file(tmp_path / "up" / "small", "/small")
    volume.remove_file("small")
    with pytest.raises(FileNotFoundError):
        b"".join(volume.read_file("small"))
    with pytest.raises(modal.exception.NotFoundError):
        volume.listdir("/nowhere")
