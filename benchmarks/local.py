"""Compare the local backend with alternatives: ``nox -s bench -- local``.

Measures the time of a launch, of streaming, and until Ray is ready. Each round measures every candidate once, in turn,
so that a temporary load of the machine affects all of them. Prints medians, and ratios to the first of each group.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

Measure = Callable[[], float]

FILES = 438  # number of files in SkyRL's source archive
LINES = 12_400_000  # 100 MB of output of seq
BIN = Path(sys.executable).parent

LAUNCH = """
import sys, time
from skyrl_modal import Launcher
begin = time.perf_counter()
launcher = Launcher(backend="local", checkout=sys.argv[1], gpu=None, ray=None)
for _ in range(int(sys.argv[2])):
    begin = time.perf_counter()
    assert launcher.run("true", quiet=True).returncode == 0
    print(time.perf_counter() - begin, flush=True)
"""

TORCHX = """
import sys, time
from torchx.runner import get_runner
from torchx.specs import AppDef, Role
app = AppDef(name="true", roles=[Role(name="true", image="", entrypoint="true", num_replicas=1)])
with get_runner("bench") as runner:
    for _ in range(int(sys.argv[2])):
        begin = time.perf_counter()
        handle = runner.run(app, scheduler="local_cwd", cfg={"log_dir": sys.argv[1]})
        status = runner.wait(handle, **({"wait_interval": float(sys.argv[3])} if sys.argv[3:] else {}))
        assert status.state.name == "SUCCEEDED", status
        print(time.perf_counter() - begin, flush=True)
"""

BARE = """
import subprocess, sys, time
for _ in range(int(sys.argv[1])):
    begin = time.perf_counter()
    subprocess.run(["true"], check=True)
    print(time.perf_counter() - begin, flush=True)
"""

STREAM = """
import sys, time
from skyrl_modal import Launcher
size = 0
def receive(data):
    global size
    size += len(data)
launcher = Launcher(backend="local", checkout=sys.argv[1], gpu=None, ray=None)
begin = time.perf_counter()
launcher.run("seq " + sys.argv[2], output=receive, quiet=True)
print(time.perf_counter() - begin, size)
"""

#: A driver that connects as soon as possible. Its argument is the address.
DRIVER = """
import socket, sys, time
import ray
host, port = sys.argv[1].split(":")
while True:
    try:
        socket.create_connection((host, int(port)), 1).close()
        break
    except OSError:
        time.sleep(0.05)
while True:
    try:
        ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
        break
    except Exception:
        time.sleep(0.05)
print("connected", flush=True)
"""

RUN_WITH_RAY = """
import sys, time
from skyrl_modal import Launcher
launcher = Launcher(backend="local", checkout=sys.argv[1], gpu=None)
begin, first = time.perf_counter(), []
def receive(data):
    first.append(time.perf_counter())
assert launcher.run(sys.argv[2], output=receive, quiet=True).returncode == 0
print(first[0] - begin)
"""


def python(script: str, *arguments: str) -> list[float]:
    """Run a script in a new Python process, and return the numbers that it prints, one on each line."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"a candidate failed:\n{done.stderr[-3000:]}")
    return [float(line.split()[0]) for line in done.stdout.splitlines()]


def wall(argv: list[str], **options: object) -> float:
    """Return the seconds from the start to the exit of a process."""
    begin = time.perf_counter()
    subprocess.run(argv, check=True, stderr=subprocess.DEVNULL, **options)  # type: ignore[call-overload]  # options of any kind
    return time.perf_counter() - begin


def wall_of(script: str, *arguments: str) -> Measure:
    """Return a measurement of a script in a new process, including the start of Python and imports."""

    def measure() -> float:
        begin = time.perf_counter()
        python(script, *arguments)
        return time.perf_counter() - begin

    return measure


def last_of(script: str, *arguments: str) -> Measure:
    """Return a measurement of the last of several launches in one process."""
    return lambda: python(script, *arguments)[-1]


