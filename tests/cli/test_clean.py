"""``skyrl-modal clean``: what is removed, what is kept, and that active processes are not affected."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_modal import Launcher, Run, VolumeSpec
from skyrl_modal.backends.local.descriptors import DescriptorSet
from skyrl_modal.backends.local.run_lock import state_folder
from skyrl_modal.backends.local.sandbox import Sandbox
from skyrl_modal.backends.local.scratch import create_scratch_folder, scratch_root
from skyrl_modal.backends.local.volume_folder import volume_folder
from skyrl_modal.backends.staging import STAGING_PREFIX
from skyrl_modal.mount import SnapshotStore, select
from skyrl_modal.protocol.state import RunState
from skyrl_modal.run.cleanup import CleanUpReport, clean_up
from skyrl_modal.run.half_written import remove_half_written
from skyrl_modal.run.index import RunIndex
from skyrl_modal.user_folders import cache_folder
from skyrl_modal.user_folders import state_folder as user_state_folder

LONG_AGO = 1_000_000_000.0


@pytest.fixture
def backend() -> str:
    """Return the name of the backend for the fixture ``launcher``."""
    return "local"


@pytest.fixture(autouse=True)
def user_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use empty folders of the user in each test, also for temporary files."""
    for name in ("XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "TMPDIR"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr("tempfile.tempdir", None)


@pytest.fixture
def store() -> SnapshotStore:
    """Return the store that runs use."""
    return SnapshotStore(cache_folder() / "snapshots")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a folder with two files."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "same").write_bytes(b"s" * 1000)
    (folder / "changed").write_bytes(b"1" * 100)
    return folder


def counts(report: CleanUpReport) -> dict[str, tuple[int, int]]:
    """Return number and size of what was removed, by kind."""
    return {entry.kind: (entry.number, entry.bytes) for entry in report.removed}


def all_paths(folder: Path) -> list[str]:
    """Return all paths below a folder."""
    return sorted(str(path) for path in folder.rglob("*"))


def make_old(*paths: Path) -> None:
    """Set the time of the last change to long ago."""
    for path in paths:
        os.utime(path, (LONG_AGO, LONG_AGO))


def test_nothing_to_clean() -> None:
    """Without any files everything is counted as 0, and no folder is created."""
    report = clean_up(older_than="30d")

    assert set(counts(report).values()) == {(0, 0)}
    assert not cache_folder().exists()
    assert not user_state_folder().exists()


# -- snapshots ---------------------------------------------------------------------------------------------------------


def test_unused_snapshots_are_removed(store: SnapshotStore, source: Path) -> None:
    """Snapshots that no process uses are removed, with the contents that no other snapshot has."""
    first = store.take(select(source))
    (source / "changed").write_bytes(b"2" * 200)
    with store.take(select(source)) as used:
        assert counts(clean_up())["snapshots"] == (0, 0)
        first.release()
        assert counts(clean_up(dry_run=True))["snapshots"] == (1, 100)
        assert counts(clean_up())["snapshots"] == (1, 100)
        assert (used.path / "changed").read_bytes() == b"2" * 200

    assert counts(clean_up())["snapshots"] == (1, 1200)

    assert list((store.folder / "trees").iterdir()) == []
    with store.take(select(source)) as snapshot:
        assert (snapshot.path / "same").read_bytes() == b"s" * 1000


def test_recently_used_snapshots_are_kept(store: SnapshotStore, source: Path) -> None:
    """With an age, only snapshots are removed that were not used since."""
    with store.take(select(source)) as old:
        (source / "changed").write_bytes(b"2" * 200)
        store.take(select(source)).release()
    make_old(old.path)

    assert counts(clean_up(older_than="30d"))["snapshots"] == (1, 100)
    assert counts(clean_up(older_than="30d"))["snapshots"] == (0, 0)


def test_unfinished_snapshot_is_removed(store: SnapshotStore, source: Path) -> None:
    """What a process left that was killed while it took a snapshot is removed."""
    store.take(select(source)).release()
    (store.folder / "blobs" / "tmp123").write_bytes(b"half")
    (store.folder / "trees" / ".new-1").mkdir()

    clean_up(older_than="30d")

    assert not (store.folder / "blobs" / "tmp123").exists()
    assert not (store.folder / "trees" / ".new-1").exists()
    assert len(list((store.folder / "trees").iterdir())) == 1


def test_store_in_use_is_not_cleaned(store: SnapshotStore, source: Path) -> None:
    """While another process takes a snapshot, the store is left as it is, and this is reported."""
    store.take(select(source)).release()
    with store._locked(1):  # fcntl.LOCK_SH
        report = clean_up()

    assert "snapshots" not in counts(report)
    assert len(report.kept) == 1
    assert len(list((store.folder / "trees").iterdir())) == 1


# -- scratch folders ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_sandbox", [False, True])
@pytest.mark.parametrize("other_state_folder", [False, True])
def test_scratch_of_active_runs_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_sandbox: bool, other_state_folder: bool
) -> None:
    """A scratch folder is removed after its run has ended. The state folder of the caller does not matter."""
    with DescriptorSet() as fds:
        sandbox = Sandbox("bwrap") if has_sandbox else None
        kept = create_scratch_folder("20260101-000000-aaaaaa", 0, sandbox, fds).path
        with DescriptorSet() as lock_of_the_dead:
            dead = create_scratch_folder("20260101-000000-bbbbbb", 0, None, lock_of_the_dead).path
        (dead / "file").write_bytes(b"x" * 10)
        left = scratch_root() / "20260101-000000-cccccc"
        (left / "mount-0" / "unreadable").mkdir(parents=True)
        (left / "mount-0" / "file").write_bytes(b"x" * 5)
        (left / "mount-0" / "unreadable").chmod(0)
        if other_state_folder:
            monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))

        # Killed processes of other tests can have left more folders in /tmp.
        number, size = counts(clean_up(dry_run=True))["scratch folders"]
        assert number >= 2
        assert size >= 15
        assert dead.exists()
        assert left.exists()
        assert counts(clean_up())["scratch folders"] >= (2, 15)

        assert not dead.exists()
        assert not left.exists()
        assert kept.exists()


