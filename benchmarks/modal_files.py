"""Measure how long a run on Modal takes to start, compared with SkyRL's own script for Modal.

``python benchmarks/modal_files.py`` runs a short command in both ways in turns, against the loopback control plane,
and prints medians and ratios of the wall time, and of the processor time of all processes, which other load on the
machine affects less. The way of SkyRL's script (examples/train_integrations/modal/main.py) is
``Image.add_local_dir`` with its list of ignored names, and ``modal run``. Neither starts Ray. Before that, both ways
compute a digest of the files in the container, which has to be the same.

The trees: SkyRL's packages from the package index (or from ``--skyrl FOLDER``), the same with 50,000 files in folders
that .gitignore names, the same with a .venv and node_modules at the top, which SkyRL's script skips too, 10,000 files
that are all needed, and 50,000 of them for the first run on an account.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.loopback import LoopbackModal

PACKAGES = ["skyrl==0.4.0", "skyrl-gym==0.4.0"]
#: The file with the paths of the files that are needed in the container.
LIST = "needed-files.txt"
DIGEST = f"xargs -d '\\n' sha256sum < {LIST} | sha256sum; xargs -d '\\n' stat -c %a < {LIST} | sha256sum"

#: Wall time and processor time.
Seconds = tuple[float, float]

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


def fill(folder: Path, files: int, size: int) -> None:
    """Create files of about ``size`` bytes of text, ten in each folder."""
    draw = random.Random(f"{folder.name}{files}")
    for number in range(files):
        path = folder / f"d{number // 200}" / f"e{number // 10}" / f"file{number}.py"
        if number % 10 == 0:
            path.parent.mkdir(parents=True)
        path.write_text(draw.randbytes(draw.randrange(size)).hex())


def skyrl_packages(folder: Path, given: str | None) -> Path:
    """Return a folder with SkyRL's packages, as they are in its repository."""
    root = folder / "packages"
    if given:
        return Path(given)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:"]
    subprocess.run([*command, "--ignore-requires-python", "-d", folder / "sdists", *PACKAGES], check=True)
    for sdist in sorted((folder / "sdists").glob("*.tar.gz")):
        with tarfile.open(sdist) as archive:
            archive.extractall(folder / "unpacked", filter="data")
    main, gym = sorted((folder / "unpacked").iterdir())
    main.rename(root)
    gym.rename(root / "skyrl-gym")
    return root