class Group:
    """Candidates that are compared with each other."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.candidates: dict[str, Measure] = {}
        self.times: dict[str, list[float]] = {}
        self.rounds: dict[str, int] = {}

    def add(self, name: str, measure: Measure, *, rounds: int) -> None:
        """Add a candidate. The others are compared to the first one."""
        self.candidates[name] = measure
        self.times[name] = []
        self.rounds[name] = rounds

    def run(self) -> None:
        """Measure all candidates, round by round."""
        for number in range(max(self.rounds.values())):
            for name, measure in self.candidates.items():
                if number < self.rounds[name]:
                    print(f"  {self.title}: {name} ({number + 1}/{self.rounds[name]})", file=sys.stderr, flush=True)
                    self.times[name].append(measure())

    def rows(self) -> Iterator[str]:
        """Yield the rows of the table."""
        base = statistics.median(next(iter(self.times.values())))
        yield f"{self.title}"
        for name, times in self.times.items():
            median = statistics.median(times)
            spread = f"{min(times):.3f}-{max(times):.3f}"
            yield f"  {name:<66} {median:>9.3f} s {median / base:>8.2f} x   {spread:>15}   n={len(times)}"


def make_checkout(folder: Path) -> Path:
    """Create a checkout of the size of SkyRL's sources."""
    for number in range(FILES - 1):
        path = folder / f"skyrl/package{number % 20}/module{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"VALUE = {number}\n" * 400)
    (folder / "skyrl-gym").mkdir()
    (folder / "skyrl-gym" / "__init__.py").write_text("")
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    return folder


def launches(checkout: Path, scratch: Path, rounds: int) -> Group:
    """Return the group that compares the time of ``true`` without Ray in a new process."""
    group = Group("`true`, fresh process")
    group.add("Launcher.run in a script", wall_of(LAUNCH, str(checkout), "1"), rounds=rounds)
    command = [str(BIN / "skyrl-modal"), "run", "--backend", "local", "--no-ray", "--checkout", str(checkout), "true"]
    group.add("skyrl-modal run", lambda: wall(command), rounds=rounds)
    group.add("TorchX Runner, waiting at 0.01 s", wall_of(TORCHX, str(scratch / "tx"), "1", "0.01"), rounds=rounds)
    group.add("TorchX Runner, waiting at its default", wall_of(TORCHX, str(scratch / "tx"), "1"), rounds=2)
    group.add("bare python and subprocess", wall_of(BARE, "1"), rounds=rounds)
    return group


def relaunches(checkout: Path, scratch: Path, rounds: int) -> Group:
    """Return the group that compares the time of ``true`` without Ray in a process that has run it before."""
    group = Group("`true`, warm relaunch (the sixth in one process)")
    group.add("Launcher.run", last_of(LAUNCH, str(checkout), "6"), rounds=rounds)
    group.add("TorchX Runner, waiting at 0.01 s", last_of(TORCHX, str(scratch / "tx"), "6", "0.01"), rounds=rounds)
    group.add("TorchX Runner, waiting at its default", last_of(TORCHX, str(scratch / "tx"), "2"), rounds=2)
    group.add("bare subprocess", last_of(BARE, "6"), rounds=rounds)
    return group


