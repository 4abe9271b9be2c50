"""Repositories in uncommon forms, and repositories without git."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from skyrl_modal.mount import select
from tests.gitfiles.repositories import git, listed_by_git
from tests.gitfiles.trees import commit, has_warning, make


def test_plain_folder_is_treated_as_after_git_init(tmp_path: Path, no_settings: Path) -> None:
    """Ignore files apply without a repository, the user's own as well."""
    root = make(tmp_path / "plain", {".gitignore": "*.o\n", "a.o": "", "a.tmp": "", "a.c": "", "sub/.gitignore": "b\n"})
    make(no_settings, {"xdg/git/ignore": "*.tmp\n"})
    os.environ["XDG_CONFIG_HOME"] = str(no_settings / "xdg")
    assert select(root).files == (".gitignore", "a.c", "sub/.gitignore")


@pytest.fixture
def including(tmp_path: Path, no_settings: Path) -> Path:
    """A repository for which core.excludesFile is set in an included file, under a condition."""
    root = make(tmp_path / "work" / "r", {"a.x": "", "a.y": "", "a.z": "", "b": ""})
    git("init", "-q", cwd=root)
    make(no_settings, {"my ignored": "*.x\n", "other": "*.y\n"})
    (no_settings / ".gitconfig").write_text(
        f'[includeIf "gitdir:{tmp_path}/work/"]\n\tpath = inc # here\n[includeIf "gitdir:/nowhere/"]\n\tpath = inc2\n'
    )
    (no_settings / "inc").write_text('[Core]\n\tExcludesFile = "~/my \\\nignored"\n')
    (no_settings / "inc2").write_text("[core]\n\texcludesFile = ~/other\n")
    return root


def test_included_configuration_is_applied(including: Path) -> None:
    """core.excludesFile is found in an included file, as git finds it."""
    assert list(select(including).files) == listed_by_git(including) == ["a.y", "a.z", "b"]
    assert select(including).warnings == ()


def test_conditions_on_remotes_are_applied(including: Path, no_settings: Path) -> None:
    """Conditions of newer versions of git are applied as well, because git evaluates them."""
    (no_settings / ".gitconfig").write_text('[includeIf "hasconfig:remote.*.url:https://x/**"]\n\tpath = inc\n')
    assert list(select(including).files) == listed_by_git(including) == ["a.x", "a.y", "a.z", "b"]
    git("config", "remote.origin.url", "https://x/y", cwd=including)
    assert list(select(including).files) == listed_by_git(including) == ["a.y", "a.z", "b"]


def test_included_configuration_outside_of_a_repository(including: Path, no_settings: Path) -> None:
    """The user's configuration also applies to a folder without a repository."""
    (no_settings / ".gitconfig").write_text("[include]\n\tpath = inc\n")
    (including / ".git" / "HEAD").unlink()
    assert "a.x" not in select(including).files
    assert "a.y" in select(including).files


