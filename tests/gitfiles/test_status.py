"""The commit and the number of changed files, compared with ``git status``."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from skyrl_modal.checkout import Checkout, inspect_checkout
from skyrl_modal.gitfiles.git_command import GitCommandError
from skyrl_modal.gitfiles.status import WorktreeStatus, read_status
from tests.gitfiles.repositories import git
from tests.gitfiles.trees import commit, make


def count_changes(folder: Path) -> int:
    """Return the number of entries that ``git status`` lists, which does not refresh the index."""
    entries = iter(git("--no-optional-locks", "status", "--porcelain=v2", "-z", "--", ".", cwd=folder).split(b"\0"))
    count = 0
    for entry in entries:
        if entry.startswith(b"2 "):  # A renamed file: its old name follows as another record.
            next(entries)
        count += bool(entry)
    return count


def changed(folder: Path) -> int | None:
    """Return the number of changed files."""
    status = read_status(folder)
    assert status is not None
    return status.changed_files


@pytest.fixture
def committed(tree: Path) -> Path:
    """A repository with one commit."""
    git("add", ".gitignore", "docs", "pkg/__init__.py", cwd=tree)
    commit(tree)
    return tree


def test_each_kind_of_change_counts_once(committed: Path) -> None:
    """Modified, staged, deleted, renamed, untracked and retyped files count as in git status."""
    make(committed, {f"many/{number}.py": f"{number}\n" * 50 for number in range(8)})
    git("add", "many", cwd=committed)
    commit(committed)
    assert changed(committed) == count_changes(committed) == 0
    make(committed, {"many/0.py": "changed", "many/1.py": "staged", "new/a.py": "", "new/b.py": "", "single.py": ""})
    git("add", "many/1.py", cwd=committed)
    make(committed, {"many/1.py": "staged and changed"})
    (committed / "many" / "2.py").unlink()
    git("mv", "many/3.py", "many/renamed.py", cwd=committed)
    git("rm", "-q", "--cached", "many/4.py", cwd=committed)
    (committed / "many" / "5.py").unlink()
    (committed / "many" / "5.py").symlink_to("6.py")
    (committed / "many" / "7.py").chmod(0o755)
    os.utime(committed / "many" / "6.py")
    (committed / "empty").mkdir()
    assert changed(committed) == count_changes(committed) > 8


@pytest.mark.parametrize("case", range(12))
def test_random_changes(tmp_path: Path, no_settings: Path, case: int) -> None:
    """After random edits, additions, removals and renames the number is the one of git status."""
    draw = random.Random(case)
    root = tmp_path / "r"
    names = [f"{folder}{name}" for folder in ("", "a/", "a/b/", "c/") for name in ("x.py", "y.log", "z", "w w")]
    make(root, {name: f"{name}\n" * 30 for name in names if draw.random() < 0.7} | {".gitignore": "*.log\nc/z\n"})
    git("init", "-q", cwd=root)
    git("add", ".", cwd=root)
    commit(root)
    for _ in range(25):
        path = root / draw.choice(names)
        action = draw.randrange(6)
        if action == 0:
            make(root, {str(path.relative_to(root)): str(draw.random())})
        elif action == 1 and path.exists():
            path.unlink()
        elif action == 2 and path.exists():
            path.chmod(draw.choice([0o644, 0o755]))
        elif action == 3 and path.parent.exists():
            git("add", "--all", str(path.parent), cwd=root)
        elif action == 4 and path.exists():
            target = root / draw.choice(names)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
        elif action == 5 and path.exists():
            os.utime(path, (1, draw.randrange(1000)))
        assert changed(root) == count_changes(root)
        below = root / "a"
        if below.is_dir():
            assert changed(below) == count_changes(below)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("status.showUntrackedFiles", "no"),
        ("status.showUntrackedFiles", "all"),
        ("status.renames", "false"),
        ("diff.renames", "copies"),
        ("core.autocrlf", "true"),
        ("core.fileMode", "false"),
    ],
)
def test_settings_of_git_status_are_applied(committed: Path, key: str, value: str) -> None:
    """Settings of the user that change the output of git status change the number in the same way."""
    make(committed, {"new/a.py": "", "new/b.py": "", "pkg/long.py": "line\n" * 100})
    git("add", "pkg/long.py", cwd=committed)
    commit(committed)
    git("mv", "pkg/long.py", "pkg/longer.py", cwd=committed)
    (committed / "train.py").write_bytes(b"print(1)\r\n")
    (committed / "docs" / "lib" / "page.tsx").chmod(0o755)
    git("config", key, value, cwd=committed)
    assert changed(committed) == count_changes(committed)


@pytest.mark.parametrize("form", ["--split-index", "--index-version 4", "--untracked-cache"])
def test_uncommon_index_forms(committed: Path, form: str) -> None:
    """The number is the same for every form of the index."""
    make(committed, {"train.py": "changed", "new.py": ""})
    git("update-index", *form.split(), cwd=committed)
    assert changed(committed) == count_changes(committed)


def test_submodules(tmp_path: Path, committed: Path) -> None:
    """A submodule counts once if its commit or one of its files differs."""
    inner = make(tmp_path / "inner", {"a.py": ""})
    git("init", "-q", cwd=inner)
    git("add", ".", cwd=inner)
    commit(inner)
    git("-c", "protocol.file.allow=always", "submodule", "-q", "add", str(inner), "sub", cwd=committed)
    commit(committed)
    assert changed(committed) == count_changes(committed)
    before = count_changes(committed)
    make(committed, {"sub/a.py": "changed", "sub/new.py": ""})
    assert changed(committed) == count_changes(committed) == before + 1
    git("add", ".", cwd=committed / "sub")
    commit(committed / "sub")
    assert changed(committed) == count_changes(committed) == before + 1


def test_linked_worktree(tmp_path: Path, committed: Path) -> None:
    """A linked worktree has its own commit and changes."""
    git("worktree", "add", "-q", str(tmp_path / "linked"), cwd=committed)
    make(tmp_path / "linked", {"train.py": "changed"})
    status = read_status(tmp_path / "linked")
    assert status == WorktreeStatus(git("rev-parse", "HEAD", cwd=committed).decode().strip(), 1)


@pytest.mark.parametrize("form", ["branch", "packed", "detached", "link", "nested"])
def test_forms_of_head(committed: Path, form: str) -> None:
    """The commit is the one of `git rev-parse HEAD`, however HEAD and its branch are stored."""
    head = committed / ".git" / "HEAD"
    if form == "packed":
        git("branch", "another", cwd=committed)
        git("pack-refs", "--all", cwd=committed)
    elif form == "detached":
        git("checkout", "-q", "--detach", cwd=committed)
    elif form == "link":
        target = head.read_text().removeprefix("ref: ").strip()
        head.unlink()
        head.symlink_to(target)
    elif form == "nested":
        branch = git("symbolic-ref", "HEAD", cwd=committed).decode().strip()
        git("symbolic-ref", "refs/heads/alias", branch, cwd=committed)
        git("symbolic-ref", "HEAD", "refs/heads/alias", cwd=committed)
    status = read_status(committed)
    assert status is not None
    assert status.commit == git("rev-parse", "HEAD", cwd=committed).decode().strip()


def test_reading_writes_nothing(committed: Path) -> None:
    """The index is not refreshed, even if the times of files have changed."""
    os.utime(committed / "train.py", (1, 1))
    before = (committed / ".git" / "index").read_bytes()
    read_status(committed)
    assert (committed / ".git" / "index").read_bytes() == before


def test_folder_outside_of_a_repository(tmp_path: Path, no_settings: Path) -> None:
    """A folder in no repository has no state, and the checkout has no warning."""
    assert read_status(tmp_path) is None
    assert inspect_checkout(tmp_path) == Checkout(tmp_path)
    assert inspect_checkout(tmp_path).description == "not a git checkout"


def test_repository_without_a_commit(tree: Path) -> None:
    """Before the first commit there is neither a commit nor a number."""
    assert read_status(tree) == WorktreeStatus(None, None)


def test_checkout_has_commit_and_changes(committed: Path) -> None:
    """A checkout has the full commit id and describes its state in one line."""
    make(committed, {"train.py": "changed", "pyproject.toml": '[project]\ndependencies = ["ray[default]==2.51.1"]\n'})
    checkout = inspect_checkout(committed)
    assert checkout.commit == git("rev-parse", "HEAD", cwd=committed).decode().strip()
    assert (checkout.ray_version, checkout.warning) == ("2.51.1", "")
    assert checkout.description == f"commit {checkout.commit[:9]}, {checkout.changed_files} files changed"


def test_checkout_without_git(committed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without git the checkout has no commit, and a warning states why."""
    monkeypatch.setenv("PATH", "")
    checkout = inspect_checkout(committed)
    assert (checkout.commit, checkout.changed_files) == (None, None)
    assert checkout.description == "commit unknown"
    assert "git is not installed" in checkout.warning


def test_damaged_repository(committed: Path) -> None:
    """An error of git is reported with the first line of its message."""
    shutil.rmtree(committed / ".git" / "objects")
    (committed / ".git" / "objects").mkdir()
    with pytest.raises(GitCommandError, match=r"failed \("):
        read_status(committed)
