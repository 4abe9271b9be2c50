"""What the groups of benchmarks share: sizes, a folder for their files, and the checkouts."""

from __future__ import annotations

import compileall
import functools
import os
from collections.abc import Sequence
from pathlib import Path

from attrs import define, frozen

import skyrl_modal
from benchmarks import trees
from skyrl_modal import Launcher


@frozen
class Sizes:
    """How much work the rows do.

    Attributes:
        files: Files of a checkout of SkyRL's size.
        commits: Commits of its history.
        ignored: Ignored files beside it.
        unchanged: Files of the checkouts of the rows on runs of unchanged checkouts.
        many: Files of a large checkout.
        kept: Files of the large checkout of later runs on Modal.
        lines: Lines of ``seq`` that a run prints. 12,400,000 lines are 100 MB.
        log: Bytes of the output that ``logs`` prints.
        runs: Runs in the index.
        parallel: Runs at the same time.
        seconds: Seconds that each of them sleeps.
        nodes: Numbers of nodes of the clusters.
        ray_runs: Numbers of runs with Ray at the same time.
        masked: Bytes in which secrets are masked.
        steps: Steps of which metrics are read.
    """

    files: int = 1061
    commits: int = 400
    ignored: int = 50_000
    unchanged: tuple[int, ...] = (1_000, 10_000, 50_000)
    many: int = 50_000
    kept: int = 10_000
    lines: int = 12_400_000
    log: int = 1 << 30
    runs: int = 1_000
    parallel: int = 32
    seconds: float = 3.0
    nodes: tuple[int, ...] = (1, 2, 4)
    ray_runs: tuple[int, ...] = (1, 8)
    masked: int = 8 << 20
    steps: int = 100_000


#: A short run of every row. Its figures mean nothing.
QUICK = Sizes(
    files=60, commits=4, ignored=200, unchanged=(100,), many=300, kept=200, lines=10_000, log=1 << 20, runs=5,
    parallel=2, seconds=0.1, nodes=(1,), ray_runs=(1,), masked=1 << 16, steps=500,
)  # fmt: skip


@define(slots=False)
class Session:
    """One run of benchmarks.

    Attributes:
        folder: A temporary folder.
        sizes: How much work the rows do.
        is_quick: Whether tools that are not installed are left out.
        names: The rows or groups of rows that are measured; all if it is empty.
    """

    folder: Path
    sizes: Sizes
    is_quick: bool = False
    names: Sequence[str] = ()

    def is_selected(self, row: str) -> bool:
        """Return whether a row is measured. Rows that need checkouts of their own ask before they create them."""
        return not self.names or any(row == name or row.startswith(f"{name}.") for name in self.names)

    def use_own_folders(self) -> None:
        """Redirect the files of runs to the temporary folder."""
        for variable in ("XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
            os.environ[variable] = str(self.folder / variable)
        for variable in ("SKYRL_REPO_ROOT", "SKYRL_MODAL_BACKEND", "RAY_ADDRESS"):
            os.environ.pop(variable, None)
        # As of an installed package, whose byte code pip creates: otherwise each new process would compile the modules.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        compileall.compile_dir(Path(skyrl_modal.__file__).parent, quiet=2)
        # Of /tmp, a run sees only paths in environment variables.
        os.environ["BENCH_FOLDER"] = str(self.folder)

    @functools.cached_property
    def checkout(self) -> Path:
        """A checkout of SkyRL's size, with history, which no row changes."""
        return trees.skyrl_tree(self.folder / "SkyRL", self.sizes.files, self.sizes.commits)

    @functools.cached_property
    def checkout_with_ignored(self) -> Path:
        """A checkout of SkyRL's size with ignored files in .venv and node_modules."""
        root = trees.skyrl_tree(self.folder / "ignored" / "SkyRL", self.sizes.files, self.sizes.commits)
        return trees.add_ignored(root, self.sizes.ignored)

    @functools.cached_property
    def large_checkout(self) -> Path:
        """A checkout with many files, all of which are needed."""
        return trees.wide_tree(self.folder / "many" / "SkyRL", self.sizes.many)

    def launcher(self) -> Launcher:
        """Return a launcher for the checkout of SkyRL's size on this machine, without Ray."""
        return Launcher(backend="local", checkout=self.checkout, gpu=None, ray=None)
