"""Tests of commits of volumes: repetitions, and the files that are not saved. The folders are real."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import modal.exception
import pytest

from skyrl_modal.container import volume_commits
from skyrl_modal.container.unsaved_files import file_time
from skyrl_modal.container.volume_commits import MountedVolume, VolumeCommits

OPEN_FILES = RuntimeError("there are open files preventing the operation (path x in volume vo-1)")


class FailingVolume:
    """A volume whose commits fail with the given errors, and then succeed."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.commits = 0

    def commit(self) -> None:
        """Count a commit, or raise the next error."""
        if self.errors:
            raise self.errors.pop(0)
        self.commits += 1

    def reload(self) -> None:
        """Raise the next error, if there is one."""
        if self.errors:
            raise self.errors.pop(0)


class EndlessErrors(list[Exception]):
    """Errors that never end."""

    def __init__(self, error: Exception) -> None:
        super().__init__([error])

    def pop(self, index: int = -1) -> Exception:  # type: ignore[override]  # an index of any type is not used
        """Return the error."""
        return self[index]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., VolumeCommits]:
    """Return a function that creates the commits of volumes in folders, with short waits."""
    monkeypatch.setattr(volume_commits, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(volume_commits, "COMMIT_TIMEOUT", 0.5)

    def create(*volumes: FailingVolume, **options: object) -> VolumeCommits:
        mounts = []
        for number, volume in enumerate(volumes):
            (tmp_path / f"v{number}").mkdir(exist_ok=True)
            mounts.append(MountedVolume(f"v{number}", str(tmp_path / f"v{number}"), volume))
        return VolumeCommits(mounts, mounts, **options)  # type: ignore[arg-type]  # typed by VolumeCommits

    return create


@pytest.mark.parametrize(
    "error",
    [
        modal.exception.DataLossError("failed to publish commit"),
        modal.exception.ServiceError("unavailable"),
        RuntimeError("Volume is busy"),
        OSError(5, "Input/output error"),
        TimeoutError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_commit_is_repeated(make: Callable[..., VolumeCommits], error: Exception) -> None:
    """A commit is repeated after any error, for all volumes that have failed and for no other."""
    volumes = FailingVolume(error, error, error), FailingVolume(), FailingVolume(error)

    assert make(*volumes).commit() is None
    assert [volume.commits for volume in volumes] == [1, 1, 1]


def test_reload_after_a_commit_may_fail(make: Callable[..., VolumeCommits]) -> None:
    """A commit has succeeded if only the reload after it failed, since a file was open: it is not repeated."""
    volume = FailingVolume(OPEN_FILES, modal.exception.DataLossError("would be a second commit"))

    assert make(volume).commit() is None
    assert len(volume.errors) == 1


def test_unsaved_files_are_listed(
    make: Callable[..., VolumeCommits], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit that fails until the end reports the files that changed since the last one, the largest first."""
    monkeypatch.setattr(volume_commits, "CLOCK_TOLERANCE", 0.0)
    volume = FailingVolume()
    commits = make(volume, run_folder=str(tmp_path / "v0" / "runs" / "r1"))
    (tmp_path / "v0" / "saved").write_text("saved")
    while file_time() <= (tmp_path / "v0" / "saved").stat().st_ctime:
        os.sched_yield()
    assert commits.commit() is None
    (tmp_path / "v0" / "sub").mkdir()
    (tmp_path / "v0" / "sub" / "small").write_text("12345")
    (tmp_path / "v0" / "large").write_bytes(bytes(2_000_000))
    (tmp_path / "v0" / "runs" / "r1").mkdir(parents=True)
    (tmp_path / "v0" / "runs" / "r1" / "output.log").write_text("x")
    (tmp_path / "old").write_text("moved here")
    os.utime(tmp_path / "old", (0, 0))
    (tmp_path / "old").rename(tmp_path / "v0" / "moved")
    volume.errors = EndlessErrors(modal.exception.DataLossError("failed to publish commit"))

    text = commits.commit()

    assert text is not None
    summary, *lines = text.splitlines()
    assert summary.startswith("the volume v0 could not be committed: failed to publish commit; ")
    assert summary.endswith("not saved since the last commit: 3 files, 2.0 MB")
    assert lines == [
        f"  {tmp_path}/v0/large (2.0 MB)",
        f"  {tmp_path}/v0/moved (10 bytes)",
        f"  {tmp_path}/v0/sub/small (5 bytes)",
        f"  and 1 file of the run's own folder {tmp_path}/v0/runs/r1",
    ]


def test_list_of_unsaved_files_is_limited(make: Callable[..., VolumeCommits], tmp_path: Path) -> None:
    """Of many unsaved files, the largest are listed. Names that are not UTF-8 are readable, and secrets are masked."""
    volume = FailingVolume()
    volume.errors = EndlessErrors(modal.exception.DataLossError("failed"))
    commits = make(volume, mask=lambda text: text.replace("secret", "***"))
    for number in range(500):
        (tmp_path / "v0" / f"file-{number}").touch()
    with open(os.fsencode(tmp_path) + b"/v0/secret-\xff", "w") as file:
        file.write("1")

    lines = (commits.commit() or "").splitlines()

    assert "501 files, 1 bytes" in lines[0]
    assert lines[1] == f"  {tmp_path}/v0/***-\\xff (1 bytes)"
    assert len(lines) == 2 + volume_commits.MAX_LISTED
    assert lines[-1] == "  and 491 more"


def test_search_for_unsaved_files_is_limited(
    make: Callable[..., VolumeCommits], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a volume has too many entries to look at, the list is incomplete, and this is reported."""
    monkeypatch.setattr(volume_commits, "MAX_ENTRIES", 5)
    volume = FailingVolume()
    volume.errors = EndlessErrors(modal.exception.DataLossError("failed"))
    commits = make(volume)
    for number in range(20):
        (tmp_path / "v0" / str(number)).touch()

    assert "not everything was searched" in (commits.commit() or "")


def test_mount_path_can_be_a_link(make: Callable[..., VolumeCommits], tmp_path: Path) -> None:
    """Files are found through the mount path, which is a link on Modal; links in the volume are not followed."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_text("x")
    (tmp_path / "real" / "loop").symlink_to("..")
    (tmp_path / "link").symlink_to("real")

    files, is_complete = volume_commits.find_changed_files(str(tmp_path / "link"), 0.0)

    assert sorted(file.path for file in files) == [f"{tmp_path}/link/file", f"{tmp_path}/link/loop"]
    assert is_complete


def test_commits_end_with_their_container(make: Callable[..., VolumeCommits], monkeypatch: pytest.MonkeyPatch) -> None:
    """If the platform is about to kill the container, failed commits are not repeated beyond that time."""
    monkeypatch.setattr(volume_commits, "COMMIT_TIMEOUT", 600.0)
    volume = FailingVolume()
    volume.errors = EndlessErrors(modal.exception.DataLossError("failed"))
    commits = make(volume)

    commits.expect_end(0.2)
    begin = time.monotonic()

    assert commits.commit() is not None
    assert time.monotonic() - begin < 5


def test_reload_is_repeated(make: Callable[..., VolumeCommits]) -> None:
    """The volumes are reloaded at the start also after errors; an error that remains names the volume."""
    make(FailingVolume(modal.exception.ServiceError("unavailable"))).reload()
    volume = FailingVolume()
    volume.errors = EndlessErrors(modal.exception.ServiceError("unavailable"))

    with pytest.raises(OSError, match="the volume v0 could not be reloaded: unavailable"):
        make(volume).reload()
