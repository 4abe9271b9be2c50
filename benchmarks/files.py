"""Selection of files and snapshots, compared with git, other libraries and ``cp -a``."""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks import trees
from benchmarks.measure import (
    SUBJECT,
    BenchmarkError,
    Goal,
    Measure,
    MissingTool,
    Row,
    Sample,
    Worker,
    call_sample,
    process_sample,
)
from benchmarks.session import Session
from skyrl_modal.mount import SnapshotStore, select

GIT = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]

SELECT = """
from skyrl_modal.mount import select
def step():
    return len(select(arguments[0], skip_caches=True).files)
"""

#: As its README shows, with the rules of the .gitignore at the top.
PATHSPEC = """
import pathspec
from pathlib import Path
def step():
    spec = pathspec.GitIgnoreSpec.from_lines(Path(arguments[0], ".gitignore").read_text().splitlines())
    return sum(1 for path in spec.match_tree_files(arguments[0], negate=True) if not path.startswith(".git/"))
"""

#: With one call for each file, as its README shows.
GITIGNORE_PARSER = """
import os
from gitignore_parser import parse_gitignore
def step():
    ignored = parse_gitignore(os.path.join(arguments[0], ".gitignore"))
    return sum(
        not ignored(os.path.join(folder, name))
        for folder, _, names in os.walk(arguments[0])
        if ".git" not in folder.split(os.sep)
        for name in names
    )
"""


#: Creates a file for each file of a folder, and one link to it: what a snapshot needs at least. Arguments: the folder,
#: the copy, and which of how many folders this process copies.
LEAST_COPY = """
import os, sys
source, target, first, step = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
pools = []
for name in range(16):
    path = f"{target}/pool{first}/{name}"
    os.makedirs(path)
    pools.append(os.open(path, os.O_RDONLY))
number = 0
folders = [(parent, names) for parent, _, names in os.walk(source) if not f"{parent}/".startswith(f"{source}/.git/")]
for parent, names in folders[len(folders) * first // step : len(folders) * (first + 1) // step]:
    copy = target + "/tree" + parent[len(source):]
    os.makedirs(copy, exist_ok=True)
    folder, copy = os.open(parent, os.O_RDONLY), os.open(copy, os.O_RDONLY)
    for name in names:
        file = os.open(name, os.O_RDONLY, dir_fd=folder)
        data = os.read(file, 1 << 16)
        os.close(file)
        number += 1
        stored, pool = str(number), pools[number % 16]
        file = os.open(stored, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=pool)
        os.write(file, data)
        os.close(file)
        os.link(stored, name, src_dir_fd=pool, dst_dir_fd=copy)
    os.close(folder)
    os.close(copy)
"""


def library(code: str, package: str, root: Path) -> Measure:
    """Return a measurement of a library that may not be installed."""
    worker = Worker(code, root, warm_up=0)

    def measure() -> Sample:
        if importlib.util.find_spec(package) is None:
            raise MissingTool(f"{package} is not installed")
        return worker()

    return measure


def rows(session: Session) -> Iterator[Row]:
    """Yield the rows on selections and snapshots."""
    sizes = session.sizes
    cases = {
        "skyrl": (f"SkyRL's size ({sizes.files:,} files)", session.checkout),
        "ignored": (f"SkyRL's size with {sizes.ignored:,} ignored files", session.checkout_with_ignored),
        "kept": (f"{sizes.many:,} files, all selected", session.large_checkout),
    }
    for name, (title, root) in cases.items():
        alternatives: dict[str, Measure] = {
            SUBJECT: Worker(SELECT, root),
            "git ls-files": partial(process_sample, GIT, outcome=_count, cwd=root),
        }
        if name == "skyrl":
            alternatives["pathspec"] = library(PATHSPEC, "pathspec", root)
            alternatives["gitignore-parser, as in its README"] = library(GITIGNORE_PARSER, "gitignore_parser", root)
        yield Row(f"select.{name}", f"`select`, {title}", alternatives, "git ls-files", Goal("ratio", 1.5))
    yield from snapshots(session)


def _count(output: bytes) -> int:
    return output.count(b"\0")


def snapshots(session: Session) -> Iterator[Row]:
    """Yield the rows on the first snapshot, on one of an unchanged checkout, and on one after an edit.

    Nothing is removed between the rounds: ext4 does not use the inodes of files that were removed in the last minutes,
    and it then takes several times as long to create many files.
    """
    root, numbers = session.large_checkout, itertools.count()

    def first() -> Sample:
        store = session.folder / f"store{next(numbers)}"

        def take() -> Path:
            return SnapshotStore(store).take(select(root, skip_caches=True)).path

        os.sync()  # what was written before is not written to the disk during the measurement
        return call_sample(take, outcome=summary)

    def copy() -> Sample:
        target = session.folder / f"copy{next(numbers)}"

        def make() -> Path:
            trees.copy_files(root, target)
            return target

        os.sync()
        return call_sample(make, outcome=summary)

    def least() -> Sample:
        target = session.folder / f"least{next(numbers)}"

        def make() -> Path:
            argv = [sys.executable, "-I", "-S", "-c", LEAST_COPY, str(root), str(target)]
            processes = [subprocess.Popen([*argv, str(number), "2"]) for number in range(2)]
            codes = [process.wait() for process in processes]
            if any(codes):
                raise BenchmarkError("a copy failed")
            return target / "tree"

        os.sync()
        return call_sample(make, outcome=summary)

    yield Row(
        "snapshot.first",
        f"first snapshot of {session.sizes.many:,} files, with `select`",
        {SUBJECT: first, "cp -a": copy, "only creating and linking each file, in two processes": least},
        baseline="cp -a",
        goal=Goal("ratio", 0.5),
        share=0.5,
    )
    yield later_snapshots(session)


def summary(folder: Path) -> tuple[int, int]:
    """Return the number of files below a folder and their size."""
    found = subprocess.run(["find", folder, "-type", "f", "-printf", "%s\n"], check=True, capture_output=True).stdout
    sizes = [int(line) for line in found.split()]
    return len(sizes), sum(sizes)


def later_snapshots(session: Session) -> Row:
    """Return the row on snapshots with and without an edit."""
    root, store = session.checkout_with_ignored, SnapshotStore(session.folder / "store")
    edited, numbers = next(path for path in sorted(root.rglob("module*.py"))), itertools.count()

    def take() -> None:
        store.take(select(root, skip_caches=True)).release()

    def after_edit() -> Sample:
        edited.write_text(f"{next(numbers):08}")
        return call_sample(take)

    def unchanged() -> Sample:
        take()
        return call_sample(take)

    take()
    title = f"snapshot after an edit, SkyRL's size with {session.sizes.ignored:,} ignored files"
    return Row("snapshot.edit", title, {SUBJECT: after_edit, "without an edit": unchanged}, baseline="without an edit")