def streams(checkout: Path, scratch: Path, rounds: int) -> Group:
    """Return the group that compares the time of 100 MB of output."""
    group = Group("100 MB of lines")

    def tee(sink: str) -> Measure:
        return lambda: wall(["sh", "-c", f"seq {LINES} | tee '{scratch}/tee.log' > '{sink}'"])

    command = [str(BIN / "skyrl-modal"), "run", "--backend", "local", "--no-ray", "--checkout", str(checkout), "-q"]

    def to_file() -> float:
        with open(scratch / "out.log", "wb") as file:
            return wall([*command, f"seq {LINES}"], stdout=file)

    group.add("seq | tee output.log > /dev/null", tee("/dev/null"), rounds=rounds)
    group.add(
        "Launcher.run(output=callable), writes output.log", last_of(STREAM, str(checkout), str(LINES)), rounds=rounds
    )
    group.add("seq | tee output.log > file", tee(str(scratch / "out.tee")), rounds=rounds)
    group.add("skyrl-modal run > file, writes output.log, with start", to_file, rounds=rounds)
    return group


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def kill_by_argument(text: str) -> None:
    """Kill all processes with a text in their arguments: the path of a temporary folder, which no other process has."""
    own_pid = os.getpid()
    for _ in range(50):
        left = []
        for entry in os.scandir("/proc"):
            if entry.name.isdigit() and int(entry.name) != own_pid:
                with contextlib.suppress(OSError):
                    if text.encode() in Path(entry.path, "cmdline").read_bytes():
                        left.append(int(entry.name))
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def bare_ray(*options: str) -> Measure:
    """Return a measurement of ``ray start`` until a driver that is started at the same time has connected."""

    def measure() -> float:
        folder, port = tempfile.mkdtemp(prefix="bench-ray-"), free_port()
        start = [str(BIN / "ray"), "start", "--head", f"--port={port}", f"--temp-dir={folder}", *options]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
        begin = time.perf_counter()
        ray = subprocess.Popen(start, **quiet)  # type: ignore[call-overload]  # options of any kind
        try:
            driver = [sys.executable, "-c", DRIVER, f"127.0.0.1:{port}"]
            subprocess.run(driver, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=180)
            return time.perf_counter() - begin
        finally:
            kill_by_argument(folder)
            ray.wait()
            shutil.rmtree(folder, ignore_errors=True)

    return measure


def scripted_ray() -> float:
    """Measure `ray start --head` as in SkyRL's scripts, until it exits."""
    folder, port = tempfile.mkdtemp(prefix="bench-ray-"), free_port()
    try:
        start = [str(BIN / "ray"), "start", "--head", f"--port={port}", f"--temp-dir={folder}"]
        return wall(start, stdout=subprocess.DEVNULL)
    finally:
        kill_by_argument(folder)
        shutil.rmtree(folder, ignore_errors=True)


def use_scratch_folders(scratch: Path) -> Path:
    """Redirect the files of runs to a temporary folder, and return a checkout in it."""
    for variable in ("XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        os.environ[variable] = str(scratch / variable)
    for variable in ("SKYRL_REPO_ROOT", "SKYRL_MODAL_BACKEND", "RAY_ADDRESS"):
        os.environ.pop(variable, None)
    return make_checkout(scratch / "SkyRL")


def rays(checkout: Path, scratch: Path, rounds: int) -> Group:
    """Return the group that compares the time until Ray is ready."""
    group = Group("Ray, from the start")
    driver = f"{sys.executable} -c 'import ray; ray.init(logging_level=\"ERROR\"); print(1)'"
    group.add("Launcher.run: the first byte of `echo`", last_of(RUN_WITH_RAY, str(checkout), "echo"), rounds=rounds)
    group.add("ray start --head && echo, as in SkyRL's scripts", scripted_ray, rounds=rounds)
    group.add("Launcher.run: a driver has connected", last_of(RUN_WITH_RAY, str(checkout), driver), rounds=rounds)
    lean = bare_ray("--include-dashboard=false", "--block")
    group.add("ray start --head --include-dashboard=false --block: a driver has connected", lean, rounds=rounds)
    group.add("ray start --head: a driver has connected", bare_ray(), rounds=rounds)
    return group


def main() -> None:
    """Measure, and print a table."""
    groups_by_name = {"launch": launches, "relaunch": relaunches, "stream": streams, "ray": rays}
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--rounds", type=int, default=7, help="measurements of each candidate, half as many with Ray (default: 7)"
    )
    parser.add_argument("--only", choices=list(groups_by_name), action="append", help="one group; may be repeated")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        scratch = Path(name)
        checkout = use_scratch_folders(scratch)
        groups = [
            make_group(checkout, scratch, max(2, options.rounds // 2) if key == "ray" else options.rounds)
            for key, make_group in groups_by_name.items()
            if not options.only or key in options.only
        ]
        for group in groups:
            group.run()
    for group in groups:
        print("\n".join(group.rows()), flush=True)


if __name__ == "__main__":
    main()
