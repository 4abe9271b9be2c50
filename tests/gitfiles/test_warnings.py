"""Warnings about a selection."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from skyrl_modal.mount import select
from tests.gitfiles.repositories import Templates, git, listed_by_git
from tests.gitfiles.trees import has_warning, make

# The package, and what it imports when it needs it, are imported before the user changes: another user may not be
# allowed to read this Python's files.
UNPRIVILEGED = """
import os, shutil, sys, tempfile
from skyrl_modal.mount import SnapshotStore, select
os.setuid(65534)
selection = select(sys.argv[1])
print(ascii((selection.files, selection.warnings)))
print(ascii(SnapshotStore(sys.argv[2]).take(selection).warnings))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become a user who does not own the files")
def test_unreadable_files(no_settings: Path) -> None:
    """An unreadable file, folder or ignore file causes a warning with its name and a remedy."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        root = make(Path(name, "r"), {"a.py": "", "key": "", "shut/b.py": "", "sub/.gitignore": "x", "sub/x": ""})
        for closed in ("key", "sub/.gitignore", "shut"):
            (root / closed).chmod(0)
        command = [sys.executable, "-c", UNPRIVILEGED, str(root), str(Path(name, "store"))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.stderr
    selected, copied = done.stdout.splitlines()
    for part in ("key cannot be read", "shut/ cannot be read", "sub/.gitignore cannot be read", "chmod"):
        assert part in selected
    assert "key cannot be read" in copied


def test_removed_files(tmp_path: Path, no_settings: Path) -> None:
    """A file that is removed after the selection causes a warning and has the size 0."""
    root = make(tmp_path / "r", {"a.py": "", "b.py": ""})
    selection = select(root)
    (root / "b.py").unlink()
    assert has_warning(selection, "b.py was removed")
    assert selection.bytes == 0


def test_ignored_env_files(tree: Path) -> None:
    """A .env that an ignore file excludes is listed with the reason; one that the caller excludes is not."""
    assert select(tree).ignored_env_files() == ((".env", ".gitignore:6: .env"),)
    assert not has_warning(select(tree), ".env")
    assert select(tree, include=["/.env"]).ignored_env_files() == ()
    assert select(tree, exclude=["/.env"]).ignored_env_files() == ()


def test_ignored_python_modules(tree: Path) -> None:
    """An excluded folder with Python modules causes a warning, but not an environment or a cache."""
    selection = select(tree)
    assert has_warning(selection, "pkg/lib/", "Python modules", 'include=["/pkg/lib/"]')
    assert not has_warning(selection, ".venv")
    assert not has_warning(selection, "__pycache__")
    assert not has_warning(select(tree, exclude=["/pkg/lib/"]), "Python modules")


def test_names_of_private_keys(tmp_path: Path, no_settings: Path) -> None:
    """A file with the name of a private key or of a login causes a warning, whatever it contains."""
    selection = select(make(tmp_path / "r", {"id_ed25519": "", "home/.netrc": "", "tokenizer.py": "tokens = 1"}))
    assert has_warning(selection, "id_ed25519", 'exclude=["/id_ed25519"]')
    assert has_warning(selection, "home/.netrc")
    assert not has_warning(selection, "tokenizer")


def sparse_file(path: Path, megabytes: int) -> None:
    """Create a file that has a size and needs no space."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(megabytes * 1_000_000)


def test_large_selections(tree: Path) -> None:
    """A large selection causes a warning with the ten largest files, and so does each large untracked folder."""
    sparse_file(tree / "data" / "raw" / "a.parquet", 300)
    sparse_file(tree / "data" / "b.parquet", 250)
    sparse_file(tree / "pkg" / "weights" / "w.bin", 60)
    for number in range(10):
        sparse_file(tree / f"n{number}", 1)
    selection = select(tree)
    assert selection.bytes > 610_000_000
    assert has_warning(selection, "are selected. Largest: data/raw/a.parquet (300.0 MB), data/b.parquet (250.0 MB)")
    assert has_warning(selection, "n6 (1.0 MB)")
    assert not has_warning(selection, "n7 (1.0 MB)")
    assert has_warning(selection, "data/ is included (550.0 MB)", 'exclude=["/data/"]')
    assert has_warning(selection, "pkg/weights/ is included (60.0 MB)")
    assert not has_warning(selection, "pkg/ is included")


