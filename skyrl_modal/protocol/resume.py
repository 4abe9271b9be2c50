"""What a container needs to continue trainers from their newest complete checkpoint (``resume="auto"``).

The caller resolves the command and proves where arguments reach which trainer. The container fills in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from skyrl_modal.dataclass import dataclass, field
from skyrl_modal.protocol.codec import TolerantStrEnum


class TrainerKind(TolerantStrEnum):
    """The entrypoint of a trainer, which decides how it is continued."""

    TRAIN = "train"
    FULLY_ASYNC = "fully_async"
    #: Supervised fine-tuning. Its keys have no ``trainer.`` prefix.
    SFT = "sft"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeTarget:
    """One trainer that a command starts.

    Attributes:
        kind: Its entrypoint.
        program: Its name in messages.
        folder: The folder of its checkpoints in the container.
        position: The number of characters of the command after which its arguments are inserted; None if they cannot be
            passed to it. The command itself continues from the newest checkpoint then, and only the folder is repaired.
        is_shared: Whether other trainers receive the same arguments, so that they cannot name one checkpoint.
        strategy: ``"fsdp"`` or ``"megatron"``; empty if it is not known.
        has_critic: Whether it trains a critic; None if it is not known.
        world_sizes: The numbers of GPUs of ``policy`` and ``critic``, as far as they are known.
    """

    kind: TrainerKind
    folder: str
    program: str = "the trainer"
    position: int | None = None
    is_shared: bool = False
    strategy: str = ""
    has_critic: bool | None = None
    world_sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeRecord:
    """The trainers of a command.

    Attributes:
        targets: Those that can be continued.
    """

    targets: tuple[ResumeTarget, ...] = ()


def resume_overrides(kind: TrainerKind, checkpoint: str, *, is_shared: bool = False) -> dict[str, str]:
    """Return the arguments with which a trainer continues from a checkpoint. The last one of a key wins in SkyRL.

    They name the checkpoint, so that they do not depend on what another node sees of the pointer file. Trainers that
    receive the same arguments continue from their own pointer files.

    Args:
        kind: The trainer.
        checkpoint: The path of the folder ``global_step_N``.
        is_shared: Whether other trainers receive the same arguments.

    Example:
        >>> resume_overrides(TrainerKind.SFT, "/root/data/ckpts/a/global_step_20")
        {'resume_from': '/root/data/ckpts/a/global_step_20'}
        >>> resume_overrides(TrainerKind.TRAIN, "/root/data/ckpts/a/global_step_20", is_shared=True)
        {'trainer.resume_mode': 'latest'}
    """
    if kind is TrainerKind.SFT:
        return {"resume_from": "latest" if is_shared else checkpoint}
    if is_shared:
        return {"trainer.resume_mode": "latest"}
    return {"trainer.resume_mode": "from_path", "trainer.resume_path": checkpoint}


def insert_arguments(command: str, insertions: Mapping[int, Iterable[tuple[str, str]]]) -> str:
    """Return a shell command with ``key=value`` arguments at some of its positions.

    Args:
        command: The command.
        insertions: Keys and values by the number of characters after which they are inserted.

    Example:
        >>> insert_arguments("bash a.sh | tee log", {9: [("trainer.resume_mode", "latest")]})
        'bash a.sh trainer.resume_mode=latest | tee log'
    """
    import shlex  # imported here, since most runs do not need it

    for point in sorted(insertions, reverse=True):
        arguments = shlex.join(f"{key}={value}" for key, value in insertions[point])
        command = f"{command[:point]} {arguments}{command[point:]}" if arguments else command
    return command
