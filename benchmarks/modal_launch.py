"""The start of a run on Modal, compared with SkyRL's own script for Modal, on the loopback control plane.

The way of SkyRL's script (examples/train_integrations/modal/main.py) is ``Image.add_local_dir`` with its list of
ignored names, and ``modal run``. Neither starts Ray. Before the measurement, both ways compute a digest of the files in
the container, which has to be the same. The processor time includes that of the server and of the container.
"""

from __future__ import annotations

import itertools
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks import trees
from benchmarks.measure import SUBJECT, BenchmarkError, Goal, Measure, Row, Sample
from benchmarks.session import Session
from tests.support.loopback import LoopbackModal

BASELINE = "modal run main.py"
ROOT = Path(__file__).resolve().parents[1]
#: The file with the paths of the files that are needed in the container.
LIST = "needed-files.txt"
DIGEST = f"xargs -d '\\n' sha256sum < {LIST} | sha256sum; xargs -d '\\n' stat -c %a < {LIST} | sha256sum"

MAIN = """
import os
import subprocess

import modal

image = (
    modal.Image.from_registry("novaskyai/skyrl-train-ray-2.57.0-py3.12-cu13.0")
    .env({"SKYRL_REPO_ROOT": "/root/SkyRL"})
    .add_local_dir(
        local_path=os.environ["SKYRL_REPO_ROOT"],
        remote_path="/root/SkyRL",
        ignore=[
            ".venv", "*.pyc", "__pycache__", ".git", "*.egg-info", ".pytest_cache", "node_modules", ".DS_Store",
        ],
    )
)
app = modal.App("my_skyrl_app")


@app.function(
    image=image, volumes={"/root/data": modal.Volume.from_name("skyrl-data", create_if_missing=True)}, timeout=3600
)
def run_script(command: str):
    os.chdir("/root/SkyRL")
    process = subprocess.Popen(
        command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
    )
    for line in process.stdout:
        print(line, end="")
    if process.wait():
        raise Exception("the command failed")


@app.local_entrypoint()
def main(command: str):
    run_script.remote(command)
"""


def rows(session: Session) -> Iterator[Row]:
    """Yield the rows on later runs, and on the first run of an account."""
    sizes = session.sizes
    size, numbers = f"SkyRL's size ({sizes.files:,} files)", itertools.count()
    skyrl: Callable[[Path], Path] = lambda root: trees.skyrl_tree(root, sizes.files, sizes.commits)  # noqa: E731
    cases: dict[str, tuple[str, float | None, float, Callable[[Path], Path]]] = {
        "skyrl": (f"later run, {size}", 0.6, 1.0, skyrl),
        "ignored": (
            f"later run, {size}, {sizes.ignored:,} ignored files", 0.1, 0.3,
            lambda root: trees.add_ignored(skyrl(root), sizes.ignored, ("outputs", "wandb")),
        ),
        "skipped": (
            f"later run, {size}, {sizes.ignored:,} files in .venv and node_modules", None, 0.5,
            lambda root: trees.add_ignored(skyrl(root), sizes.ignored),
        ),
        "kept": (f"later run, {sizes.kept:,} files", 0.3, 0.5, lambda root: trees.wide_tree(root, sizes.kept)),
    }  # fmt: skip
    for name, (title, limit, share, make) in cases.items():
        if not session.is_selected(f"modal.{name}"):
            continue
        root = add_list(make(session.folder / f"modal{next(numbers)}" / "SkyRL"))
        with ExitStack() as stack:
            ways = Ways(session, root)
            goal = None if limit is None else Goal("ratio", limit)
            least = 2 if name == "ignored" else None
            yield Row(
                f"modal.{name}", f"Modal, {title}", ways.later_runs(stack), BASELINE, goal, share=share, least=least
            )
    if not session.is_selected("modal.first"):
        return
    root = add_list(session.large_checkout)
    title = f"Modal, first run of an account, {sizes.many:,} files, with a digest of them"
    ways = Ways(session, root)
    yield Row("modal.first", title, ways.first_runs(), BASELINE, Goal("ratio", 0.4), share=0.2, least=2)


