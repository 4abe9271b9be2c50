"""Copies of the files that one run wrote."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from skyrl_modal.backends import Backend
from skyrl_modal.errors import PathNotFound
from skyrl_modal.protocol.job import Job
from skyrl_modal.spec.fields import is_below
from skyrl_modal.spec.volume import VolumeSpec
from skyrl_modal.transfers import copying
from skyrl_modal.views.transfer_progress import TransferProgress

#: The folder in the copy that receives the checkpoints.
_CHECKPOINTS = "checkpoints"
#: The number of the caller's frame, for warnings: this function, the method that calls it, and its decorator.
_STACK_LEVEL = 4


def pull_run(
    backend: Backend, job: Job, local: str | Path, *, checkpoints: bool, force: bool, progress: TransferProgress
) -> Path:
    """Copy a run's folder, and on request its checkpoints, to a folder with the run's id in another one.

    Raises:
        PathNotFound: No volume holds the run's folder, or it does not exist any more.
        SpecError: ``local`` is a symbolic link to a folder.
        StorageError: The copy cannot be written.
    """
    if job.run_folder_volume is None:
        raise PathNotFound(f"run {job.run_id} has no files on a volume. Run.logs() and Run.log_path lead to its output")
    volumes = [VolumeSpec(name=each.name, mount_path=each.mount_path, version=each.version) for each in job.volumes]
    target = Path(os.path.expanduser(local)) / job.run_id
    folders = [(job.run_folder, f"{target}")]
    if checkpoints:
        on_volume = (
            folder
            for folder in job.checkpoint_folders
            if any(is_below(folder, volume.mount_path) for volume in volumes)
        )
        folders += [(folder, f"{target}/{_CHECKPOINTS}/") for folder in on_volume]
    with progress:
        for folder, place in folders:
            try:
                copies = copying.find_pulls(backend, volumes, folder, place)
            except PathNotFound:
                if folder == job.run_folder:
                    raise
                continue  # the run has written no checkpoint
            for text in copying.pull(backend, copies, force=force, monitor=progress):
                warnings.warn(text, stacklevel=_STACK_LEVEL)
    return target
