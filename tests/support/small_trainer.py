"""A trainer without a model, which has SkyRL's arguments, writes SkyRL's checkpoints, and resumes as SkyRL does.

``add_to_checkout`` copies it to where SkyRL's entrypoint is, so that it is resolved as one. Its loading follows
``load_checkpoints`` in SkyRL's ``train/trainer.py``, with the same errors.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

MODULE = "skyrl/train/entrypoints/main_base.py"
SCRIPT = "train.sh"
#: As in 58 of SkyRL's scripts, a restart begins at step 0.
SCRIPT_TEXT = """set -e
python -m skyrl.train.entrypoints.main_base trainer.strategy=fsdp trainer.placement.policy_num_nodes=1 \\
  trainer.placement.policy_num_gpus_per_node=${WORLD:-2} trainer.ckpt_path=$SKYRL_DATA/ckpts/a \\
  trainer.ckpt_interval=2 trainer.resume_mode=null "$@"
"""
STEPS = 6


def add_to_checkout(root: Path, script: str = SCRIPT_TEXT) -> None:
    """Write the trainer and a script that starts it to a checkout."""
    target = root / MODULE
    for folder in (target.parent, target.parent.parent):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").touch()
    shutil.copyfile(__file__, target)
    shutil.copyfile(Path(__file__).with_name("checkpoint_folders.py"), target.parent / "checkpoint_folders.py")
    (root / SCRIPT).write_text(script)


def load(config: dict[str, str]) -> int:
    """Return the step to continue after, as SkyRL does it."""
    folder = Path(config["trainer.ckpt_path"])
    mode = config.get("trainer.resume_mode", "latest")
    if mode in ("null", "none", ""):
        return 0
    if mode == "latest":
        pointer = folder / "latest_ckpt_global_step.txt"
        if not pointer.exists():
            return 0
        number = int(pointer.read_text().strip())
        steps = [int(path.name.split("global_step_")[1]) for path in folder.glob("global_step_*")]
        if max(steps) - number > int(config["trainer.ckpt_interval"]):
            raise ValueError("Inconsistent checkpoint folder.")
        checkpoint = folder / f"global_step_{number}"
    else:
        checkpoint = Path(config["trainer.resume_path"])
    world = int(config["trainer.placement.policy_num_gpus_per_node"])
    names = [f"policy/model_world_size_{world}_rank_{rank}.pt" for rank in range(world)]
    for name in ("trainer_state.pt", "data.pt", *names):
        if not (checkpoint / name).exists():
            raise FileNotFoundError(f"{checkpoint / name} not found")
    return int(checkpoint.name.split("global_step_")[1])


def train() -> None:
    """Train from the last checkpoint to the last step, with a fault in the first attempt.

    ``EXIT_AT`` has the steps after which the attempts exit with code 9, in their order; 0 is before the first step.
    """
    from skyrl.train.entrypoints import checkpoint_folders

    import skyrl_modal  # found through the hook of the run

    config = dict(argument.split("=", 1) for argument in sys.argv[1:])
    folder, interval = Path(config["trainer.ckpt_path"]), int(config["trainer.ckpt_interval"])
    world = int(config["trainer.placement.policy_num_gpus_per_node"])
    fault = os.environ.get("FAULT", "") if os.environ["SKYRL_ATTEMPT"] == "1" else ""
    begin = load(config)
    print(f"begins after step {begin}", flush=True)
    ends = dict(enumerate(map(int, os.environ.get("EXIT_AT", "").split()), start=1))
    exit_at = ends.get(int(os.environ["SKYRL_ATTEMPT"]))
    if exit_at == 0:
        sys.exit(9)
    for step in range(begin + 1, STEPS + 1):
        print(f"step {step}", flush=True)
        skyrl_modal.log_metrics({"reward": step / STEPS}, step=step)
        if step == exit_at:
            sys.exit(9)
        if step % interval:
            continue
        is_faulty = bool(fault) and step == 4
        target = checkpoint_folders.write_checkpoint(folder, step, world_size=world, has_pointer=not is_faulty)
        if is_faulty:
            damage(fault, folder, target)
    if os.environ.get("WAIT_FOR") and begin < STEPS:
        while not os.path.exists(os.environ["WAIT_FOR"]):
            time.sleep(0.05)


def damage(fault: str, folder: Path, target: Path) -> None:
    """Leave what a kill leaves at a moment of ``save_checkpoints``, and end."""
    pointer = folder / "latest_ckpt_global_step.txt"
    if fault == "cut pointer":
        pointer.write_text("")
    elif fault == "incomplete":
        (target / "trainer_state.pt").unlink()
    elif fault == "before the model":
        shutil.rmtree(target)
        target.mkdir()
    elif fault == "pointer names an incomplete one":
        pointer.write_text("4")
        (target / "policy" / "optim_world_size_2_rank_1.pt").unlink()
    elif fault == "everything":
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
                path.mkdir()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    train()
