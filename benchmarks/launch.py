"""The time of a launch on this machine, compared with TorchX's Runner and a bare Python process."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks import trees
from benchmarks.measure import (
    PROGRAM,
    SUBJECT,
    Goal,
    Measure,
    MissingTool,
    Row,
    Sample,
    Worker,
    call_sample,
    no_outcome,
    process_sample,
    script_sample,
)
from benchmarks.session import Session

#: Arguments: the checkout, and what to run.
RUN = """
from skyrl_modal import Launcher
launcher = Launcher(backend="local", checkout=arguments[0], gpu=None, ray=None)
def step():
    return launcher.run("true", quiet=True).returncode
"""

#: The same with TorchX. Argument: a folder for logs.
TORCHX = """
from torchx.runner import get_runner
from torchx.specs import AppDef, Role
app = AppDef(name="true", roles=[Role(name="true", image="", entrypoint="true", num_replicas=1)])
runner = get_runner()
def step():
    handle = runner.run(app, scheduler="local_cwd", cfg={"log_dir": arguments[0]})
    status = runner.wait(handle, wait_interval=0.01)
    return 0 if status.state.name == "SUCCEEDED" else str(status)
"""

IMPORT = "from skyrl_modal import Launcher"

SUBPROCESS = """
import subprocess
def step():
    return subprocess.run(["true"]).returncode
"""

#: The number of files that would be sent.
PLAN = """
from skyrl_modal import Launcher
launcher = Launcher(backend="local", checkout=arguments[0], gpu=None, ray=None)
def step():
    return sum(mount.files for mount in launcher.plan("true").job.mounts)
"""

#: What the plan is compared with: the files, and which of them differ from the last commit.
GIT = """
import subprocess
def step():
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=arguments[0], check=True, capture_output=True,
    ).stdout
    subprocess.run(["git", "status", "--porcelain", "-z"], cwd=arguments[0], check=True, capture_output=True)
    return listed.count(b"\\0")
"""

#: Adds the records of runs that have ended to the index, as copies of one run.
FILL = """
import sys
from dataclasses import replace
from skyrl_modal import Launcher
from skyrl_modal.run.index import RunIndex
run = Launcher(backend="local", checkout=sys.argv[1], gpu=None, ray=None).submit("true")
run.wait()
index = RunIndex()
record = index.get(run.id)
for number in range(int(sys.argv[2]) - 1):
    index.add(replace(record, job=replace(record.job, run_id=f"{run.id[:-6]}{number:06x}")))
"""

MAP = """
from skyrl_modal import Launcher
launcher = Launcher(backend="local", checkout=arguments[0], gpu=None, ray=None)
def step():
    count = int(arguments[1])
    results = launcher.map(["sleep " + arguments[2]] * count, max_parallel=count, quiet=True)
    return [result.returncode for result in results]
