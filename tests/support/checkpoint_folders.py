"""Checkpoint folders with the names and the JSON that SkyRL writes, and without models."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

POINTER = "latest_ckpt_global_step.txt"


def write_state(path: Path, size: int = 64) -> None:
    """Write a zip file as ``torch.save`` does: one folder with a pickle and data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{path.stem}/data.pkl", b"\x80\x02}.")
        archive.writestr(f"{path.stem}/data/0", b"\1" * size)


def write_fsdp_model(folder: Path, world_size: int = 2) -> None:
    """Write what ``fsdp_strategy.py`` saves for a model."""
    for rank in range(world_size):
        for kind in ("model", "optim", "extra_state"):
            write_state(folder / f"{kind}_world_size_{world_size}_rank_{rank}.pt")
    (folder / "huggingface").mkdir(exist_ok=True)
    (folder / "huggingface" / "config.json").write_text("{}")
    config = {"fsdp_strategy": "fsdp2", "world_size": world_size}
    (folder / "fsdp_config.json").write_text(json.dumps(config, indent=4))


def write_megatron_model(folder: Path, ranks: int = 2) -> None:
    """Write what ``megatron_strategy.py`` saves for a model."""
    (folder / "huggingface").mkdir(parents=True, exist_ok=True)
    (folder / "huggingface" / "config.json").write_text("{}")
    for rank in range(ranks):
        for number in range(2):
            (folder / f"__{rank}_{number}.distcp").write_bytes(b"\1" * 64)
    write_state(folder / "common.pt")
    (folder / ".metadata").write_bytes(b"\x80\x02.")
    metadata = {"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch"}
    (folder / "metadata.json").write_text(json.dumps(metadata))


def write_checkpoint(
    folder: Path,
    step: int,
    *,
    world_size: int = 2,
    is_megatron: bool = False,
    has_critic: bool = False,
    is_fully_async: bool = False,
    has_pointer: bool = True,
) -> Path:
    """Write a complete checkpoint and the pointer, in SkyRL's order, and return its folder."""
    target = folder / f"global_step_{step}"
    for group in ("policy", *(["critic"] if has_critic else [])):
        if is_megatron:
            write_megatron_model(target / group)
        else:
            write_fsdp_model(target / group, world_size)
    write_state(target / "data.pt")
    write_state(target / "trainer_state.pt")
    if has_pointer:
        (folder / POINTER).write_text(str(step))
    if is_fully_async:
        write_state(target / "fully_async_state.pt")
    return target


def cut(path: Path, part: float = 0.5) -> None:
    """Leave only the first part of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
