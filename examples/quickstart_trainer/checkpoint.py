"""Checkpoints with the names, the order and the pitfalls of SkyRL's FSDP trainer (``RayPPOTrainer``, August 2026).

    CKPT_PATH/latest_ckpt_global_step.txt               the latest step, written last and in place
    CKPT_PATH/global_step_N/policy/                     three files for each rank, fsdp_config.json, huggingface/
    CKPT_PATH/global_step_N/data.pt, trainer_state.pt   position in the data; step and configuration

A process that is killed while it writes leaves an incomplete folder, or an empty file with the latest step. The next
start then fails, as SkyRL's does, unless the launcher was created with ``resume="auto"``.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import moments
import numpy as np
import torch_files
from grpo import State
from loguru import logger

LATEST = "latest_ckpt_global_step.txt"
PREFIX = "global_step_"
STRATEGY = "fsdp"


def save(ckpt_path: Path, state: State, *, data: dict[str, Any], config: dict[str, Any], ranks: int) -> Path:
    """Write a checkpoint, record it as the latest, and return its folder.

    Args:
        ckpt_path: The folder with all checkpoints.
        state: The state of the training.
        data: The position in the data.
        config: The configuration.
        ranks: Number of parts that the weights are saved in, one for each GPU of a trainer with FSDP.
    """
    folder = ckpt_path / f"{PREFIX}{state.step}"
    policy = folder / "policy"
    policy.mkdir(parents=True, exist_ok=True)
    parts = {name: np.array_split(getattr(state, name), ranks) for name in ("weights", "momentum", "scale")}
    for rank in range(ranks):
        model, optim, extra = _rank_files(policy, ranks, rank)
        torch_files.save(model, {"weights": parts["weights"][rank]})
        optimizer = {"momentum": parts["momentum"][rank], "scale": parts["scale"][rank], "updates": state.updates}
        torch_files.save(optim, optimizer)
        facts = {"fsdp_strategy": STRATEGY, "world_size": ranks, "rank": rank}
        torch_files.save(extra, {"lr_scheduler": {}, "client_state": {}, "tag": None, **facts})
    (policy / "huggingface").mkdir(exist_ok=True)
    _write_json(
        policy / "huggingface" / "config.json", {"model_type": "quickstart", "shape": list(state.weights.shape)}
    )
    _write_json(policy / "fsdp_config.json", {"fsdp_strategy": STRATEGY, "world_size": ranks})
    torch_files.save(folder / "data.pt", data)
    torch_files.save(folder / "trainer_state.pt", {"global_step": state.step, "config": config})

    with (ckpt_path / LATEST).open("w", encoding="utf-8") as file:
        moments.reached(f"empty {LATEST}")
        file.write(str(state.step))
    logger.info(f"Successfully saved checkpoint for {folder.name} to: {folder}")
    return folder


def remove_old(ckpt_path: Path, keep: int) -> None:
    """Remove all checkpoints but the newest ones. A negative number keeps all."""
    folders = sorted(_folders(ckpt_path), key=_step_of)
    for folder in folders[: max(len(folders) - keep, 0)] if keep >= 0 else []:
        shutil.rmtree(folder)
        logger.info(f"Cleaned up old checkpoint: {folder.name}")


def find(ckpt_path: Path, *, mode: str | None, path: str | None, interval: int) -> Path | None:
    """Return the checkpoint to continue from; None to begin at step 0.

    Args:
        ckpt_path: The folder with all checkpoints.
        mode: ``trainer.resume_mode``: latest, from_path, or none.
        path: ``trainer.resume_path``.
        interval: ``trainer.ckpt_interval``.

    Raises:
        ValueError: The file with the latest step is damaged, or much newer checkpoints exist.
        FileNotFoundError: The checkpoint does not exist.
    """
    if mode is None or mode.lower() == "none":
        logger.info("Checkpoint resumption disabled, starting training from scratch")
        return None
    if mode == "from_path":
        if not path or not Path(path).name.startswith(PREFIX):
            raise ValueError(f"`trainer.resume_path` must point to a directory whose name starts with {PREFIX}: {path}")
        folder = Path(path)
    elif mode == "latest":
        if not (ckpt_path / LATEST).exists():
            logger.info("No checkpoint found, starting training from scratch")
            return None
        step = int((ckpt_path / LATEST).read_text(encoding="utf-8").strip())
        newest = max(map(_step_of, _folders(ckpt_path)), default=step)
        if newest - step > interval:
            raise ValueError(f"Inconsistent checkpoint folder. {LATEST} has {step}, and there is {PREFIX}{newest}")
        folder = ckpt_path / f"{PREFIX}{step}"
    else:
        raise ValueError(f"trainer.resume_mode must be latest, from_path or none: {mode}")
    if not folder.exists():
        raise FileNotFoundError(f"Checkpoint path not found: {folder}")
    return folder


def load(folder: Path, ranks: int) -> tuple[State, dict[str, Any] | None]:
    """Read a checkpoint: the state, and the position in the data. It is None if there is none.

    Raises:
        FileNotFoundError: A file is missing, or it was written with another number of ranks.
        ValueError: A file is damaged.
    """
    logger.info(f"Loading checkpoint from: {folder}")
    if not (folder / "trainer_state.pt").exists():
        raise FileNotFoundError(f"Trainer state file not found: {folder / 'trainer_state.pt'}")
    torch_files.load(folder / "trainer_state.pt")
    data = torch_files.load(folder / "data.pt") if (folder / "data.pt").exists() else None
    if data is None:
        logger.warning(f"No dataloader state found at {folder / 'data.pt'}. It will start from the beginning.")
    models, optimizers = [], []
    for rank in range(ranks):
        model, optim, extra = _rank_files(folder / "policy", ranks, rank)
        for path in (model, extra):
            if not path.exists():
                raise FileNotFoundError(f"Model checkpoint not found: {path}")
        models.append(torch_files.load(model))
        optimizers.append(torch_files.load(optim))
        torch_files.load(extra)
    state = State(
        step=_step_of(folder),
        updates=optimizers[0]["updates"],
        weights=np.concatenate([model["weights"] for model in models]),
        momentum=np.concatenate([optim["momentum"] for optim in optimizers]),
        scale=np.concatenate([optim["scale"] for optim in optimizers]),
    )
    logger.info(f"Resuming from {PREFIX}{state.step}")
    return state, data


def _rank_files(policy: Path, ranks: int, rank: int) -> tuple[Path, Path, Path]:
    model, optim, extra = (policy / f"{name}_world_size_{ranks}_rank_{rank}.pt" for name in _RANK_FILES)
    return model, optim, extra


_RANK_FILES = ("model", "optim", "extra_state")


def _folders(ckpt_path: Path) -> list[Path]:
    return [path for path in ckpt_path.glob(f"{PREFIX}*") if path.is_dir() and _step_of(path) >= 0]


def _step_of(folder: Path) -> int:
    found = re.fullmatch(rf"{PREFIX}(\d+)", folder.name)
    return int(found[1]) if found else -1


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=4), encoding="utf-8")