"""


def torchx(folder: Path, measure: Measure) -> Measure:
    """Return a measurement with TorchX, which needs the package."""

    def measured() -> Sample:
        if importlib.util.find_spec("torchx") is None:
            raise MissingTool("torchx is not installed")
        sample = measure()
        shutil.rmtree(folder, ignore_errors=True)  # the logs of each run
        return sample

    return measured


def rows(session: Session) -> Iterator[Row]:
    """Yield the rows on launches."""
    yield from launches(session)
    yield from unchanged(session)
    yield from imports(session)
    yield plan(session)
    yield parallel(session)


def launches(session: Session) -> Iterator[Row]:
    """Yield the rows on ``true``, in a new process and in one that has run it before."""
    checkout, logs = session.checkout, session.folder / "torchx"
    command = [*PROGRAM, "run", "--backend", "local", "--no-ray", "--quiet", "--checkout", str(checkout), "true"]
    yield Row(
        "launch.fresh",
        "`true`, new process, unchanged checkout of SkyRL's size with history",
        {
            SUBJECT: lambda: script_sample(RUN, checkout),
            "skyrl-modal run (command line)": lambda: process_sample(command, outcome=lambda _: 0),
            "TorchX Runner, 0.01 s wait": torchx(logs, lambda: script_sample(TORCHX, logs)),
            "bare Python and subprocess": lambda: script_sample(SUBPROCESS),
        },
        baseline="TorchX Runner, 0.01 s wait",
        goal=Goal("ratio", 0.6),
    )
    yield Row(
        "launch.warm",
        "`true`, process that has run it before",
        {
            SUBJECT: Worker(RUN, checkout),
            "TorchX Runner, 0.01 s wait": torchx(logs, Worker(TORCHX, logs)),
            "bare subprocess": Worker(SUBPROCESS),
        },
        baseline="TorchX Runner, 0.01 s wait",
        goal=Goal("ratio", 0.8),
    )
    copy = session.folder / "stale" / "SkyRL"
    copy.parent.mkdir()
    shutil.copytree(checkout, copy, symlinks=True)
    trees.make_index_stale(copy)
    yield Row(
        "launch.stale-index",
        "`true`, process that has run it before, git index out of date",
        {SUBJECT: Worker(RUN, copy), "index up to date": Worker(RUN, checkout)},
        baseline="index up to date",
    )


def unchanged(session: Session) -> Iterator[Row]:
    """Yield the rows on runs with more and more files."""
    for files in session.sizes.unchanged:
        root = trees.wide_tree(session.folder / f"unchanged{files}" / "SkyRL", files)
        limit = Goal("seconds", 0.5) if files == 50_000 else None
        title = f"`true`, process that has run it before, {files:,} unchanged files"
        # The search for keys in many files continues in the first runs.
        worker = Worker(RUN, root, warm_up=2 + files // 8_000)
        yield Row(f"launch.unchanged-{files}", title, {SUBJECT: worker}, goal=limit, kind="seconds")


def imports(session: Session) -> Iterator[Row]:
    """Yield the rows on the start of Python with the package."""
    bare = "bare Python"
    programs = {
        "import": (f"`{IMPORT}`", [sys.executable, "-c", IMPORT], 0.06),
        "help": ("`skyrl-modal --help`", [*PROGRAM, "--help"], 0.1),
        "ps": (f"`skyrl-modal ps` with {session.sizes.runs:,} runs", [*PROGRAM, "ps"], 0.15),
    }
    state = session.folder / "runs"
    subprocess.run(
        [sys.executable, "-c", FILL, session.checkout, str(session.sizes.runs)], check=True, env=_with_state(state)
    )
    for name, (title, argv, limit) in programs.items():
        yield Row(
            f"start.{name}",
            title,
            {
                SUBJECT: partial(process_sample, argv, outcome=no_outcome, env=_with_state(state)),
                bare: lambda: process_sample([sys.executable, "-c", "pass"], outcome=no_outcome),
            },
            baseline=bare,
            goal=Goal("difference", limit),
        )


def _with_state(folder: Path) -> dict[str, str]:
    return {**os.environ, "XDG_STATE_HOME": str(folder)}


def plan(session: Session) -> Row:
    """Return the row on plans."""
    return Row(
        "plan.warm",
        "`plan`, process that has made it before",
        {SUBJECT: Worker(PLAN, session.checkout), "git ls-files, git status": Worker(GIT, session.checkout)},
        baseline="git ls-files, git status",
        goal=Goal("seconds", 0.06),
    )


def parallel(session: Session) -> Row:
    """Return the row on runs at the same time."""
    count, seconds = session.sizes.parallel, session.sizes.seconds

    def ideal() -> tuple[int, ...]:
        processes = [subprocess.Popen(["sleep", str(seconds)]) for _ in range(count)]
        return tuple(process.wait() for process in processes)

    return Row(
        "launch.parallel",
        f"{count} runs of `sleep {seconds:g}` at the same time",
        {
            SUBJECT: Worker(MAP, session.checkout, str(count), str(seconds), warm_up=1),
            "processes without a launcher": lambda: call_sample(ideal),
        },
        baseline="processes without a launcher",
        goal=Goal("ratio", 1.4),
        share=0.5,
    )