@pytest.mark.parametrize("seed", range(12))
def test_large_untracked_folders(tmp_path: Path, no_settings: Path, seed: int) -> None:
    """Each large folder without tracked files causes a warning with its size, but folders in it and clones do not."""
    draw = random.Random(seed)
    root = tmp_path / "root"
    root.mkdir()
    git("init", "-q", cwd=root)
    sizes: dict[str, int] = {}
    for number in range(25):
        parts = [draw.choice(["a", "a-b", "a.b", "ab", "b"]) for _ in range(draw.randrange(4))]
        name = "/".join([*parts, f"{draw.choice('fz')}{number}"])
        sizes[name] = draw.choice([1, 20, 40])
        sparse_file(root / name, sizes[name])
    folders = {"/".join(name.split("/")[:depth]) for name in sizes for depth in range(1, name.count("/") + 1)}
    clones = {folder for folder in sorted(folders) if draw.random() < 0.1}
    in_clones = tuple(f"{clone}/" for clone in clones)
    tracked = {name for name in sizes if draw.random() < 0.2 and not name.startswith(in_clones)}
    for name in tracked:
        make(root, {f"{name}.tracked": ""})
        git("add", f"{name}.tracked", cwd=root)
    for clone in clones:
        git("init", "-q", cwd=root / clone)

    def is_reported(folder: str) -> bool:
        return folder not in clones and not any(name.startswith(f"{folder}/") for name in tracked)

    expected = set()
    for folder in folders:
        above = ["/".join(folder.split("/")[:depth]) for depth in range(1, folder.count("/") + 1)]
        size = sum(size for name, size in sizes.items() if name.startswith(f"{folder}/"))
        if size >= 50 and is_reported(folder) and not any(is_reported(one) or one in clones for one in above):
            expected.add(f"{folder}/ is included ({size}.0 MB)")
    found = {text.partition(", and git tracks")[0] for text in select(root).warnings if ", and git tracks" in text}
    assert found == expected


@pytest.mark.slow
def test_many_files(templates: Templates, no_settings: Path) -> None:
    """A selection of more than 50,000 files causes a warning."""
    with tempfile.TemporaryDirectory(dir=templates.sha1.parent.parent) as root:
        for number in range(50_001):
            os.close(os.open(f"{root}/{number}", os.O_CREAT))
        assert has_warning(select(root), "50,001 files")


def test_patterns_that_match_nothing(tree: Path) -> None:
    """A pattern of an ignore file that matches nothing causes a warning with file and line; git is silent about it."""
    make(tree, {"pkg/.gitignore": "ok\n\n[a-\n"})
    assert has_warning(select(tree), "pkg/.gitignore:3: '[a-'", "matches nothing")


def test_includes_that_match_nothing(tree: Path) -> None:
    """An include that matches no file causes a warning."""
    assert has_warning(select(tree, include=["/tarin.py"]), "'/tarin.py' matches nothing")
    assert not has_warning(select(tree, include=["/train.py", "docs/"]), "matches nothing")


def test_root_in_an_ignored_folder(tmp_path: Path, no_settings: Path) -> None:
    """git lists nothing in an ignored folder, so a root there causes a warning with two remedies."""
    outer = make(tmp_path / "outer", {".gitignore": "vendored/\n", "vendored/SkyRL/a.py": ""})
    git("init", "-q", cwd=outer)
    root = outer / "vendored" / "SkyRL"
    assert list(select(root).files) == listed_by_git(root) == []
    assert has_warning(select(root), "git ignores the folder vendored/", "git init")
    assert select(root, include=["/**"]).files == ("a.py",)


def test_broken_configuration(tree: Path) -> None:
    """A configuration file with an error causes a warning with file and line."""
    (tree / ".git" / "config").write_text("[core]\n\tbare = false\n[oops\n")
    assert has_warning(select(tree), ".git/config", "line 3")