def make_tree(root: Path, packages: Path | None, kept: int = 0, ignored: tuple[str, ...] = ()) -> Path:
    """Create a checkout with the packages or with generated files, and with 50,000 ignored files beside them."""
    if packages is None:
        fill(root, kept, 1_000)
        (root / "skyrl-gym").mkdir()
        (root / "skyrl-gym" / "x.py").write_text("")
    else:
        shutil.copytree(packages, root, symlinks=True, ignore=shutil.ignore_patterns(".git", "*.egg-info"))
    (root / "skyrl").mkdir(exist_ok=True)
    (root / "pyproject.toml").write_text('[project]\nname = "skyrl"\nversion = "0"\n')
    (root / ".gitignore").write_text("".join(f"/{name}/\n" for name in ("outputs", "wandb", ".venv", "node_modules")))
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    files = subprocess.run(
        ["git", "ls-files", "--others", "--exclude-standard"], cwd=root, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    (root / LIST).write_text("\n".join(files) + "\n")
    subprocess.run(["git", "add", "-A"], cwd=root, check=True)
    for name in ignored:
        fill(root / name, 50_000 // len(ignored), 1_000)
    return root


def _processor_time() -> float:
    """Return the processor time in seconds of this process, which is the server, and of all that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class Comparison:
    """Runs a command in both ways.

    Args:
        folder: A folder for the script and for the caches of the package.
        root: The checkout.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self._script = folder / "main.py"
        self._script.write_text(MAIN)
        self._cache = Path(tempfile.mkdtemp(dir=folder))
        self._environment = {
            **os.environ,
            "SKYRL_REPO_ROOT": str(root),
            "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
            **{name: str(self._cache) for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME")},
        }

    @property
    def ways(self) -> dict[str, Callable[[str], list[str]]]:
        """The command lines of both ways."""
        script = str(self._script)
        return {
            "main.py": lambda command: ["-m", "modal", "run", script, "--command", command],
            "skyrl-modal": lambda command: [
                "-m", "skyrl_modal", "run", "--quiet", "--no-ray", "--gpu", "none", command,
            ],
        }  # fmt: skip

    @contextmanager
    def server(self) -> Iterator[LoopbackModal]:
        """Start a control plane that has no files yet, and empty the caches of this machine."""
        shutil.rmtree(self._cache)
        self._cache.mkdir()
        with LoopbackModal(client_timeout=30, scaledown=1) as server:
            yield server

    def run(self, server: LoopbackModal, way: str, command: str) -> tuple[Seconds, str]:
        """Run a command in one way; return the wall time and the processor time in seconds, and the output."""
        begin, processor = time.perf_counter(), _processor_time()
        done = subprocess.run(
            [sys.executable, *self.ways[way](command)],
            check=False,
            capture_output=True,
            text=True,
            env={**self._environment, **server.env()},
        )
        seconds = time.perf_counter() - begin
        assert done.returncode == 0, (way, done.stdout, done.stderr[-2000:])
        # The processor time of a container is known after its end.
        server.wait_for_no_container(timeout=600)
        return (seconds, _processor_time() - processor), done.stdout

    def check(self, server: LoopbackModal) -> None:
        """Check that both ways have the same files in the container. It is also the first run on the server."""
        digests = {way: self.run(server, way, DIGEST)[1].split() for way in self.ways}
        values = [[part for part in output if len(part) == 64] for output in digests.values()]
        assert values[0] == values[1], digests
        assert len(values[0]) == 2, digests

    def later_runs(self, rounds: int) -> dict[str, list[Seconds]]:
        """Return the seconds of runs after the first one, in turns."""
        seconds: dict[str, list[Seconds]] = {way: [] for way in self.ways}
        with self.server() as server:
            self.check(server)
            for _ in range(rounds):
                for way, measured in seconds.items():
                    measured.append(self.run(server, way, "true")[0])
        return seconds

    def first_runs(self, rounds: int) -> dict[str, list[Seconds]]:
        """Return the seconds of the first runs on an account, in turns. The package has no snapshot yet."""
        seconds: dict[str, list[Seconds]] = {way: [] for way in self.ways}
        for number in range(rounds):
            for way, measured in seconds.items():
                with self.server() as server:
                    measured.append(self.run(server, way, "true")[0])
            if number == 0:
                with self.server() as server:
                    self.check(server)
        return seconds


def report(name: str, goal: str, seconds: dict[str, list[Seconds]]) -> None:
    """Print a row of the table for the wall time, and one for the processor time."""
    for index, kind in enumerate(("wall", "processor")):
        theirs, own = ([both[index] for both in seconds[way]] for way in ("main.py", "skyrl-modal"))
        ratios = sorted(second / first for first, second in zip(theirs, own, strict=True))
        median = statistics.median(own) / statistics.median(theirs)
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        cells = [f"{statistics.median(theirs):.2f}", f"{statistics.median(own):.2f}", f"{median:.2f}", spread, goal]
        title = f"{name}, {kind}"
        print(f"| {title:52} | {' | '.join(f'{cell:>12}' for cell in cells)} | {len(own):2} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--skyrl", help="a folder with SkyRL's files, instead of the package index")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="names of cases, separated by commas")
    options = parser.parse_args()
    few = min(5, options.rounds)
    header = ["main.py, s", "this, s", "ratio", "pairs", "goal"]
    print(f"| {'':52} | {' | '.join(f'{cell:>12}' for cell in header)} |  n |")
    print(f"|{'-' * 54}|{'|'.join(['-' * 14] * 5)}|----|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        packages = skyrl_packages(folder, options.skyrl)
        cases: dict[str, tuple[str, str, bool, int, Callable[[Path], Path]]] = {
            "skyrl": ("SkyRL, later run", "0.6", False, options.rounds, lambda root: make_tree(root, packages)),
            "ignored": (
                "SkyRL and 50,000 ignored files, later run", "0.1", False, few,
                lambda root: make_tree(root, packages, ignored=("outputs", "wandb")),
            ),
            "skipped": (
                "SkyRL, .venv, node_modules, later run", "-", False, options.rounds,
                lambda root: make_tree(root, packages, ignored=(".venv", "node_modules")),
            ),
            "kept": ("10,000 files, later run", "0.3", False, few, lambda root: make_tree(root, None, kept=10_000)),
            "first": ("50,000 files, first run", "0.4", True, few, lambda root: make_tree(root, None, kept=50_000)),
        }  # fmt: skip
        for case, (title, goal, is_first, rounds, make) in cases.items():
            if options.only and case not in options.only.split(","):
                continue
            root = make(folder / case)
            comparison = Comparison(folder, root)
            report(title, goal, (comparison.first_runs if is_first else comparison.later_runs)(rounds))
            shutil.rmtree(root)


if __name__ == "__main__":
    main()
