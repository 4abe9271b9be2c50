"""Train a small policy with GRPO in two runs of the launcher. The second run continues from the first run's checkpoint.

    python examples/quickstart.py                       # on this machine, about a minute on two cores
    python examples/quickstart.py --backend modal       # on Modal, after `modal setup`
    python examples/quickstart.py --checkout ~/SkyRL    # with this checkout, which is created if it does not exist

Requires numpy, pandas, loguru and omegaconf (imported by SkyRL) in addition to skyrl-modal[local]. A SkyRL checkout is
created from the sources on PyPI: at the path of --checkout, or else in the user's cache folder.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import math
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

import platformdirs

from skyrl_modal import ImageSpec, Launcher, MountSpec, Run, VolumeSpec
from skyrl_modal.errors import SkyRLModalError

SKYRL_VERSION = "0.4.0"
# Imported by the command in addition to Ray. Installed in the image on Modal; for local runs, required in this Python.
PACKAGES = ("numpy", "pandas", "requests", "loguru", "omegaconf")
TRAINER = Path(__file__).resolve().parent / "quickstart_trainer"
#: Training steps in an epoch: 512 problems in batches of 16.
STEPS_PER_EPOCH = 32
REWARD = "reward/avg_raw_reward"
SHOWN = 5


def published_checkout(target: Path | None = None) -> Path:
    """Return the path of a SkyRL checkout, after creating it from the published sources if it does not exist.

    Several processes may call this at the same time: each creates a checkout in a temporary folder, and the first one
    that is complete is renamed to the final path.

    Args:
        target: Its path. Default: a folder in the user's cache.
    """
    if target is None:
        target = platformdirs.user_cache_path("skyrl_modal") / "checkouts" / f"skyrl-{SKYRL_VERSION}"
    target = target.expanduser().absolute()
    if target.is_dir():
        return target
    print(f"quickstart: downloading SkyRL {SKYRL_VERSION} from PyPI into {target}", flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as name:
        work = Path(name)
        download(["skyrl", "skyrl-gym"], work)
        root = unpack(work / f"skyrl-{SKYRL_VERSION}.tar.gz", work / "skyrl")
        # The source archive of skyrl contains a part of skyrl-gym only. The complete one is a separate archive.
        gym = root / "skyrl-gym"
        if gym.exists():
            gym.rename(work / "part-of-skyrl-gym")
        unpack(work / f"skyrl_gym-{SKYRL_VERSION}.tar.gz", work / "skyrl-gym").rename(gym)
        with contextlib.suppress(OSError):  # another process has created it in the meantime
            root.rename(target)
    if not target.is_dir():
        raise SystemExit(f"quickstart: cannot create {target}; pass another folder with --checkout DIR")
    return target


def download(packages: list[str], folder: Path) -> None:
    """Download the source archives of packages with pip and its configuration on this machine.

    The required Python version of skyrl is ignored: the sources are unpacked, but not installed.
    """
    command = [*pip(folder), "download", "--no-deps", "--no-binary", ",".join(packages), "--ignore-requires-python"]
    command += ["-qq", "--disable-pip-version-check", "--retries", "2", "--dest", str(folder)]
    command += [f"{package}=={SKYRL_VERSION}" for package in packages]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        last = "\n".join(f"  {line}" for line in done.stderr.strip().splitlines()[-3:])
        raise SystemExit(
            f"quickstart: pip could not download the sources of {' and '.join(packages)}:\n{last}\n"
            "If no package index is available, pass an existing SkyRL checkout: --checkout DIR"
        )


def pip(folder: Path) -> list[str]:
    """Return the command for pip. If this Python has none (as in environments of uv), install one in the folder."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    try:
        venv.create(folder / "venv", with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(
            f"quickstart: this Python has no pip, and installing it failed ({error}); "
            "install pip, or pass an existing SkyRL checkout: --checkout DIR"
        ) from error
    return [str(folder / "venv" / "bin" / "python"), "-m", "pip"]


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a source archive and return its top-level folder."""
    with tarfile.open(archive) as tar:
        # Python 3.11 of Debian 12 has no filters. They are not essential: pip has already run the build script of the
        # same sources.
        if hasattr(tarfile, "data_filter"):
            tar.extractall(folder, filter="data")
        else:
            tar.extractall(folder)
    [root] = folder.iterdir()
    return root


def shell(program: str, script: str, *arguments: str) -> str:
    """Return the shell command for a script of the trainer, which is mounted next to the checkout."""
    return " ".join([program, f'"$SKYRL_REPO_ROOT/../{TRAINER.name}/{script}"', *arguments])


def training_rows(run: Run) -> list[dict[str, float]]:
    """Return the metrics of the training steps of a run. An evaluation before the training has no reward."""
    return [row for row in run.metrics() if REWARD in row]


def check_resumed(rows: list[dict[str, float]], resumed: list[dict[str, float]], half: int, steps: int) -> None:
    """Check that the second run continued after the last step of the first, without missing or repeated steps."""
    found = [row["step"] for row in (*rows, *resumed)]
    if found != list(range(1, steps + 1)) or len(rows) != half:
        raise SystemExit(f"quickstart: the second run did not resume from step {half}: {len(rows)} rows, then {found}")


def reward_line(rows: list[dict[str, float]]) -> str:
    """Return a line with the mean reward of the first and of the last steps."""
    rewards = [row[REWARD] for row in rows]
    before, after = statistics.fmean(rewards[:SHOWN]), statistics.fmean(rewards[-SHOWN:])
    return f"mean reward {before:.3f} -> {after:.3f}"


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", choices=("local", "modal"), default="local")
    parser.add_argument("--checkout", type=Path, help="a SkyRL checkout; created from PyPI if it does not exist")
    parser.add_argument(
        "--nodes", type=int, default=1, help="nodes of the Ray cluster (default: 1); on Modal with 8 GPUs each"
    )
    parser.add_argument("--steps", type=int, default=60, help="training steps of both runs together (default: 60)")
    parser.add_argument("--volume", default="skyrl-data", help="name of the volume (default: skyrl-data)")
    args = parser.parse_args()
    if args.steps < 2:
        parser.error("--steps: must be at least 2, one for each run")
    missing = [name for name in (*PACKAGES, "ray") if importlib.util.find_spec(name) is None]
    if args.backend == "local" and missing:
        parser.error(f"missing in this Python: {', '.join(missing)}; pip install {' '.join(missing)}")
    return args


def main() -> None:
    """Run the quickstart."""
    args = parse_arguments()
    launcher = Launcher(
        backend=args.backend,
        checkout=published_checkout(args.checkout),
        nodes=args.nodes,
        # On Modal, clusters consist of full GPU hosts. The training itself needs no GPU.
        gpu="H100:8" if args.nodes > 1 else None,
        image=ImageSpec(pip=PACKAGES),
        volumes=[VolumeSpec(name=args.volume)],
        mounts=[MountSpec(), MountSpec(local_path=TRAINER, remote_path=f"/root/{TRAINER.name}")],
        timeout="15m",
        retries=2,
        resume="auto",
    )
    # A new folder for each call, so that the first run has no checkpoint.
    name = f"quickstart/{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    run_dir, half = f"/root/data/{name}", args.steps // 2
    prepare = shell("python", "prepare.py", "--output-dir", f'"$SKYRL_DATA/{name}/dataset"')
    train = shell(
        "bash",
        "run_quickstart.sh",
        f"data.train_data=\"['$SKYRL_DATA/{name}/dataset/train.jsonl']\"",
        f"data.val_data=\"['$SKYRL_DATA/{name}/dataset/validation.jsonl']\"",
        f'trainer.ckpt_path="$SKYRL_DATA/{name}/ckpts"',
        f'trainer.export_path="$SKYRL_DATA/{name}/exports"',
        f"trainer.epochs={math.ceil(args.steps / STEPS_PER_EPOCH)}",
    )

    first = launcher.run(f"{prepare} && {train} trainer.max_training_steps={half}", check=True)
    second = launcher.run(f"{train} trainer.max_training_steps={args.steps}", check=True)

    run = Run.attach(second.run_id)
    rows, resumed = training_rows(Run.attach(first.run_id)), training_rows(run)
    check_resumed(rows, resumed, half, args.steps)
    checkpoints = ", ".join(f"global_step_{each.step}" for each in run.checkpoints() if each.complete)
    print(
        f"\nrun 1: steps 1-{half}, {reward_line(rows)}, {first.duration:.0f} s, log {first.log_path}"
        f"\nrun 2: resumed from global_step_{half}, steps {half + 1}-{args.steps}, {reward_line(resumed)},"
        f" {second.duration:.0f} s, log {second.log_path}"
        f"\nboth:  {reward_line(rows + resumed)}"
        f"\n{run_dir} on volume {args.volume}: dataset, ckpts ({checkpoints})"
        f"\nmore:  skyrl-modal metrics {second.run_id}; skyrl-modal checkpoints {second.run_id}",
        flush=True,
    )


if __name__ == "__main__":
    try:
        main()
    except SkyRLModalError as error:
        sys.exit(f"quickstart: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