def add_list(root: Path) -> Path:
    """Add the list of the needed files to a checkout."""
    argv = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(argv, cwd=root, check=True, capture_output=True, text=True).stdout
    (root / LIST).write_text(files)
    return root


def _processor_time() -> float:
    """Return the processor time in seconds of this process, which is the server, and of all that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class Ways:
    """Runs a command in both ways.

    Args:
        session: The session.
        root: The checkout.
    """

    def __init__(self, session: Session, root: Path) -> None:
        script = session.folder / "main.py"
        script.write_text(MAIN)
        self._folder, self._numbers = session.folder / f"modal-{root.parent.name}", itertools.count()
        self._environment = {**os.environ, "SKYRL_REPO_ROOT": str(root), "PYTHONPATH": str(ROOT)}
        self._ways: dict[str, Callable[[str], list[str]]] = {
            SUBJECT: lambda command: ["skyrl_modal", "run", "--quiet", "--no-ray", "--gpu", "none", command],
            BASELINE: lambda command: ["modal", "run", str(script), "--command", command],
        }

    def later_runs(self, stack: ExitStack) -> dict[str, Measure]:
        """Return measurements of runs after the first one, which the server has been sent the files for."""
        server: list[LoopbackModal] = []

        def measure(way: str) -> Sample:
            if not server:
                server.append(self._start_server(stack))
                self._check(server[0])
            return self._run(server[0], way, "true")[0]

        return {way: partial(measure, way) for way in self._ways}

    def first_runs(self) -> dict[str, Measure]:
        """Return measurements of the first runs on an account. There are no snapshots and archives yet.

        Each computes the digests, since a further run for each way would take a minute.
        """

        def measure(way: str) -> Sample:
            with ExitStack() as stack:
                sample, output = self._run(self._start_server(stack), way, DIGEST)
                return Sample(sample.wall, sample.cpu, _digests(output))

        return {way: partial(measure, way) for way in self._ways}

    def _start_server(self, stack: ExitStack) -> LoopbackModal:
        """Start a control plane that has no files yet, with caches of this machine that are empty."""
        cache = self._folder / str(next(self._numbers))
        cache.mkdir(parents=True)
        self._environment |= dict.fromkeys(("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME"), str(cache))
        return stack.enter_context(LoopbackModal(client_timeout=30, scaledown=1))

    def _run(self, server: LoopbackModal, way: str, command: str) -> tuple[Sample, str]:
        """Run a command in one way. Return the measurement, and the output."""
        begin, processor = time.perf_counter(), _processor_time()
        argv = [sys.executable, "-m", *self._ways[way](command)]
        done = subprocess.run(
            argv, check=False, capture_output=True, text=True, env={**self._environment, **server.env()}
        )
        seconds = time.perf_counter() - begin
        if done.returncode:
            raise BenchmarkError(f"{way} exited with {done.returncode}: {done.stdout}\n{done.stderr[-2000:]}")
        # The processor time of a container is known after its end.
        server.wait_for_no_container(timeout=600)
        return Sample(seconds, _processor_time() - processor, 0), done.stdout

    def _check(self, server: LoopbackModal) -> None:
        """Check that both ways have the same files in the container. It is also the first run on the server."""
        first, second = [_digests(self._run(server, way, DIGEST)[1]) for way in self._ways]
        if first != second:
            raise BenchmarkError(f"the files in the container differ: {first} and {second}")


def _digests(output: str) -> tuple[str, ...]:
    """Return the digests of contents and permissions that a command has printed."""
    found = tuple(word for word in output.split() if len(word) == 64)
    if len(found) != 2:
        raise BenchmarkError(f"the digests of the files are missing: {output}")
    return found
