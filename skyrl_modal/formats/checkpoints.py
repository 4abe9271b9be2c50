"""SkyRL's checkpoint folders: which checkpoints there are, which of them are complete, and what the others lack.

Nothing is unpickled, and PyTorch is not needed: names, sizes, two small JSON files and the ends of zip files show
whether a checkpoint can be loaded. The sources are ``train/trainer.py`` (``save_checkpoints``, ``load_checkpoints``),
``train/fully_async_trainer.py``, ``train/sft_trainer.py`` and the two strategies in
``backends/skyrl_train/distributed`` of SkyRL, August 2026::

    CKPT_PATH/latest_ckpt_global_step.txt       the pointer: a number, written last, in place
    CKPT_PATH/global_step_N/trainer_state.pt    after the model; data.pt before it
    CKPT_PATH/global_step_N/fully_async_state.pt   fully async only, after the pointer
    CKPT_PATH/global_step_N/policy/, critic/
        FSDP: {model,optim,extra_state}_world_size_W_rank_R.pt for each rank, fsdp_config.json
        Megatron: *.distcp, and metadata.json when all of them are written
"""

from __future__ import annotations

import json
import re
import struct

from skyrl_modal.dataclass import dataclass, field
from skyrl_modal.formats.checkpoint_listing import MAX_ENTRIES, Entry, EntryKind
from skyrl_modal.protocol.codec import TolerantStrEnum

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from skyrl_modal.formats.checkpoint_listing import Listing

POINTER_FILE = "latest_ckpt_global_step.txt"
STEP_PREFIX = "global_step_"
TRAINER_STATE, DATA_STATE, FULLY_ASYNC_STATE = "trainer_state.pt", "data.pt", "fully_async_state.pt"
POLICY, CRITIC = "policy", "critic"
FSDP_CONFIG, MEGATRON_METADATA = "fsdp_config.json", "metadata.json"

#: As SkyRL writes it. ``global_step_020`` or ``global_step_5.old`` end a run that resumes with ``latest``.
_STEP_NAME = re.compile(rf"{STEP_PREFIX}(0|[1-9][0-9]{{0,17}})")
_SHARD = re.compile(r"(model|optim|extra_state)_world_size_([0-9]{1,6})_rank_([0-9]{1,6})\.pt")
#: What Megatron writes before metadata.json besides the shards (megatron-core 0.16.1, dist_checkpointing).
_MEGATRON_OTHERS = ("common.pt", ".metadata")
_SHARD_KINDS = ("model", "optim", "extra_state")
_MAX_POINTER_BYTES, _MAX_JSON_BYTES, _MAX_WORLD_SIZE = 64, 1 << 20, 1 << 16
#: Reasons that are listed for each folder; the rest is counted.
_MAX_REASONS = 12

#: The end of a zip file: signature, disk numbers, entries, size and offset of the directory, length of the comment.
_ZIP_END = struct.Struct("<4s4H2LH")
_ZIP_BEGIN, _ZIP_END_SIGNATURE, _ZIP64 = b"PK\x03\x04", b"PK\x05\x06", 0xFFFFFFFF