def test_included_configuration_without_git(including: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without git the included file is not read, and a warning reports it."""
    monkeypatch.setenv("PATH", "")
    selection = select(including)
    assert "a.x" in selection.files
    assert has_warning(selection, "includes other files", "git is not installed")


def test_settings_in_the_environment(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's GIT_CONFIG_COUNT is applied, with and without an include."""
    make(tree, {"excludes": "*.tsx\n", "inc": f"[core]\n\texcludesFile = {tree}/excludes\n"})
    for key, value in (("core.excludesFile", tree / "excludes"), ("include.path", tree / "inc")):
        monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
        monkeypatch.setenv("GIT_CONFIG_KEY_0", key)
        monkeypatch.setenv("GIT_CONFIG_VALUE_0", str(value))
        assert "docs/lib/page.tsx" not in select(tree).files
        assert list(select(tree).files) == listed_by_git(tree)


def test_dubious_ownership(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository that belongs to another user is read, in a plain and in an uncommon form."""
    before = select(tree).files
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    refused = subprocess.run(["git", "ls-files"], cwd=tree, capture_output=True, check=False)
    assert b"dubious ownership" in refused.stderr
    assert select(tree).files == before
    monkeypatch.delenv("GIT_TEST_ASSUME_DIFFERENT_OWNER")
    git("update-index", "--split-index", cwd=tree)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert select(tree).files == before


def test_plain_repository_without_git(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The selection of a plain repository needs no git."""
    before = select(tree).files
    monkeypatch.setenv("PATH", "")
    assert select(tree).files == before
    assert not has_warning(select(tree), "git is not installed")


@pytest.mark.parametrize("option", ["--split-index", "--index-version=4"])
def test_uncommon_index_without_git(tree: Path, monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    """Without git an index of an uncommon form is not read, and a warning reports it."""
    git("update-index", *option.split("="), cwd=tree)
    assert list(select(tree).files) == listed_by_git(tree)
    monkeypatch.setenv("PATH", "")
    selection = select(tree)
    assert "pkg/kept.log" not in selection.files
    assert has_warning(selection, "index", "only git can read its format", "git is not installed")


def test_sha256_repository(tmp_path: Path, no_settings: Path) -> None:
    """A repository with SHA-256 is selected as git lists it."""
    root = make(tmp_path / "r", {".gitignore": "*.log\n", "a.log": "", "b.log": ""})
    git("init", "-q", "--object-format=sha256", cwd=root)
    git("add", "-f", "a.log", cwd=root)
    assert list(select(root).files) == listed_by_git(root) == [".gitignore", "a.log"]


def sparse(root: Path) -> None:
    """Create a repository with packed objects, some of them as deltas, and ignore files in three folders."""
    long = "".join(f"{number}\n" for number in range(2000))
    make(root, {f"{name}/.gitignore": f"{long}*.tmp\n!{name}.tmp\n" for name in ("in", "out", "out/deep")})
    make(root, {f"{name}/a.py": "" for name in ("in", "out", "out/deep")} | {"out/kept.tmp": "tracked", "a.py": ""})
    git("init", "-q", cwd=root)
    git("add", "-f", ".", cwd=root)
    commit(root)
    git("gc", "-q", cwd=root)


@pytest.mark.parametrize("mode", ["--cone", "--no-cone", "--sparse-index"])
def test_sparse_checkouts(tmp_path: Path, no_settings: Path, mode: str) -> None:
    """Ignore files that are not checked out are read from git's objects, also with a sparse index."""
    root = tmp_path / "r"
    sparse(root)
    git("sparse-checkout", "set", *(["--cone", mode] if mode == "--sparse-index" else [mode]), "in", cwd=root)
    assert not (root / "out").exists()
    assert list(select(root).files) == listed_by_git(root)
    make(root, {"in/x.tmp": "", "in/in.tmp": "", "out/x.tmp": "", "out/out.tmp": "", "out/kept.tmp": "", "out/new": ""})
    make(root, {"out/deep/deep.tmp": "", "out/deep/no.tmp": ""})
    assert list(select(root).files) == listed_by_git(root)


def test_skipped_ignore_file_is_read_from_the_index(tmp_path: Path, no_settings: Path) -> None:
    """An ignore file with the skip-worktree flag is read from its loose object, or reported if git is missing."""
    root = make(tmp_path / "r", {".gitignore": "*.o\n", "a.o": "", "a.c": ""})
    git("init", "-q", cwd=root)
    git("add", ".gitignore", cwd=root)
    git("update-index", "--skip-worktree", ".gitignore", cwd=root)
    (root / ".gitignore").unlink()
    assert list(select(root).files) == listed_by_git(root) == ["a.c"]


def test_missing_object_of_an_ignore_file(tmp_path: Path, no_settings: Path) -> None:
    """An ignore file whose object is missing causes a warning and does not end the selection."""
    root = make(tmp_path / "r", {".gitignore": "*.o\n", "a.o": ""})
    git("init", "-q", cwd=root)
    git("add", ".gitignore", cwd=root)
    git("update-index", "--skip-worktree", ".gitignore", cwd=root)
    (root / ".gitignore").unlink()
    object_id = git("ls-files", "-s", cwd=root).split()[1].decode()
    (root / ".git" / "objects" / object_id[:2] / object_id[2:]).unlink()
    selection = select(root)
    assert selection.files == ("a.o",)
    assert has_warning(selection, object_id, "not in the repository")


def test_submodule_is_selected_by_its_own_repository(tmp_path: Path, no_settings: Path) -> None:
    """The rules of the outer repository do not apply in a submodule; one that is not checked out is reported."""
    inner = make(tmp_path / "inner", {"a.log": "", "b.o": "", ".gitignore": "*.o\n"})
    git("init", "-q", cwd=inner)
    git("add", ".", cwd=inner)
    commit(inner)
    root = make(tmp_path / "outer", {".gitignore": "*.log\nsub/\n", "x.log": ""})
    git("init", "-q", cwd=root)
    git("-c", "protocol.file.allow=always", "submodule", "-q", "add", "-f", str(inner), "sub", cwd=root)
    make(root, {"sub/new.log": "", "sub/new.o": ""})
    assert list(select(root).files) == listed_by_git(root)
    assert "sub/new.log" in select(root).files
    git("submodule", "-q", "deinit", "-f", "sub", cwd=root)
    assert has_warning(select(root), "submodule sub", "git submodule update --init")


def test_damaged_index(tree: Path) -> None:
    """With a damaged index, ignored tracked files are excluded, and a warning reports it."""
    (tree / ".git" / "index").write_bytes(b"no index")
    selection = select(tree)
    assert "train.py" in selection.files
    assert has_warning(selection, "index", "cannot be read")


def test_truncated_index(tree: Path) -> None:
    """Damage that shows only when the entries are parsed causes the same warning."""
    index = tree / ".git" / "index"
    index.write_bytes(index.read_bytes()[:110])
    selection = select(tree, exclude=["nothing"])
    assert "train.py" in selection.files
    assert "pkg/kept.log" not in selection.files
    assert has_warning(selection, "index", "damaged")
