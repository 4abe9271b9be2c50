"""Train a small policy with GRPO in two runs of the launcher; the second goes on where the first one ended.

    python examples/quickstart.py                       # on this machine, about a minute on two cores
    python examples/quickstart.py --backend modal       # the same on Modal, after `modal setup`
    python examples/quickstart.py --checkout ~/SkyRL    # with a checkout of your own

Needs numpy and pandas (skyrl_gym imports it) beside skyrl-modal[local]. Without --checkout, a SkyRL checkout is made
from the sources on PyPI and kept in the user's cache.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import secrets
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

import platformdirs

from skyrl_modal import ImageSpec, Launcher, MountSpec, VolumeSpec
from skyrl_modal.errors import SkyRLModalError

SKYRL_VERSION = "0.4.0"
# What the command imports beside Ray. On Modal the image gets it; here it has to be in this Python's environment.
PACKAGES = ("numpy", "pandas", "requests")
TRAINER = Path(__file__).resolve().parent / "quickstart_trainer"
SHOWN = 5


def published_checkout() -> Path:
    """A SkyRL checkout made from the published sources, in the user's cache.

    Any number of processes may ask at once: each makes its own beside the final place, and the first to be done wins.
    """
    target = platformdirs.user_cache_path("skyrl_modal") / "checkouts" / f"skyrl-{SKYRL_VERSION}"
    if target.is_dir():
        return target
    print(f"quickstart: getting SkyRL {SKYRL_VERSION} from PyPI into {target}", flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as name:
        work = Path(name)
        download(["skyrl", "skyrl-gym"], work)
        root = unpack(work / f"skyrl-{SKYRL_VERSION}.tar.gz", work / "skyrl")
        # The sources of skyrl carry a part of skyrl-gym; the whole of it is a package of its own.
        gym = root / "skyrl-gym"
        if gym.exists():
            gym.rename(work / "part-of-skyrl-gym")
        unpack(work / f"skyrl_gym-{SKYRL_VERSION}.tar.gz", work / "skyrl-gym").rename(gym)
        with contextlib.suppress(OSError):  # another process was faster
            root.rename(target)
    if not target.is_dir():
        raise SystemExit(f"quickstart: cannot write {target}; give a checkout with --checkout DIR")
    return target


def download(packages: list[str], folder: Path) -> None:
    """Download the source archives of packages with pip, as this machine's pip is configured.

    skyrl asks for a newer Python than this one may be; sources that are unpacked and not installed need not care.
    """
    command = [*pip(folder), "download", "--no-deps", "--no-binary", ",".join(packages), "--ignore-requires-python"]
    command += ["-qq", "--disable-pip-version-check", "--retries", "2", "--dest", str(folder)]
    command += [f"{package}=={SKYRL_VERSION}" for package in packages]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        last = "\n".join(f"  {line}" for line in done.stderr.strip().splitlines()[-3:])
        raise SystemExit(
            f"quickstart: pip could not download the sources of {' and '.join(packages)}:\n{last}\n"
            "Where no package index is in reach, give a SkyRL checkout of your own: --checkout DIR"
        )


def pip(folder: Path) -> list[str]:
    """The command that is pip: this Python's own, or one made in the folder (an environment made by uv has none)."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    try:
        venv.create(folder / "venv", with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(
            f"quickstart: this Python has no pip, and none could be made for it ({error}); "
            "install pip, or give a SkyRL checkout of your own: --checkout DIR"
        ) from error
    return [str(folder / "venv" / "bin" / "python"), "-m", "pip"]


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a source archive; returns the one folder in it."""
    with tarfile.open(archive) as tar:
        # Debian 12's Python 3.11 has no filters yet. pip has run these very sources' build script by now anyway.
        if hasattr(tarfile, "data_filter"):
            tar.extractall(folder, filter="data")
        else:
            tar.extractall(folder)
    [root] = folder.iterdir()
    return root


def shell(script: str, *arguments: str) -> str:
    """The shell command that runs a script of the trainer, which is mounted beside the checkout."""
    return " ".join(["python", f'"$SKYRL_REPO_ROOT/../{TRAINER.name}/{script}"', *arguments])


def read_metrics(launcher: Launcher, run_dir: str) -> list[dict[str, Any]]:
    """Fetch metrics.jsonl from the volume."""
    with tempfile.TemporaryDirectory() as name:
        path = launcher.pull(f"{run_dir}/metrics.jsonl", Path(name) / "metrics.jsonl")
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def check_resumed(rows: list[dict[str, Any]], first: str, second: str, half: int, steps: int) -> None:
    """Check that the second run went on from the first one's checkpoint, without a step twice or left out."""
    expected = [(step, first if step <= half else second) for step in range(1, steps + 1)]
    found = [(row["step"], row["run_id"]) for row in rows]
    origins = {row["resumed_from"] for row in rows[half:]}
    if found != expected or origins != {f"global_step_{half}"}:
        raise SystemExit(f"quickstart: the second run did not resume from step {half}: {origins}, {found}")


def reward_line(rows: list[dict[str, Any]]) -> str:
    """Mean reward of the first and of the last steps among these."""
    rewards = [row["reward"] for row in rows]
    before, after = statistics.fmean(rewards[:SHOWN]), statistics.fmean(rewards[-SHOWN:])
    return f"mean reward {before:.3f} -> {after:.3f}"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", choices=("local", "modal"), default="local")
    parser.add_argument("--checkout", type=Path, help="a SkyRL checkout; without it, one is made from PyPI")
    parser.add_argument("--nodes", type=int, default=1, help="nodes of the Ray cluster (1); on Modal with 8 GPUs each")
    parser.add_argument("--steps", type=int, default=60, help="training steps of both runs together (60)")
    parser.add_argument("--volume", default="skyrl-data", help="name of the volume (skyrl-data)")
    args = parser.parse_args()
    if args.steps < 2:
        parser.error("--steps: give at least 2, one for each run")
    missing = [name for name in (*PACKAGES, "ray") if importlib.util.find_spec(name) is None]
    if args.backend == "local" and missing:
        parser.error(f"missing in this Python: {', '.join(missing)}; pip install 'skyrl-modal[local]' numpy pandas")
    return args


def main() -> None:
    """Run the quickstart."""
    args = parse_arguments()
    launcher = Launcher(
        backend=args.backend,
        checkout=args.checkout or published_checkout(),
        nodes=args.nodes,
        # Modal clusters whole GPU hosts only; the training itself needs no GPU.
        gpu="H100:8" if args.nodes > 1 else None,
        image=ImageSpec(pip=PACKAGES),
        volumes=[VolumeSpec(name=args.volume)],
        mounts=[MountSpec(), MountSpec(local_path=TRAINER, remote_path=f"/root/{TRAINER.name}")],
        timeout="15m",
    )
    # A folder of its own for each quickstart, so that every one starts from nothing.
    name = f"quickstart/{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    run_dir, half = f"/root/data/{name}", args.steps // 2
    prepare = shell("prepare.py", "--output-dir", f'"$SKYRL_DATA/{name}/dataset"')
    train = shell("train.py", "--run-dir", f'"$SKYRL_DATA/{name}"', "--steps")

    first = launcher.run(f"{prepare} && {train} {half}", check=True)
    second = launcher.run(f"{train} {args.steps}", check=True)

    rows = read_metrics(launcher, run_dir)
    check_resumed(rows, first.run_id, second.run_id, half, args.steps)
    checkpoints = sorted(
        (Path(entry.path).name for entry in launcher.ls(f"{run_dir}/ckpts") if "global_step_" in entry.path),
        key=lambda step: int(step.rpartition("_")[2]),
    )
    print(
        f"\nrun 1: steps 1-{half}, {reward_line(rows[:half])}, {first.duration:.0f} s, log {first.log_path}"
        f"\nrun 2: resumed from global_step_{half}, steps {half + 1}-{args.steps}, {reward_line(rows[half:])},"
        f" {second.duration:.0f} s, log {second.log_path}"
        f"\nboth:  {reward_line(rows)}"
        f"\n{run_dir} on volume {args.volume}: dataset, metrics.jsonl, ckpts ({', '.join(checkpoints)})",
        flush=True,
    )


if __name__ == "__main__":
    try:
        main()
    except SkyRLModalError as error:
        sys.exit(f"quickstart: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
