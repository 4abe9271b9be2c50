"""Measure the time of selections and snapshots, compared with git and with other libraries.

``python benchmarks/mount.py`` prints one table of medians of alternating runs; ``--all`` also measures the slow
libraries on the large trees, which takes many minutes. The trees are generated: (a) of SkyRL's size, (b) the same with
30,000 ignored files in .venv and 20,000 in node_modules, (c) 50,000 selected files in 5,000 folders.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from skyrl_modal.mount import SnapshotStore, select

RULES = """\
__pycache__/
*.py[cod]
*$py.class
/wandb/
**/*.egg-info/
/outputs/
/data/lcb
docs/public/api-ref/
.doctrees/
.cache/
.pytest_cache/
/skyrl-gym/.env
/skyrl-gym/.venv
/skyrl-gym/build
/skyrl-gym/dist
*.log
nohup.out
tensorboard_log/
*.db
*.so
.Python
build/
develop-eggs/
dist/
downloads/
eggs/
.eggs/
lib/
!docs/lib/
lib64/
parts/
sdist/
var/
wheels/
share/python-wheels/
.installed.cfg
*.egg
MANIFEST
*.manifest
*.spec
pip-log.txt
htmlcov/
.tox/
.nox/
.coverage
.coverage.*
coverage.xml
*.cover
*.py,cover
.hypothesis/
.ipynb_checkpoints
.env
.venv
env/
venv/
ENV/
env.bak/
site/
.idea/
.vscode/
.DS_Store
Thumbs.db
tinker.db
tx/tinker/alembic/__pycache__/
*.db-journal
*.db-wal
node_modules/
"""


def fill(folder: Path, files: int, each: int, size: int = 0, suffix: str = ".py") -> None:
    """Create files of about ``size`` bytes, ``each`` of them in a folder, two folders deep."""
    draw = random.Random(str(folder.name))
    for number in range(files):
        place = folder / f"d{number // each // 20}" / f"e{number // each}"
        if number % each == 0:
            place.mkdir(parents=True)
        (place / f"file{number}{suffix}").write_bytes(draw.randbytes(draw.randrange(2 * size) if size else 0))


def trees(folder: Path) -> dict[str, Path]:
    """Create the three trees; each is a repository in which every file that is not ignored is committed."""
    made = {"a": folder / "a", "b": folder / "b", "c": folder / "c"}
    for name, root in made.items():
        root.mkdir()
        (root / ".gitignore").write_text(RULES)
        if name == "c":
            fill(root, 50_000, 10)
        else:
            fill(root, 1_061, 5, 15_000)
        commit = ["-c", "user.name=b", "-c", "user.email=b@b", "commit", "-qm", "b"]
        for command in (["init", "-q"], ["add", "."], commit):
            subprocess.run(["git", *command], cwd=root, check=True)
        if name == "b":
            fill(root / ".venv", 30_000, 60)
            fill(root / "node_modules", 20_000, 40, suffix=".js")
    return made


def git(root: Path) -> int:
    """List the files with git, as a process."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    return subprocess.run(command, cwd=root, check=True, capture_output=True).stdout.count(b"\0")


def with_pathspec(root: Path) -> int:
    """List the files with pathspec, as its README shows."""
    import pathspec

    spec = pathspec.GitIgnoreSpec.from_lines((root / ".gitignore").read_text().splitlines())
    return sum(1 for path in spec.match_tree_files(root, negate=True) if not path.startswith(".git/"))


def with_gitignore_parser(root: Path) -> int:
    """List the files with gitignore-parser, with one call for each file as its README shows."""
    from gitignore_parser import parse_gitignore

    ignored = parse_gitignore(root / ".gitignore")
    return sum(
        not ignored(os.path.join(folder, name))
        for folder, _, names in os.walk(root)
        if ".git" not in folder.split(os.sep)
        for name in names
    )


def with_modal(root: Path) -> int:
    """List the files as ``add_local_dir(ignore=FilePatternMatcher)`` does, without the upload."""
    from modal import FilePatternMatcher

    ignored = FilePatternMatcher(*(line for line in RULES.splitlines() if not line.startswith("!")), ".git")
    return sum(
        not ignored(Path(folder, name).relative_to(root)) for folder, _, names in os.walk(root) for name in names
    )


def measure_candidates(candidates: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return median milliseconds of alternating runs, so that other load affects all candidates."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            begin = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - begin) * 1000)
    return {name: statistics.median(values) for name, values in times.items()}


def snapshots(root: Path, store: SnapshotStore, rounds: int) -> dict[str, float]:
    """Measure the first snapshot, later ones of an unchanged tree, and ones after an edit, without the selection."""

    def measure() -> float:
        selection = select(root, skip_caches=True)
        begin = time.perf_counter()
        store.take(selection).release()
        return (time.perf_counter() - begin) * 1000

    first = measure()
    measure()
    again = statistics.median(measure() for _ in range(rounds))
    edited = sorted(root.rglob("file7*.py"))[0]
    edits = []
    for number in range(rounds):
        edited.write_text(f"edit {number}")
        edits.append(measure())
    return {"snapshot, first": first, "snapshot, unchanged": again, "snapshot, one edit": statistics.median(edits)}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="also measure the slow libraries on the large trees")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    rows: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as name:
        for tree, root in trees(Path(name)).items():
            expected = git(root)
            assert len(select(root).files) == expected, tree
            quick: dict[str, Callable[[], object]] = {
                "git ls-files": lambda root=root: git(root),
                "select()": lambda root=root: select(root),
                "select(skip_caches=True)": lambda root=root: select(root, skip_caches=True),
            }
            rounds = options.rounds if tree != "c" else max(3, options.rounds // 3)
            result = measure_candidates(quick, rounds)
            slow = {"pathspec": with_pathspec, "Modal's FilePatternMatcher": with_modal}
            slow["gitignore-parser, README"] = with_gitignore_parser
            selected = dict.fromkeys(quick, expected)
            for candidate, run in slow.items():
                if tree == "a" or options.all:
                    begin = time.perf_counter()
                    selected[candidate] = run(root)
                    result[candidate] = (time.perf_counter() - begin) * 1000
            result |= snapshots(root, SnapshotStore(Path(name) / f"store-{tree}"), rounds)
            for candidate, milliseconds in result.items():
                is_snapshot = candidate.startswith("snapshot")
                base, unit = ("select(skip_caches=True)", "select") if is_snapshot else ("git ls-files", "git")
                count = selected.get(candidate, expected)
                other = f", {count:,} files" if count != expected else ""
                cell = f"{milliseconds:,.1f} ({milliseconds / result[base]:.2f} {unit}{other})"
                rows.setdefault(candidate, {})[tree] = cell
    print("median milliseconds (ratio to git ls-files; of snapshots to the selection), all in one run", file=sys.stderr)
    print(f"| {'':28} | {'(a) SkyRL-sized':32} | {'(b) with ignored 50,000':32} | {'(c) 50,001 selected':32} |")
    print(f"|{'-' * 30}|{'-' * 34}|{'-' * 34}|{'-' * 34}|")
    for candidate, cells in rows.items():
        print(f"| {candidate:28} | " + " | ".join(f"{cells.get(tree, '-'):32}" for tree in "abc") + " |")


if __name__ == "__main__":
    main()