def test_other_temporary_folders_are_kept(tmp_path: Path) -> None:
    """Folders of other programs whose names begin in the same way are kept, and so is what a link leads to."""
    temporary = tmp_path / "TMPDIR"
    (temporary / "skyrl-other").mkdir()
    (temporary / "skyrl-file").write_text("x")
    (tmp_path / "victim").mkdir()
    (temporary / "skyrl-link").symlink_to(tmp_path / "victim")
    (tmp_path / "victim" / "skyrl-modal-run").symlink_to("machine:run")
    (temporary / "skyrl-other-link").mkdir()
    (temporary / "skyrl-other-link" / "skyrl-modal-run").symlink_to("nowhere")
    (temporary / "skyrl-dead").mkdir()
    (temporary / "skyrl-dead" / "skyrl-modal-run").symlink_to("machine:run")
    (temporary / "skyrl-dead" / "link").symlink_to(tmp_path / "victim")

    clean_up()

    names = ["skyrl-file", "skyrl-link", "skyrl-other", "skyrl-other-link"]
    assert sorted(path.name for path in temporary.iterdir()) == names
    assert (tmp_path / "victim" / "skyrl-modal-run").is_symlink()


# -- half-written files ------------------------------------------------------------------------------------------------


def leave_transfer(folder: Path) -> Path:
    """Leave a staging folder as a transfer does that was killed long ago."""
    staging = folder / f"{STAGING_PREFIX}left"
    staging.mkdir(parents=True)
    (staging / "item").write_bytes(b"x" * 10)
    links = user_state_folder() / "transfers"
    links.mkdir(parents=True, exist_ok=True)
    (links / "1-left").symlink_to(staging)
    os.utime(links / "1-left", (LONG_AGO, LONG_AGO), follow_symlinks=False)
    return staging


@pytest.mark.parametrize("automatically", [False, True])
def test_half_written_files_are_removed(tmp_path: Path, automatically: bool) -> None:
    """Incomplete copies of killed transfers, and incomplete records, are removed by clean and by the next start."""
    staging = leave_transfer(tmp_path / "place")
    index = user_state_folder() / "index"
    index.mkdir(parents=True)
    (index / ".run.json.123").write_bytes(b"{")
    (index / ".new.json.124").write_bytes(b"{")
    make_old(index / ".run.json.123")

    if automatically:
        remove_half_written()
    else:
        assert counts(clean_up(dry_run=True))["half-written files"] == (2, 11)
        assert counts(clean_up())["half-written files"] == (2, 11)

    assert not staging.exists()
    assert all_paths(index) == [str(index / ".new.json.124")]
    assert counts(clean_up())["half-written files"] == (0, 0)


@pytest.mark.parametrize("target", ["relative", "/", "victim", "link"])
def test_links_to_other_folders_are_not_followed(tmp_path: Path, target: str) -> None:
    """Only a folder with the name of an incomplete copy is removed, and not one that a link of this name leads to."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("kept")
    named_link = tmp_path / f"{STAGING_PREFIX}link"
    named_link.symlink_to(victim)
    links = user_state_folder() / "transfers"
    links.mkdir(parents=True)
    places = {"victim": victim, "link": named_link}
    (links / "1-x").symlink_to(places.get(target, target))

    assert counts(clean_up())["half-written files"] == (0, 0)

    assert (victim / "file").exists()


def test_active_transfer_is_kept(tmp_path: Path) -> None:
    """The staging folder of a transfer that another process executes is not removed."""
    script = """
import sys
from pathlib import Path
from skyrl_modal.backends.transfer import staged_transfer
with staged_transfer(Path(sys.argv[1]), "test") as staged:
    print("staged", flush=True)
    sys.stdin.readline()
    staged.item.write_text("complete")