class CheckpointLayout(TolerantStrEnum):
    """How the model of a checkpoint is stored."""

    FSDP = "fsdp"
    MEGATRON = "megatron"
    #: There is no file of a model.
    EMPTY = "empty"
    #: There are files of a model, and none of those that SkyRL's strategies write.
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One folder ``global_step_N``.

    Attributes:
        step: N.
        path: The folder's path in the container.
        complete: Whether everything is there that SkyRL writes, as far as it can be seen without PyTorch.
        bytes: Size of all of its files.
        missing: What is missing or damaged, each with its file; empty for a complete one.
        layout: How the model is stored.
        world_sizes: With FSDP, the number of GPUs of ``policy`` and ``critic``, which is needed again to load them.
        is_loadable: Whether SkyRL loads it. This is also the case if only the position in the data is missing: the data
            then begin at their start.

    Example:
        >>> Checkpoint(step=20, path="/root/data/ckpts/a/global_step_20", complete=True, bytes=4096)
        Checkpoint(step=20, path='/root/data/ckpts/a/global_step_20', complete=True, bytes=4096)
    """

    step: int
    path: str
    complete: bool
    bytes: int
    missing: tuple[str, ...] = field(default=(), repr=False)
    layout: CheckpointLayout = field(default=CheckpointLayout.UNKNOWN, repr=False)
    world_sizes: Mapping[str, int] = field(default_factory=dict, repr=False)
    is_loadable: bool = field(default=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointer:
    """The file with the number of the newest checkpoint.

    Attributes:
        step: The number; None if there is none.
        exists: Whether there is an entry with the name of the file.
        problem: Why SkyRL could not continue from it; empty if it could, and if there is no file.
    """

    step: int | None = None
    exists: bool = False
    problem: str = ""


class CheckpointFolder:
    """A checkpoint folder, as it was when it was listed. Each checkpoint is examined when it is asked for.

    Args:
        listing: The folder.
        path: Its path in the container.
        is_fully_async: Whether fully asynchronous training writes it; None to find it out from the folder.
        has_critic: Whether the training has a critic; None to find it out from each checkpoint.

    Raises:
        OSError: The folder exists, and cannot be listed.

    Attributes:
        path: Its path in the container.
        steps: The steps of its checkpoints, in ascending order.
        misnamed: Further names that begin with ``global_step_``.
    """

    def __init__(
        self, listing: Listing, path: str, *, is_fully_async: bool | None = None, has_critic: bool | None = None
    ) -> None:
        self._listing = listing
        self.path = path.rstrip("/") or "/"
        self._has_critic = has_critic
        self._is_fully_async = is_fully_async
        self._own = {entry.path: entry for entry in listing.entries()}
        self._below: dict[str, Mapping[str, Entry]] = {}
        names = {name: match for name in self._own if (match := _STEP_NAME.fullmatch(name))}
        self.steps = tuple(sorted(int(match[1]) for match in names.values()))
        self.misnamed = tuple(sorted(name for name in self._own if name.startswith(STEP_PREFIX) and name not in names))

    def checkpoint(self, step: int) -> Checkpoint:
        """Return what is known about the checkpoint of a step, one of ``steps``."""
        name = f"{STEP_PREFIX}{step}"
        entry, path = self._own[name], f"{self.path}/{name}".replace("//", "/")
        if entry.kind is not EntryKind.FOLDER:
            return Checkpoint(
                step=step, path=path, complete=False, bytes=entry.size, missing=(_not_a("folder", entry),)
            )
        try:
            inside, needs_async_state = self._entries_below(name), self._needs_fully_async_state(name)
        except OSError as error:
            reason = f"it cannot be listed: {error.strerror or error}"
            return Checkpoint(step=step, path=path, complete=False, bytes=0, missing=(reason,))
        reader = _StepReader(inside, lambda p, o, s: self._listing.read(f"{name}/{p}", o, s))
        needed = [TRAINER_STATE, DATA_STATE, *([FULLY_ASYNC_STATE] if needs_async_state else [])]
        reasons = {file: reason for file in needed if (reason := reader.state_file(file))}
        policy = reader.model(POLICY)
        models, parts = {POLICY: policy}, [*policy.missing]
        if self._has_critic or (self._has_critic is None and reader.has(CRITIC)):
            models[CRITIC] = critic = reader.model(CRITIC)
            parts += critic.missing
        if len(inside) >= MAX_ENTRIES:
            parts.append(f"the folder has more than {MAX_ENTRIES:,} entries and was not examined completely")
        missing = [*reasons.values(), *parts]
        return Checkpoint(
            step=step,
            path=path,
            complete=not missing,
            bytes=sum(entry.size for entry in inside.values()),
            missing=tuple(missing),
            layout=policy.layout,
            world_sizes={group: model.world_size for group, model in models.items() if model.world_size},
            is_loadable=not parts and set(reasons) <= {DATA_STATE},
        )

    def _entries_below(self, name: str) -> Mapping[str, Entry]:
        if name not in self._below:
            self._below[name] = {entry.path: entry for entry in self._listing.entries_below(name)}
        return self._below[name]

    def _needs_fully_async_state(self, name: str) -> bool:
        """Return whether fully asynchronous training writes a checkpoint.

        If it is not known, the checkpoint or the one before it shows it: the state is written last.
        """
        if self._is_fully_async is not None:
            return self._is_fully_async
        position = self.steps.index(int(name.removeprefix(STEP_PREFIX)))
        names = [name, *(f"{STEP_PREFIX}{step}" for step in self.steps[max(0, position - 1) : position])]
        folders = (each for each in names if self._own[each].kind is EntryKind.FOLDER)
        return any(FULLY_ASYNC_STATE in self._entries_below(each) for each in folders)

    def checkpoints(self) -> list[Checkpoint]:
        """Return all checkpoints, in ascending order of their steps."""
        return [self.checkpoint(step) for step in self.steps]

    def newest_complete(self) -> Checkpoint | None:
        """Return the newest complete checkpoint; None if there is none. Older ones are not examined."""
        return next((found for found in self._newest_first() if found.complete), None)

    def newest_loadable(self) -> Checkpoint | None:
        """Return the newest complete checkpoint, or else the newest one that lacks only its position in the data."""
        examined = []
        for found in self._newest_first():
            if found.complete:
                return found
            examined.append(found)
        return next((found for found in examined if found.is_loadable), None)

    def _newest_first(self) -> Iterator[Checkpoint]:
        return (self.checkpoint(step) for step in reversed(self.steps))

    def pointer(self) -> Pointer:
        """Return what the pointer file contains, as SkyRL reads it."""
        entry = self._own.get(POINTER_FILE)
        if entry is None:
            return Pointer()
        if entry.kind is not EntryKind.FILE:
            return Pointer(exists=True, problem=_not_a("regular file", entry))
        if entry.size > _MAX_POINTER_BYTES:
            return Pointer(exists=True, problem="it is larger than a number")
        try:
            content = self._listing.read(POINTER_FILE, 0, _MAX_POINTER_BYTES)
        except OSError as error:
            return Pointer(exists=True, problem=f"it cannot be read: {error.strerror or error}")
        text = (content or b"").strip()
        if not text:
            return Pointer(exists=True, problem="it is empty")
        if not text.isdigit() or len(text) > 18:
            return Pointer(exists=True, problem=f"it contains {text.decode('utf-8', 'replace')!a}, which is no step")
        step = int(text)
        if step not in self.steps:
            return Pointer(step=step, exists=True, problem=f"{STEP_PREFIX}{step} does not exist")
        return Pointer(step=step, exists=True)


@dataclass(frozen=True, slots=True)
class _Model:
    layout: CheckpointLayout
    missing: Sequence[str] = ()
    world_size: int = 0


class _StepReader:
    """Examines the files of one checkpoint."""

    def __init__(self, entries: Mapping[str, Entry], read: Callable[[str, int, int], bytes | None]) -> None:
        self._entries = entries
        self._read = read

    def has(self, path: str) -> bool:
        """Return whether there is such an entry, or one below it."""
        return path in self._entries or any(name.startswith(f"{path}/") for name in self._entries)

    def state_file(self, path: str) -> str:
        """Return what is wrong with a file of ``torch.save``; empty if nothing is."""
        entry = self._entries.get(path)
        if entry is None:
            return f"{path}: missing"
        if entry.kind is not EntryKind.FILE:
            return f"{path}: {_not_a('regular file', entry)}"
        if entry.size == 0:
            return f"{path}: empty"
        try:
            problem = _zip_problem(lambda offset, size: self._read(path, offset, size), entry.size)
        except OSError as error:
            return f"{path}: cannot be read: {error.strerror or error}"
        return f"{path}: {problem}" if problem else ""

    def model(self, group: str) -> _Model:
        """Return what is known about the model in a folder."""
        folder = self._entries.get(group)
        if folder is not None and folder.kind is not EntryKind.FOLDER:
            return _Model(CheckpointLayout.EMPTY, [f"{group}/: {_not_a('folder', folder)}"])
        names = [path[len(group) + 1 :] for path in self._entries if path.startswith(f"{group}/")]
        names = [name for name in names if "/" not in name]
        shards = [match for name in names if (match := _SHARD.fullmatch(name))]
        if FSDP_CONFIG in names or shards:
            return self._fsdp(group, {int(match[2]) for match in shards})
        if MEGATRON_METADATA in names or any(name.endswith(".distcp") for name in names):
            return self._megatron(group, names)
        if any(self._entries[f"{group}/{name}"].kind is not EntryKind.FOLDER for name in names):
            reason = f"{group}/: neither {FSDP_CONFIG} (FSDP) nor {MEGATRON_METADATA} (Megatron)"
            return _Model(CheckpointLayout.UNKNOWN, [reason])
        return _Model(CheckpointLayout.EMPTY, [f"{group}/: {'empty' if folder else 'missing'}"])

    def _fsdp(self, group: str, found_sizes: set[int]) -> _Model:
        config, reason = self._json(f"{group}/{FSDP_CONFIG}")
        reasons = [reason] if reason else []
        size = config.get("world_size")
        if not reason and not (type(size) is int and 0 < size <= _MAX_WORLD_SIZE):
            reasons.append(f"{group}/{FSDP_CONFIG}: it has no valid world_size")
        if not (type(size) is int and 0 < size <= _MAX_WORLD_SIZE):
            size = max((number for number in found_sizes if 0 < number <= _MAX_WORLD_SIZE), default=0)
        names = (f"{group}/{kind}_world_size_{size}_rank_{rank}.pt" for rank in range(size) for kind in _SHARD_KINDS)
        problems = [problem for name in names if (problem := self.state_file(name))]
        reasons += problems[:_MAX_REASONS]
        if len(problems) > _MAX_REASONS:
            reasons.append(f"{group}/: {len(problems) - _MAX_REASONS:,} further files of {3 * size:,}")
        return _Model(CheckpointLayout.FSDP, reasons, size)

    def _megatron(self, group: str, names: Sequence[str]) -> _Model:
        metadata, reason = self._json(f"{group}/{MEGATRON_METADATA}")
        reasons = [reason] if reason else []
        if not reason and not isinstance(metadata.get("sharded_backend"), str):
            reasons.append(f"{group}/{MEGATRON_METADATA}: it has no sharded_backend")
        others = [f"{group}/{name}" for name in _MEGATRON_OTHERS if name in names]
        reasons += [problem for name in others if (problem := self.state_file(name))]
        shards = [self._entries[f"{group}/{name}"] for name in sorted(names) if name.endswith(".distcp")]
        if not shards:
            reasons.append(f"{group}/*.distcp: missing")
        bad = [entry for entry in shards if entry.kind is not EntryKind.FILE or entry.size == 0]
        reasons += [
            f"{ascii(entry.path)[1:-1]}: {'empty' if entry.kind is EntryKind.FILE else _not_a('regular file', entry)}"
            for entry in bad[:_MAX_REASONS]
        ]
        if len(bad) > _MAX_REASONS:
            reasons.append(f"{group}/: {len(bad) - _MAX_REASONS:,} further files")
        return _Model(CheckpointLayout.MEGATRON, reasons)

    def _json(self, path: str) -> tuple[Mapping[str, object], str]:
        """Return the JSON object in a file, and what is wrong with it."""
        entry = self._entries.get(path)
        if entry is None:
            return {}, f"{path}: missing"
        if entry.kind is not EntryKind.FILE:
            return {}, f"{path}: {_not_a('regular file', entry)}"
        if entry.size > _MAX_JSON_BYTES:
            return {}, f"{path}: larger than {_MAX_JSON_BYTES >> 20} MiB"
        try:
            content = self._read(path, 0, _MAX_JSON_BYTES)
            value = json.loads(content or b"")
        except OSError as error:
            return {}, f"{path}: cannot be read: {error.strerror or error}"
        except (ValueError, RecursionError):  # also a number with too many digits, and invalid UTF-8
            return {}, f"{path}: no valid JSON"
        return (value, "") if isinstance(value, dict) else ({}, f"{path}: no JSON object")


def _not_a(wanted: str, entry: Entry) -> str:
    if entry.kind is EntryKind.LINK:
        return "a symbolic link, which is not followed"
    return f"not a {wanted}"


def _zip_problem(read: Callable[[int, int], bytes | None], size: int) -> str:
    """Return what is wrong with a file of ``torch.save``, which is a zip file whose directory is at its end.

    A file that is no zip file may be of another program, and counts as complete.
    """
    begin = read(0, len(_ZIP_BEGIN))
    if begin is None:
        return ""  # only sizes are known
    if not begin.strip(b"\0"):
        return "it begins with zeros: it was not written completely"
    if begin != _ZIP_BEGIN:
        return "" if size >= len(_ZIP_BEGIN) or not _ZIP_BEGIN.startswith(begin) else "cut off"
    tail = read(max(0, size - _ZIP_END.size), _ZIP_END.size) or b""
    if len(tail) == _ZIP_END.size:
        signature, _, _, _, _, directory_size, offset, comment = _ZIP_END.unpack(tail)
        is_inside = _ZIP64 in (directory_size, offset) or directory_size + offset + _ZIP_END.size <= size
        if signature == _ZIP_END_SIGNATURE and comment == 0 and is_inside:
            return ""
    return "cut off"
