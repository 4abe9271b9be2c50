"""Copies between this machine and volumes."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from skyrl_modal.backends.transfer_options import TransferMonitor, TransferOptions
from skyrl_modal.dataclass import dataclass
from skyrl_modal.errors import PathNotFound, SpecError
from skyrl_modal.protocol.state import VolumeEntryKind
from skyrl_modal.spec.bucket import kind_of
from skyrl_modal.transfers.destinations import Source, destination_paths, names_contents
from skyrl_modal.transfers.locations import container_path, expand, find_volume, missing_path
from skyrl_modal.transfers.patterns import expand_local, is_pattern
from skyrl_modal.transfers.plan import PlannedCopy, PlanRecorder, TransferPlan
from skyrl_modal.user_folders import local_path

if TYPE_CHECKING:
    from skyrl_modal.backends import Backend
    from skyrl_modal.spec.bucket import AnyVolume

    #: One or several paths or patterns on this machine.
    LocalSources = str | Path | Sequence[str | Path]


@dataclass(frozen=True, slots=True)
class Copies:
    """What one ``pull`` or ``push`` copies.

    Attributes:
        pairs: The path on this machine, the volume and the path on it of each copy.
        planned: The source and the target of each, with paths in the container.
        target: The path of the copy; of several, the folder that receives them.
    """

    pairs: Sequence[tuple[Path, AnyVolume, str]]
    planned: Sequence[PlannedCopy]
    target: str


def find_pulls(backend: Backend, volumes: Sequence[AnyVolume], path: str | Sequence[str], local: str | Path) -> Copies:
    """Return what a ``pull`` copies.

    Raises:
        SpecError: A path is on none of the volumes; or the destination is a symbolic link to a folder, or a path on a
            volume.
        PathNotFound: There is no such path, or nothing matches a pattern.
    """
    paths = _as_list(path)
    is_several = len(paths) > 1
    folder = local_path(local)
    _check_local_destination(volumes, local, folder)
    sources: list[Source] = []
    found: list[tuple[AnyVolume, str]] = []
    for each in paths:
        places = expand(backend, volumes, each)
        is_matched = is_pattern(each) and places != [find_volume(volumes, each)]
        is_several = is_several or is_matched
        for volume, inside in places:
            kind = backend.kind(volume, inside)
            if kind is None:
                raise missing_path(volume, inside)
            name = posixpath.basename(container_path(volume, inside))
            is_folder = kind is VolumeEntryKind.FOLDER
            is_contents = names_contents(each) and not is_matched
            sources.append(Source(container_path(volume, inside), name, is_folder, is_contents))
            found.append((volume, inside))
    text = os.path.expanduser(os.fspath(local))
    copies = destination_paths(sources, text, exists=folder.is_dir(), is_several=is_several)
    return Copies(
        pairs=[(_not_a_link(Path(copy)), *place) for copy, place in zip(copies, found, strict=True)],
        planned=[PlannedCopy(source.path, copy) for source, copy in zip(sources, copies, strict=True)],
        target=copies[0] if len(copies) == 1 else str(folder),
    )


def _check_local_destination(volumes: Sequence[AnyVolume], local: str | Path, folder: Path) -> None:
    """Raise an error for a path that was passed as the destination and is a path in the container."""
    _not_a_link(folder)
    if not folder.is_absolute() or folder.exists() or folder.parent.is_dir():
        return
    for volume in volumes:
        if folder.is_relative_to(volume.mount_path):
            place = f"it is a path on the {kind_of(volume)} {volume.name}, and this machine has no such folder"
            remedy = "The last path of `pull` is where to copy to on this machine, such as `.`"
            raise SpecError("local", str(local), f"{place}. {remedy}")


def _not_a_link(path: Path) -> Path:
    if path.is_symlink() and path.is_dir():
        raise SpecError("local", str(path), f"it is a symbolic link. Pass the folder itself: {path.resolve()}")
    return path


def find_pushes(backend: Backend, volumes: Sequence[AnyVolume], local: LocalSources, path: str) -> Copies:
    """Return what a ``push`` copies.

    Raises:
        SpecError: The destination is on none of the volumes.
        PathNotFound: There is no such file or folder, or nothing matches a pattern.
    """
    texts = [os.path.expanduser(each) for each in ([local] if isinstance(local, str | Path) else local)]
    if not texts:
        raise SpecError("local", local, "pass at least one file or folder")
    is_several = len(texts) > 1
    volume, inside = find_volume(volumes, path)
    sources: list[Source] = []
    for text in texts:
        is_matched = is_pattern(text) and not os.path.lexists(text)
        is_several = is_several or is_matched
        for each in expand_local(text):
            place = local_path(each)
            if not place.exists():
                raise PathNotFound(f"there is no {place}. Check the path; it is relative to {Path.cwd()}")
            name = place.name if place.name not in ("", "..") else place.resolve().name
            sources.append(Source(str(place), name, place.is_dir(), names_contents(each) and not is_matched))
    exists = not inside or backend.kind(volume, inside) is VolumeEntryKind.FOLDER
    destination = container_path(volume, inside) + ("/" if names_contents(path) else "")
    copies = destination_paths(sources, destination, exists=exists, is_several=is_several)
    return Copies(
        pairs=[(Path(source.path), *find_volume(volumes, copy)) for source, copy in zip(sources, copies, strict=True)],
        planned=[PlannedCopy(source.path, copy) for source, copy in zip(sources, copies, strict=True)],
        target=copies[0] if len(copies) == 1 else container_path(volume, inside),
    )


def pull(backend: Backend, copies: Copies, *, force: bool, monitor: TransferMonitor) -> Sequence[str]:
    """Copy from volumes to this machine. Return messages about what was not copied."""
    options = TransferOptions(force=force, monitor=monitor)
    return [
        text for local, volume, inside in copies.pairs for text in backend.pull(volume, inside, local, options) or ()
    ]


def push(backend: Backend, copies: Copies, *, force: bool, monitor: TransferMonitor) -> Sequence[str]:
    """Copy from this machine to volumes. Return messages about what was not copied."""
    options = TransferOptions(force=force, monitor=monitor)
    return [
        text for local, volume, inside in copies.pairs for text in backend.push(volume, local, inside, options) or ()
    ]


def plan_pull(backend: Backend, copies: Copies, *, force: bool) -> TransferPlan:
    """Return what a ``pull`` would do."""
    recorder, warnings = PlanRecorder(), list[str]()
    options = TransferOptions(force=force, dry_run=True, monitor=recorder)
    for (local, volume, inside), planned in zip(copies.pairs, copies.planned, strict=True):
        recorder.target = planned.target
        warnings += backend.pull(volume, inside, local, options) or ()
    return TransferPlan(copies.planned, recorder.files, warnings)


def plan_push(backend: Backend, copies: Copies, *, force: bool) -> TransferPlan:
    """Return what a ``push`` would do."""
    recorder, warnings = PlanRecorder(), list[str]()
    options = TransferOptions(force=force, dry_run=True, monitor=recorder)
    for (local, volume, inside), planned in zip(copies.pairs, copies.planned, strict=True):
        recorder.target = planned.target
        warnings += backend.push(volume, local, inside, options) or ()
    return TransferPlan(copies.planned, recorder.files, warnings)


def _as_list(paths: str | Sequence[str]) -> list[str]:
    texts = [paths] if isinstance(paths, str) else list(paths)
    if not texts:
        raise SpecError("path", paths, "pass at least one path")
    return texts
