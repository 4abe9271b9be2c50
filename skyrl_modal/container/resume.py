"""Before an attempt: choose the newest complete checkpoint, repair its folder, and set the trainer's arguments.

It is imported only in containers of runs with ``resume="auto"``. Nothing is deleted: what is in the way is moved to the
folder ``incomplete`` of the checkpoint folder.
"""

from __future__ import annotations

import os

from skyrl_modal.container.failures import Failure, StartError, describe_error
from skyrl_modal.dataclass import dataclass
from skyrl_modal.formats.checkpoint_listing import FolderListing
from skyrl_modal.formats.checkpoint_match import find_mismatch
from skyrl_modal.formats.checkpoints import (
    POINTER_FILE,
    STEP_PREFIX,
    Checkpoint,
    CheckpointFolder,
    CheckpointLayout,
)
from skyrl_modal.protocol.resume import ResumeTarget, TrainerKind, insert_arguments, resume_overrides
from skyrl_modal.protocol.run_folder import write_atomically
from skyrl_modal.protocol.state import FailureCause

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from skyrl_modal.protocol.resume import ResumeRecord

#: The folder for what is moved aside, in the folder of the checkpoints. SkyRL reads only names with ``global_step_``.
INCOMPLETE_FOLDER = "incomplete"
#: Reasons and names that a message contains at most.
_MAX_LISTED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumedCommand:
    """How an attempt is started.

    Attributes:
        command: The command with the arguments that continue its trainers.
        message: What was chosen and changed, in one line for each folder; None if there is nothing to report.
        step: The greatest step that a trainer continues from; None if all begin afresh.
    """

    command: str
    message: str | None
    step: int | None


def resume_command(record: ResumeRecord, command: str, attempt: int) -> ResumedCommand:
    """Prepare the checkpoint folders of an attempt, and return its command.

    Args:
        record: The trainers of the command.
        command: The command as its author wrote it.
        attempt: The number of the attempt, from 1.

    Raises:
        StartError: A trainer could not load its newest checkpoint, for example since it has another number of GPUs.
    """
    insertions: dict[int, dict[str, str]] = {}
    messages: dict[str, None] = {}
    steps: list[int] = []
    for target in record.targets:
        chosen = _FolderRepair(target, attempt).run(messages)
        steps += [] if chosen is None else [chosen.step]
        if chosen is not None and target.position is not None:
            overrides = resume_overrides(target.kind, chosen.path, is_shared=target.is_shared)
            insertions.setdefault(target.position, {}).update(overrides)
    changed = insert_arguments(command, {point: list(pairs.items()) for point, pairs in insertions.items()})
    return ResumedCommand(command=changed, message="\n".join(messages) or None, step=max(steps, default=None))


class _FolderRepair:
    """Makes the folder of one trainer ready to continue from."""

    def __init__(self, target: ResumeTarget, attempt: int) -> None:
        self._target = target
        self._attempt = attempt
        self._changes: list[str] = []

    def run(self, messages: dict[str, None]) -> Checkpoint | None:
        """Repair the folder, and return the checkpoint to continue from; None if there is none."""
        target = self._target
        try:
            found = CheckpointFolder(
                FolderListing(target.folder),
                target.folder,
                is_fully_async=target.kind is TrainerKind.FULLY_ASYNC,
                has_critic=target.has_critic,
            )
        except OSError as error:
            messages[f"resume: {target.folder} cannot be read ({describe_error(error)}); the command is unchanged"] = (
                None
            )
            return None
        chosen = found.newest_loadable()
        newer = [found.checkpoint(step) for step in found.steps if chosen is None or step > chosen.step]
        if chosen is None and any(each.layout is CheckpointLayout.UNKNOWN for each in newer):
            self._add(messages, "its checkpoints have files of another program, so that nothing is changed")
            return None
        if chosen is not None:
            _refuse_mismatch(target, chosen)
        for each in newer:
            self._move_aside(f"{STEP_PREFIX}{each.step}", _short(each.missing))
        if target.is_shared or target.position is None:  # SkyRL reads all names if it continues from the pointer
            for name in found.misnamed:
                self._move_aside(name, "its name ends in no step")
        self._repair_pointer(found, chosen)
        message = self._message(chosen)
        if message:
            messages[message] = None
        return chosen

    def _add(self, messages: dict[str, None], text: str) -> None:
        messages[f"resume: {self._target.folder}: {text}"] = None

    def _move_aside(self, name: str, reason: str) -> None:
        folder = os.path.join(self._target.folder, INCOMPLETE_FOLDER)
        shown = ascii(name)[1:-1]
        try:
            os.makedirs(folder, exist_ok=True)
            place = _unused_name(folder, f"{name}.{self._attempt}")
            os.rename(os.path.join(self._target.folder, name), os.path.join(folder, place))
        except OSError as error:
            self._changes.append(f"{shown} ({reason}) could not be moved aside: {error.strerror or error}")
            return
        self._changes.append(f"moved {shown} to {INCOMPLETE_FOLDER}/{ascii(place)[1:-1]} ({reason})")

    def _repair_pointer(self, found: CheckpointFolder, chosen: Checkpoint | None) -> None:
        pointer = found.pointer()
        if chosen is None:
            if pointer.exists:  # SkyRL would fail, since what it names cannot be loaded
                self._move_aside(POINTER_FILE, pointer.problem or f"no checkpoint of step {pointer.step} can be loaded")
            return
        if pointer.step == chosen.step:
            return
        old = pointer.problem or (f"it named step {pointer.step}" if pointer.exists else "it did not exist")
        path = os.path.join(self._target.folder, POINTER_FILE)
        try:
            if os.path.isdir(path) and not os.path.islink(path):
                self._move_aside(POINTER_FILE, "a folder")
            write_atomically(path, str(chosen.step).encode())
        except OSError as error:
            if self._target.is_shared or self._target.position is None:
                raise
            self._changes.append(f"{POINTER_FILE} could not be repaired: {error.strerror or error}")
            return
        self._changes.append(f"wrote {chosen.step} to {POINTER_FILE} ({old})")

    def _message(self, chosen: Checkpoint | None) -> str:
        changes = "; ".join(self._changes)
        if chosen is not None:
            text = f"resume: {self._target.program} continues from {chosen.path}"
            if not chosen.complete:
                text += " (data.pt is missing, so its data begin at their start)"
            return f"{text}; {changes}" if changes else text
        if self._changes or self._attempt > 1:
            text = f"resume: no complete checkpoint in {self._target.folder}; {self._target.program} starts as it is"
            return f"{text}; {changes}" if changes else text
        return ""


def _refuse_mismatch(target: ResumeTarget, chosen: Checkpoint) -> None:
    problem = find_mismatch(chosen, strategy=target.strategy, world_sizes=target.world_sizes)
    if problem:
        summary = f"{target.program} cannot continue from {chosen.path}: {problem}"
        raise StartError(Failure(FailureCause.CHECKPOINT_MISMATCH, summary))


def _unused_name(folder: str, name: str) -> str:
    number, candidate = 1, name
    while os.path.lexists(os.path.join(folder, candidate)):
        number += 1
        candidate = f"{name}-{number}"
    return candidate


def _short(reasons: tuple[str, ...]) -> str:
    more = len(reasons) - _MAX_LISTED
    return ", ".join(reasons[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
