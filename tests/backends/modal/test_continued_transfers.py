"""Transfers to and from Modal's volumes that continue, and what a server or another writer of a volume can send."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skyrl_modal import Launcher, VolumeSpec
from skyrl_modal.backends.modal import client_internals, download
from skyrl_modal.backends.staging import STAGING_PREFIX
from skyrl_modal.errors import PathNotFound, StorageError
from tests.support.loopback import LoopbackModal

BLOCK = download.BLOCK_SIZE
OLD = (1_700_000_000, 1_700_000_000)

#: Pulls a file, and is killed after two blocks.
KILLED_PULL = """
import os, signal, sys
from skyrl_modal import Launcher, VolumeSpec
from skyrl_modal.views import transfer_progress

class Killing(transfer_progress.TransferProgress):
    def transferred(self, size, *, is_resumed=False):
        super().transferred(size, is_resumed=is_resumed)
        if self.done_bytes >= 16 << 20:
            os.kill(os.getpid(), signal.SIGKILL)

transfer_progress.TransferProgress = Killing
Launcher(backend="modal", mounts=[], volumes=[VolumeSpec(name=sys.argv[1])]).pull(*sys.argv[2:])
"""


@pytest.fixture
def folder(server: LoopbackModal, volume: VolumeSpec) -> Path:
    """Return the files of a volume on the server."""
    return server.volume(volume.name, create=True)


@pytest.fixture
def made(launcher: Callable[..., Launcher], folder: Path) -> Launcher:
    """Return a launcher with the volume."""
    return launcher()


def kill_pull(volume: VolumeSpec, *arguments: str) -> None:
    """Start a pull in another process, which is killed after two blocks."""
    command = [sys.executable, "-c", KILLED_PULL, volume.name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("has_ranges", [True, False])
def test_pull_continues_in_a_file(
    made: Launcher, folder: Path, volume: VolumeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_ranges: bool
) -> None:
    """A pull continues at the block that was not complete, also with a client whose requests have no range."""
    (folder / "large").write_bytes(os.urandom(4 * BLOCK + 5))
    os.utime(folder / "large", OLD)
    kill_pull(volume, "/root/data/large", str(tmp_path / "large"))
    [staging] = tmp_path.glob(f"{STAGING_PREFIX}*")
    [part] = (staging / "parts").iterdir()
    assert part.stat().st_size >= 2 * BLOCK
    offsets: list[int] = []
    read_from = client_internals.read_from

    def record(source: Any, path: str, offset: int) -> Any:
        offsets.append(offset)
        return read_from(source, path, offset)

    monkeypatch.setattr(download, "read_from", record)
    if not has_ranges:
        monkeypatch.setattr(client_internals, "_inner_attribute", lambda wrapper: None)

    made.pull("/root/data/large", tmp_path / "large")

    assert offsets in ([2 * BLOCK], [3 * BLOCK])
    assert (tmp_path / "large").read_bytes() == (folder / "large").read_bytes()
    assert list(tmp_path.glob(f"{STAGING_PREFIX}*")) == []


def test_unchanged_files_are_not_downloaded(made: Launcher, folder: Path, tmp_path: Path) -> None:
    """A file is downloaded again if its size or time differs, if it was changed just before, or with force."""
    for name in ("a", "b", "recent"):
        (folder / name).write_text(name)
        if name != "recent":
            os.utime(folder / name, OLD)
    made.pull("/root/data/", tmp_path / "copy")
    assert (tmp_path / "copy" / "a").stat().st_mtime == OLD[0]
    (folder / "a").write_text("c")
    os.utime(folder / "a", (OLD[0] + 1, OLD[0] + 1))

    def changed(*, force: bool) -> list[str]:
        plan = made.plan_pull("/root/data/", tmp_path / "copy", force=force)
        return [os.path.basename(file.path) for file in plan.files if file.state != "unchanged"]

    assert changed(force=False) == ["a", "recent"]
    assert changed(force=True) == ["a", "b", "recent"]
    made.pull("/root/data/", tmp_path / "copy")
    assert (tmp_path / "copy" / "a").read_text() == "c"
    assert changed(force=False) == ["recent"] or changed(force=False) == []


@pytest.mark.parametrize("name", ["ck/../../evil", "../evil", "/ck/../../../evil"])
def test_listed_path_outside_is_refused(
    made: Launcher, server: LoopbackModal, folder: Path, tmp_path: Path, name: str
) -> None:
    """A server that lists a path outside of the folder cannot make a pull write outside of the target."""
    (folder / "ck").mkdir()
    (folder / "ck" / "file").write_text("x")
    entries = server.plane.volumes._entries

    def with_evil(request: Any) -> Any:
        found = entries(request)
        if request.recursive:
            found.append(type(found[0])(path=name, type=1, size=1, mtime=OLD[0]))
        return found

    server.plane.volumes._entries = with_evil  # type: ignore[method-assign]  # of this server alone

    with pytest.raises(StorageError):
        made.pull("/root/data/ck", tmp_path / "deep" / "copy")

    assert not (tmp_path / "deep").exists()
    assert not (tmp_path / "evil").exists()


def test_file_that_is_also_a_folder_is_refused(
    made: Launcher, server: LoopbackModal, folder: Path, tmp_path: Path
) -> None:
    """A server that lists a file as the folder of another file causes an error, and nothing is left."""
    (folder / "ck").mkdir()
    (folder / "ck" / "file").write_text("x")
    entries = server.plane.volumes._entries

    def with_evil(request: Any) -> Any:
        found = entries(request)
        if request.recursive:
            found.append(type(found[0])(path="ck/file/below", type=1, size=1, mtime=OLD[0]))
        return found

    server.plane.volumes._entries = with_evil  # type: ignore[method-assign]  # of this server alone

    with pytest.raises((StorageError, PathNotFound)):
        made.pull("/root/data/ck", tmp_path / "copy")

    assert list(tmp_path.glob(f"{STAGING_PREFIX}*")) == []
    assert not (tmp_path / "copy").exists()


def test_push_reports_progress(made: Launcher, folder: Path, tmp_path: Path) -> None:
    """The files and bytes of an upload are counted, also those that Modal has already."""
    from skyrl_modal import volume_access
    from skyrl_modal.views.transfer_progress import TransferProgress

    (tmp_path / "up").mkdir()
    sizes = {"a": 100, "b": 5 << 20}
    for name, size in sizes.items():
        (tmp_path / "up" / name).write_bytes(os.urandom(size))

    for resumed in (0, sizes["b"]):
        progress = TransferProgress("push")
        volume_access.push(made, f"{tmp_path}/up/", "/root/data/up", force=False, progress=progress)
        assert (progress.files, progress.done_files) == (2, 2)
        assert (progress.bytes, progress.done_bytes) == (sum(sizes.values()), sum(sizes.values()))
        assert progress.resumed_bytes == resumed


def test_push_without_access_to_the_client(
    made: Launcher, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a client that cannot report its progress, files are uploaded, and counted at the end."""
    from skyrl_modal import volume_access
    from skyrl_modal.views.transfer_progress import TransferProgress

    monkeypatch.setattr(client_internals, "_inner_attribute", lambda wrapper: None)
    (tmp_path / "file").write_bytes(b"x" * 100)
    progress = TransferProgress("push")

    volume_access.push(made, tmp_path / "file", "/root/data/file", force=False, progress=progress)

    assert (folder / "file").read_bytes() == b"x" * 100
    assert (progress.done_files, progress.done_bytes) == (1, 100)
