"""Checkpoints in SkyRL's layout: `global_step_N/`, and `latest_ckpt_global_step.txt` that names the one to resume from.

A process may be killed between any two instructions here. A checkpoint is therefore written aside, forced to the disk
and renamed, and is named as the latest only after that; whatever was half-written is never looked at.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
from grpo import State

LATEST = "latest_ckpt_global_step.txt"


def save(folder: Path, state: State) -> Path:
    """Write a checkpoint and make it the latest; returns its folder."""
    target = folder / f"global_step_{state.step}"
    partial = folder / f".{target.name}.partial"
    for leftover in (partial, target):
        # A target that is there already was never named as the latest, or training would be past this step.
        if leftover.exists():
            shutil.rmtree(leftover)
    partial.mkdir(parents=True)
    with (partial / "policy.npz").open("wb") as file:
        np.savez(file, **vars(state))
        file.flush()
        os.fsync(file.fileno())
    partial.rename(target)

    pointer = folder / f".{LATEST}.partial"
    with pointer.open("w", encoding="utf-8") as text:
        text.write(str(state.step))
        text.flush()
        os.fsync(text.fileno())
    pointer.replace(folder / LATEST)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return target


def latest(folder: Path) -> Path | None:
    """The checkpoint to resume from, or None where there is none yet."""
    try:
        step = int((folder / LATEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return folder / f"global_step_{step}"


def load(path: Path) -> State:
    """Read a checkpoint."""
    with np.load(path / "policy.npz") as data:
        return State(
            step=int(data["step"]),
            updates=int(data["updates"]),
            weights=data["weights"],
            momentum=data["momentum"],
            scale=data["scale"],
        )
