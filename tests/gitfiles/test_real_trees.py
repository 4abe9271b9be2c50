"""Selections in trees of real projects: SkyRL's own packages, with the files of a working checkout.

The source distributions come from the package index by pip, or from the folder ``SKYRL_MODAL_SDISTS``.
"""

# ruff: noqa: E501  long lists of names are easier to read in long lines

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from skyrl_modal.mount import select
from tests.gitfiles.repositories import git, listed_by_git

PINNED = ["skyrl==0.4.0", "skyrl-gym==0.4.0"]
# Files that accumulate in a checkout: environments, caches, logs, outputs, data, files of editors.
PLANTED = [
    ".env", "skyrl-gym/.env", ".venv/bin/python", "skyrl-gym/.venv/lib/x.py", "a/__pycache__/a.cpython-312.pyc", "x.pyc",
    "lib/helper.py", "docs/lib/page.tsx", "docs/lib/deep/util.ts", "build/lib/a.py", "build/keep/b.py", "dist/a.whl",
    "wandb/run-1/log.txt", "outputs/2026/a.yaml", "data/train.parquet", "checkpoints/step_1/model.pt", "nohup.out",
    "tinker.db", "deep/tinker.db-wal", ".cache/x", "pkg.egg-info/PKG-INFO", "tests/.pytest_cache/v", "n/.DS_Store",
    "odd name .py", "notes/\xe9.txt", ".ipynb_checkpoints/n.ipynb", "run.log", "exports/model.safetensors", "env/x", "site/y",
]  # fmt: skip
# The lines of SkyRL's ignore file that are easily treated wrongly, and some others.
RULES = """\
# caches
__pycache__/
*.py[cod]
*$py.class
**/*.egg-info/
.cache/
.pytest_cache/
/wandb/
/outputs/
/data/lcb
docs/public/api-ref/
/skyrl-gym/.env\x20
/skyrl-gym/.venv
/skyrl-gym/build
*.log
nohup.out
*.db
*.db-wal
build/
dist/
lib/
!docs/lib/
lib64/
.env
.venv
env/
site/
.coverage.*
.ipynb_checkpoints
.DS_Store
"""


@pytest.fixture(scope="session")
def sdists(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The source distributions."""
    given = os.environ.get("SKYRL_MODAL_SDISTS")
    folder = Path(given) if given else tmp_path_factory.mktemp("sdists")
    if not given:
        if importlib.util.find_spec("pip") is None:
            pytest.skip("no pip to download them with: set SKYRL_MODAL_SDISTS")
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:"]
        # Only the sources are needed, so the Python version that skyrl requires does not matter.
        subprocess.run([*command, "--ignore-requires-python", "-d", folder, *PINNED], check=True)
    found = sorted(folder.glob("skyrl*.tar.gz"))
    assert len(found) >= len(PINNED), f"no source distributions in {folder}"
    return found


@pytest.fixture
def checkout(sdists: list[Path], tmp_path: Path, no_settings: Path) -> Path:
    """Both packages, one inside the other, with the planted files."""
    root = tmp_path / "SkyRL"
    for sdist in sdists:
        with tarfile.open(sdist) as archive:
            archive.extractall(tmp_path / "unpacked", filter="data")
    for folder in sorted((tmp_path / "unpacked").iterdir()):
        folder.rename(root / folder.name if root.exists() else root)
    for name in PLANTED:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("tracked", [False, True])
def test_selection_is_what_git_lists(checkout: Path, tracked: bool) -> None:
    """Selections agree with git for the ignore files of the packages and of the repository, untracked and tracked."""
    git("init", "-q", cwd=checkout)
    if tracked:
        git("add", "-f", "skyrl-gym", "docs", "lib", cwd=checkout)
    assert list(select(checkout).files) == listed_by_git(checkout)
    (checkout / ".gitignore").write_text(RULES)
    selection = select(checkout)
    assert list(selection.files) == listed_by_git(checkout)
    assert list(select(checkout / "skyrl-gym").files) == listed_by_git(checkout / "skyrl-gym")
    assert {"docs/lib/page.tsx", "docs/lib/deep/util.ts", "data/train.parquet"} <= set(selection.files)
    assert ("lib/helper.py" in selection.files) == tracked
    assert ".env" in dict(selection.ignored_env_files())


@pytest.mark.slow
def test_caches_are_excluded_without_ignore_files(checkout: Path) -> None:
    """The launcher's selection excludes caches and environments without an ignore file."""
    for path in checkout.rglob(".gitignore"):
        path.unlink()
    files = select(checkout, skip_caches=True).files
    assert not [path for path in files if "__pycache__" in path or ".venv" in path or path.endswith(".pyc")]
    assert {"lib/helper.py", "build/keep/b.py", ".env"} <= set(files)
