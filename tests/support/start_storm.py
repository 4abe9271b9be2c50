"""Start many local runs at the same time, and check that each has its own files and that nothing is left.

``python -m tests.support.start_storm --runs 500 --parallel 32 --ray 20`` starts them from threads of two processes.
Each run has to succeed, and with namespaces to have a layer over the snapshot instead of a copy. At the end there may
be no process (and so no open port), scratch folder, held lock or mount of any run.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from attrs import asdict, field, frozen

from skyrl_modal import Launcher, RaySpec, VolumeSpec
from skyrl_modal.backends.local import sandbox
from skyrl_modal.backends.local.file_systems import short_folders
from skyrl_modal.backends.local.run_lock import is_lock_held
from tests.support.processes import MARK, wait_for_marked_processes

#: Prints one line with facts about the run: the file system of the checkout, the content of a file, and the file that
#: it has written. It fails if another run can be seen in its files.
COMMAND = (
    'cd "$SKYRL_REPO_ROOT" && test ! -e mine && echo "$SKYRL_RUN_ID" > mine && test ! -e "$TMPDIR/mine" && '
    'touch "$TMPDIR/mine" && echo "$(stat -f -c %T .) $(cat train.py) $(cat mine)"'
)
#: With Ray, a task runs too.
RAY_COMMAND = (
    "python -c 'import ray; ray.init(logging_level=40, log_to_driver=False); "
    "assert ray.get(ray.remote(lambda: 7).remote()) == 7' >&2 && " + COMMAND
)
_CONTENT = "text"
#: Seconds in which the processes of a run have to exit after its end.
_EXIT_TIMEOUT = 30.0
PROCESSES = 2


@frozen
class RunFacts:
    """How one run ended.

    Attributes:
        returncode: Its exit code; None if the launcher raised an error.
        error: The error, or the output of a run that failed; empty for none.
        file_system: The type of the file system of its checkout.
        run_id: Its id.
    """

    returncode: int | None
    error: str = ""
    file_system: str = ""
    run_id: str = ""


@frozen
class StormReport:
    """The result of a storm.

    Attributes:
        runs: How each run ended.
        seconds: Its duration.
        left: What is left of the runs.
    """

    runs: list[RunFacts]
    seconds: float
    left: list[str] = field(factory=list)

    def problems(self, *, has_namespaces: bool) -> list[str]:
        """Return a sentence for each kind of problem."""
        found = Counter(
            f"exit code {run.returncode}: {run.error[-300:]}" for run in self.runs if run.returncode != 0 or run.error
        )
        copies = [run for run in self.runs if not run.error and (run.file_system == "overlayfs") != has_namespaces]
        problems = [f"{number} x {text}" for text, number in found.most_common()]
        if copies:
            problems.append(f"{len(copies)} x the checkout is on {copies[0].file_system}")
        return [*problems, *self.left]


def run_storm(*, runs: int, parallel: int, ray: int = 0, ray_parallel: int = 4, namespaces: bool = True) -> StormReport:
    """Start runs from threads of two processes, in folders of the user that are new.

    Args:
        runs: How many without Ray.
        parallel: How many of them are active at the same time.
        ray: How many with Ray, after the others.
        ray_parallel: How many of those are active at the same time.
        namespaces: Whether they have namespaces.
    """
    begin = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="storm-"))
    mark = uuid.uuid4().hex
    try:
        checkout = folder / "SkyRL"
        for name, text in {"skyrl-gym/skyrl_gym/a.py": "", "skyrl/a.py": "", "train.py": _CONTENT}.items():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            (checkout / name).write_text(text)
        facts: list[RunFacts] = []
        for number, at_once, has_ray in ((runs, parallel, False), (ray, ray_parallel, True)):
            facts += _run_processes(folder, mark, number, at_once, has_ray=has_ray, namespaces=namespaces)
        left = list(_left(folder, mark, {run.run_id for run in facts}))
        return StormReport(facts, time.monotonic() - begin, left)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_processes(
    folder: Path, mark: str, runs: int, parallel: int, *, has_ray: bool, namespaces: bool
) -> list[RunFacts]:
    env = {**os.environ, MARK: mark, **{name: str(folder / name) for name in _USER_FOLDERS}}
    temporary = folder / "t"
    temporary.mkdir(exist_ok=True)
    env["TMPDIR"] = str(temporary)
    processes = []
    for number in range(PROCESSES):
        own_runs, own_parallel = (
            (total + number) // PROCESSES if total > 1 or number else 0 for total in (runs, parallel)
        )
        options = {"checkout": str(folder / "SkyRL"), "runs": own_runs, "parallel": max(1, own_parallel)}
        options |= {"ray": has_ray, "namespaces": namespaces, "volume": f"storm-{number}"}
        command = [sys.executable, "-m", "tests.support.start_storm", "--driver", json.dumps(options)]
        processes.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL))
    facts = []
    for process in processes:
        output, _ = process.communicate()
        if process.returncode:
            facts.append(RunFacts(process.returncode, "a process that starts the runs failed"))
        facts += [RunFacts(**item) for item in json.loads(output or "[]")]
    return facts


_USER_FOLDERS = ("XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME")


def _drive(
    *, checkout: str, runs: int, parallel: int, ray: bool, namespaces: bool, volume: str
) -> list[RunFacts]:  # pragma: no cover - in a process of its own
    """Start the runs of one process."""
    if not namespaces:
        sandbox.find_bubblewrap = list  # type: ignore[assignment]  # as on a machine without bubblewrap
    launcher = Launcher(
        backend="local",
        checkout=checkout,
        volumes=[VolumeSpec(name=volume)],
        gpu=None,
        ray=RaySpec(num_cpus=1, object_store_memory=100_000_000) if ray else None,
    )

    def start(_: int) -> RunFacts:
        output = io.BytesIO()
        try:
            result = launcher.run(RAY_COMMAND if ray else COMMAND, output=output, quiet=True)
        except Exception as error:  # the storm reports every error
            return RunFacts(None, f"{type(error).__name__}: {error}")
        text = output.getvalue().decode("utf-8", "replace")
        parts = text.splitlines()[-1].split() if text else []
        if result.returncode or len(parts) != 3 or parts[1:] != [_CONTENT, result.run_id]:
            return RunFacts(result.returncode, f"{result.detail} {text}".strip() or "no output")
        return RunFacts(0, "", parts[0], result.run_id)

    with ThreadPoolExecutor(parallel) as pool:
        return list(pool.map(start, range(runs)))


def _left(folder: Path, mark: str, run_ids: set[str]) -> Iterator[str]:
    """Yield a sentence for everything that is left of the runs."""
    # A port is open only as long as a process has it, so no process means no port.
    for pid, command in {**wait_for_marked_processes(mark, _EXIT_TIMEOUT), **_processes_with(folder)}.items():
        yield f"process {pid} is left: {command}"
    scratch = folder / "XDG_CACHE_HOME" / "skyrl_modal" / "scratch"
    for path in [*(scratch.iterdir() if scratch.is_dir() else ()), *(folder / "t").glob("skyrl-*")]:
        yield f"{path} is left"
    for path in (path for parent in short_folders() for path in parent.glob("skyrl-*/skyrl-modal-run")):
        if os.readlink(path).rpartition(":")[2] in run_ids:
            yield f"{path.parent} is left"
    for lock in (folder / "XDG_STATE_HOME").glob("skyrl_modal/runs/*/alive"):
        if is_lock_held(lock):
            yield f"{lock} is locked"
    mounts = Path("/proc/self/mountinfo")
    for line in mounts.read_text().splitlines() if mounts.exists() else ():
        if str(folder) in line:
            yield f"a mount is left: {line}"


def _processes_with(folder: Path) -> dict[int, str]:
    """Return the processes, also with another environment, whose arguments or working directory name a folder."""
    found = {}
    for entry in os.scandir("/proc") if os.path.isdir("/proc/self") else ():
        with contextlib.suppress(OSError):
            command = Path(entry.path, "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            if f"{folder}/" in command or os.readlink(f"{entry.path}/cwd").startswith(f"{folder}/"):
                found[int(entry.name)] = command
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a storm. Return 1 if there was a problem."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.support.start_storm", description=summary)
    parser.add_argument("--runs", type=int, default=500, help="number of runs without Ray (default: 500)")
    parser.add_argument("--parallel", type=int, default=32, help="how many are active at the same time (default: 32)")
    parser.add_argument("--ray", type=int, default=0, help="number of runs with Ray (default: 0)")
    parser.add_argument("--ray-parallel", type=int, default=4, help="how many of those at the same time (default: 4)")
    parser.add_argument("--no-namespaces", action="store_true", help="as on a machine without bubblewrap")
    parser.add_argument("--driver", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.driver is not None:
        print(json.dumps([asdict(facts) for facts in _drive(**json.loads(options.driver))]))
        return 0
    report = run_storm(
        runs=options.runs,
        parallel=options.parallel,
        ray=options.ray,
        ray_parallel=options.ray_parallel,
        namespaces=not options.no_namespaces,
    )
    problems = report.problems(has_namespaces=not options.no_namespaces)
    kinds = Counter(run.file_system or "failed" for run in report.runs)
    print(f"{len(report.runs)} runs in {report.seconds:.0f} s: {dict(kinds)}, {len(problems)} problems")
    for problem in problems:
        print(f"  {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
