"""Tests of the commits after new checkpoints. The folders are real; commits are recorded."""

from __future__ import annotations

import queue
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skyrl_modal.container.checkpoint_watch import CheckpointWatch, FolderState, read_state
from tests.support.checkpoint_folders import POINTER, write_checkpoint, write_state

INTERVAL = 0.05


class Commits:
    """Commits that are recorded, with the state of the folder at that time; the first ones can fail."""

    def __init__(self, failures: int = 0) -> None:
        self._failures = failures
        self.states: queue.Queue[FolderState] = queue.Queue()

    def commit(self, folder: str) -> bool:
        """Record a commit. Return whether it succeeds."""
        self._failures -= 1
        self.states.put(read_state(folder))
        return self._failures < 0

    def wait(self) -> FolderState:
        """Wait for the next commit."""
        return self.states.get(timeout=20)


Watch = Callable[..., Commits]


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    """Return a function that starts to watch the test's folder."""
    watches = []

    def start(failures: int = 0) -> Commits:
        commits = Commits(failures)
        watches.append(CheckpointWatch([str(tmp_path)], commits.commit, INTERVAL))
        return commits

    yield start
    for each in watches:
        each.close()


def test_each_checkpoint_is_committed_once(watch: Watch, tmp_path: Path) -> None:
    """A commit follows each checkpoint, and none follows without a change."""
    write_checkpoint(tmp_path, 10)
    commits = watch()
    for step in (20, 30):
        write_checkpoint(tmp_path, step)
        state = commits.wait()
        while state.pointer is None or state.pointer[0] != str(step).encode():
            state = commits.wait()  # the folder was unchanged for an interval while it was written

    shutil.rmtree(tmp_path / "global_step_10")  # older ones may be removed at any time
    write_checkpoint(tmp_path, 40)
    state = commits.wait()
    while state.pointer is None or state.pointer[0] != b"40":
        state = commits.wait()
    assert commits.states.empty()


def test_shards_of_another_node_are_committed(watch: Watch, tmp_path: Path) -> None:
    """A node that does not see the pointer commits its own files when they do not change any more."""
    commits = watch()

    write_state(tmp_path / "global_step_10" / "policy" / "model_world_size_2_rank_1.pt")

    [(path, size, _)] = commits.wait().files
    assert path.endswith("global_step_10/policy/model_world_size_2_rank_1.pt")
    assert size > 0


def test_failed_commit_is_repeated(watch: Watch, tmp_path: Path) -> None:
    """A commit that failed is repeated until it succeeds."""
    commits = watch(failures=2)

    write_checkpoint(tmp_path, 10)

    states = [commits.wait() for _ in range(3)]
    assert states[-1].pointer is not None


def test_folder_that_does_not_exist_yet(watch: Watch, tmp_path: Path) -> None:
    """The folder need not exist when the command starts, and other files in it lead to no commit."""
    shutil.rmtree(tmp_path)
    commits = watch()
    tmp_path.mkdir()
    (tmp_path / "notes.txt").write_text("1")

    write_checkpoint(tmp_path, 10)

    assert commits.wait().files


def test_hostile_names_are_ignored(tmp_path: Path) -> None:
    """Names that are no steps, links and pointers that are no files are no error."""
    write_checkpoint(tmp_path, 10)
    (tmp_path / POINTER).unlink()
    (tmp_path / POINTER).symlink_to("/etc/hostname")
    for name in ("global_step_", "global_step_\u0663", "global_step_" + "9" * 100):
        (tmp_path / name).mkdir()
    (tmp_path / "global_step_10" / "loop").symlink_to("..")

    state = read_state(str(tmp_path))

    assert state.pointer is None
    assert any(path.endswith("/trainer_state.pt") for path, _, _ in state.files)