"""
    command = [sys.executable, "-c", script, str(tmp_path / "file")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "staged\n"
        assert counts(clean_up())["half-written files"] == (0, 0)
        process.communicate("\n", timeout=60)

    assert (tmp_path / "file").read_text() == "complete"


# -- records of runs ---------------------------------------------------------------------------------------------------


def test_old_records_are_removed(launcher: Callable[..., Launcher], volume: VolumeSpec) -> None:
    """Records of old runs are removed if asked for. The output and the result on the volume are kept."""
    old = launcher().run("echo kept", output=lambda data: None, quiet=True)
    new = launcher().run("true", quiet=True)
    record = user_state_folder() / "index" / f"{old.run_id}.json"
    make_old(record)
    files = all_paths(volume_folder(volume.name))

    assert counts(clean_up())["records of runs"] == (0, 0)
    assert counts(clean_up(older_than="30d", dry_run=True))["records of runs"] == (1, record.stat().st_size)
    assert record.exists()
    clean_up(older_than="30d")

    assert [one.job.run_id for one in RunIndex().newest_first()] == [new.run_id]
    assert not state_folder(old.run_id).exists()
    assert all_paths(volume_folder(volume.name)) == files
    assert (volume_folder(volume.name) / ".skyrl_modal" / "runs" / old.run_id / "output.log").read_text() == "kept\n"


def test_log_without_a_volume_is_kept(launcher: Callable[..., Launcher]) -> None:
    """The output of a run without a volume is in the state folder, and is kept."""
    result = launcher(volumes=[]).run("echo kept", output=lambda data: None, quiet=True)
    make_old(user_state_folder() / "index" / f"{result.run_id}.json")

    clean_up(older_than="30d")

    assert Path(result.log_path).read_text() == "kept\n"


def test_active_run_is_not_affected(launcher: Callable[..., Launcher], volume: VolumeSpec) -> None:
    """A run that is active keeps its files, its record and its locks, however old its record is."""
    run = launcher().submit("while [ ! -e $SKYRL_DATA/go ]; do sleep 0.05; done; cat train.py; touch $TMPDIR/x")
    try:
        make_old(user_state_folder() / "index" / f"{run.id}.json")
        report = clean_up(older_than="1s")
        assert counts(report) == {
            "snapshots": (0, 0),
            "scratch folders": (0, 0),
            "half-written files": (0, 0),
            "records of runs": (0, 0),
        }
        assert len(report.kept) == 1
        assert Run.attach(run.id).state in (RunState.PENDING, RunState.PREPARING, RunState.RUNNING)
    finally:
        (volume_folder(volume.name) / "go").touch()

    assert run.wait(60).returncode == 0
    assert list(run.logs()) == ["print('training')"]


@pytest.mark.parametrize("content", ["", "[]", '{"job": 1}', "\0" * 100])
def test_damaged_records_are_kept_and_reported(content: str) -> None:
    """A record that cannot be read is kept: a newer version may have written it. The others are removed."""
    index = user_state_folder() / "index"
    index.mkdir(parents=True)
    (index / "damaged.json").write_text(content)
    make_old(index / "damaged.json")

    report = clean_up(older_than="30d")

    assert (index / "damaged.json").exists()
    assert len(report.kept) == 1


# -- the command -------------------------------------------------------------------------------------------------------


def skyrl(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Call the command line."""
    command = [sys.executable, "-m", "skyrl_modal", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


def test_command_prints_what_is_removed(tmp_path: Path, store: SnapshotStore, source: Path) -> None:
    """The command prints number and size for each kind, also with ``--dry-run``, which removes nothing."""
    leave_transfer(tmp_path / "place")
    store.take(select(source)).release()

    planned = skyrl("clean", "--dry-run")
    done = skyrl("clean")

    expected = [["snapshots", "1", "1,100"], ["scratch", "folders", "0", "0"], ["half-written", "files", "1", "10"]]
    assert (planned.returncode, done.returncode) == (0, 0)
    for output in (planned.stdout, done.stdout):
        assert [line.split() for line in output.splitlines()] == [*expected, ["records", "of", "runs", "0", "0"]]
    assert skyrl("clean", "--older-than", "soon").returncode == 125


def test_what_cannot_be_removed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error about one entry does not prevent the removal of others, and the exit code is 125."""
    leave_transfer(tmp_path / "place")
    (scratch_root() / "20260101-000000-cccccc").mkdir(parents=True)
    monkeypatch.setattr("skyrl_modal.run.cleanup.remove_tree", lambda folder: False)

    report = clean_up()

    assert len(report.failures) == 2


def test_start_removes_what_killed_processes_left(launcher: Callable[..., Launcher], tmp_path: Path) -> None:
    """The start of a run removes half-written files and scratch folders within a time limit, and nothing else."""
    staging = leave_transfer(tmp_path / "place")
    left = scratch_root() / "20260101-000000-cccccc"
    (left / "mount-0").mkdir(parents=True)

    began = time.monotonic()
    assert launcher().run("true", quiet=True).returncode == 0

    assert time.monotonic() - began < 60
    assert not staging.exists()
    if not list(tmp_path.glob("TMPDIR/skyrl-*")):  # without namespaces, there is no scratch folder in the cache
        assert not left.exists()
