"""How long it takes to tell which files go, beside git and beside the ways that others have, and to copy them.

``python benchmarks/mount.py`` prints one table, medians of runs that take turns; ``--all`` also runs the slow ways on
the large trees, which takes many minutes. The trees are made for it: (a) of SkyRL's size, (b) the same with a .venv of
30,000 and a node_modules of 20,000 ignored files, (c) 50,000 files in 5,000 folders, all of which go.
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
    """Files of about ``size`` bytes, ``each`` to a folder, two folders deep."""
    draw = random.Random(str(folder.name))
    for number in range(files):
        place = folder / f"d{number // each // 20}" / f"e{number // each}"
        if number % each == 0:
            place.mkdir(parents=True)
        (place / f"file{number}{suffix}").write_bytes(draw.randbytes(draw.randrange(2 * size) if size else 0))


def trees(folder: Path) -> dict[str, Path]:
    """The three trees, each a repository with everything committed that is not ignored."""
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
    """The oracle, as a process."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    return subprocess.run(command, cwd=root, check=True, capture_output=True).stdout.count(b"\0")


def with_pathspec(root: Path) -> int:
    """pathspec as its README says, one file after the other."""
    import pathspec

    spec = pathspec.GitIgnoreSpec.from_lines((root / ".gitignore").read_text().splitlines())
    return sum(1 for path in spec.match_tree_files(root, negate=True) if not path.startswith(".git/"))


def with_gitignore_parser(root: Path) -> int:
    """gitignore-parser as its README says, one call for each file."""
    from gitignore_parser import parse_gitignore

    ignored = parse_gitignore(root / ".gitignore")
    return sum(
        not ignored(os.path.join(folder, name))
        for folder, _, names in os.walk(root)
        if ".git" not in folder.split(os.sep)
        for name in names
    )


def with_modal(root: Path) -> int:
    """What ``add_local_dir(ignore=FilePatternMatcher)`` asks for each file, without the upload."""
    from modal import FilePatternMatcher

    ignored = FilePatternMatcher(*(line for line in RULES.splitlines() if not line.startswith("!")), ".git")
    return sum(
        not ignored(Path(folder, name).relative_to(root)) for folder, _, names in os.walk(root) for name in names
    )


def timed(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds; the ways take turns, so that a busy moment meets them all."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            taken[name].append((time.perf_counter() - begin) * 1000)
    return {name: statistics.median(times) for name, times in taken.items()}


def snapshots(root: Path, store: SnapshotStore, rounds: int) -> dict[str, float]:
    """The first snapshot, later ones of an unchanged tree, and ones after an edit of one file, all without the walk."""

    def taken() -> float:
        selection = select(root, skip_caches=True)
        begin = time.perf_counter()
        store.take(selection).release()
        return (time.perf_counter() - begin) * 1000

    first = taken()
    taken()
    again = statistics.median(taken() for _ in range(rounds))
    edited = sorted(root.rglob("file7*.py"))[0]
    edits = []
    for number in range(rounds):
        edited.write_text(f"edit {number}")
        edits.append(taken())
    return {"snapshot, first": first, "snapshot, unchanged": again, "snapshot, one edit": statistics.median(edits)}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="the slow ways on the large trees too")
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
            result = timed(quick, rounds)
            slow = {"pathspec": with_pathspec, "Modal's FilePatternMatcher": with_modal}
            slow["gitignore-parser, README"] = with_gitignore_parser
            kept = dict.fromkeys(quick, expected)
            for way, run in slow.items():
                if tree == "a" or options.all:
                    begin = time.perf_counter()
                    kept[way] = run(root)
                    result[way] = (time.perf_counter() - begin) * 1000
            result |= snapshots(root, SnapshotStore(Path(name) / f"store-{tree}"), rounds)
            for way, taken in result.items():
                base = "select(skip_caches=True)" if way.startswith("snapshot") else "git ls-files"
                other = f", {kept[way]:,} files" if kept.get(way, expected) != expected else ""
                unit = "select" if way.startswith("snapshot") else "git"
                rows.setdefault(way, {})[tree] = f"{taken:,.1f} ({taken / result[base]:.2f} {unit}{other})"
    print("median milliseconds (ratio to git ls-files; of snapshots to the selection), all in one run", file=sys.stderr)
    print(f"| {'':28} | {'(a) SkyRL-sized':32} | {'(b) with ignored 50,000':32} | {'(c) 50,001 kept':32} |")
    print(f"|{'-' * 30}|{'-' * 34}|{'-' * 34}|{'-' * 34}|")
    for way, cells in rows.items():
        print(f"| {way:28} | " + " | ".join(f"{cells.get(tree, '-'):32}" for tree in "abc") + " |")


if __name__ == "__main__":
    main()
