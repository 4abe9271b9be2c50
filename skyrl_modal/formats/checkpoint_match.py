"""Whether a trainer can load a checkpoint, by its strategy and its numbers of GPUs."""

from __future__ import annotations

from skyrl_modal.formats.checkpoints import Checkpoint, CheckpointLayout

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from collections.abc import Mapping


def find_mismatch(checkpoint: Checkpoint, *, strategy: str, world_sizes: Mapping[str, int]) -> str:
    """Return why a trainer cannot load a checkpoint; empty if it can, as far as is known.

    With FSDP, each rank loads the files with its own rank and number of ranks (``fsdp_strategy.py``,
    ``load_checkpoint``). Megatron distributes a checkpoint again.

    Args:
        checkpoint: A complete checkpoint.
        strategy: ``"fsdp"`` or ``"megatron"``; empty if it is not known.
        world_sizes: The trainer's numbers of GPUs of ``policy`` and ``critic``, as far as they are known.

    Example:
        >>> found = Checkpoint(step=20, path="/root/data/c/global_step_20", complete=True, bytes=1, world_sizes={
        ...     "policy": 8}, layout=CheckpointLayout.FSDP)
        >>> find_mismatch(found, strategy="fsdp", world_sizes={"policy": 4})
        'its policy was saved by 8 GPUs with FSDP, which has to be loaded by 8, and the command uses 4'
    """
    layout = checkpoint.layout
    if strategy and layout in (CheckpointLayout.FSDP, CheckpointLayout.MEGATRON) and strategy != layout:
        return f"it was saved with trainer.strategy={layout}, and the command uses {strategy}"
    if layout is not CheckpointLayout.FSDP:
        return ""
    for group, saved in checkpoint.world_sizes.items():
        wanted = world_sizes.get(group)
        if wanted is not None and wanted != saved:
            return (
                f"its {group} was saved by {saved} GPUs with FSDP, which has to be loaded by {saved}, and the command "
                f"uses {wanted}"
            )
    return ""
