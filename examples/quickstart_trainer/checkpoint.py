"""Checkpoints in SkyRL's layout: folders `global_step_N/`, and `latest_ckpt_global_step.txt` with the latest step.

The process may be killed between any two instructions. A checkpoint is therefore written to a temporary folder, flushed
to disk and renamed, and recorded as the latest only after that. Incomplete checkpoints are never read.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
from grpo import State

LATEST = "latest_ckpt_global_step.txt"


def save(folder: Path, state: State) -> Path:
    """Write a checkpoint, record it as the latest, and return its folder."""
    target = folder / f"global_step_{state.step}"
    partial = folder / f".{target.name}.partial"
    for leftover in (partial, target):
        # An existing target was not recorded as the latest; otherwise training would have resumed after this step.
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
    """Return the checkpoint to resume from, or None if there is none."""
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
