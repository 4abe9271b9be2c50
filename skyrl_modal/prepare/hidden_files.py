"""Volumes that would hide mounted files."""

from __future__ import annotations

from collections.abc import Sequence

from skyrl_modal.errors import SpecError
from skyrl_modal.mount import Selection
from skyrl_modal.protocol.job import Job
from skyrl_modal.spec.fields import is_below


def check_hidden_files(job: Job, selections: Sequence[Selection]) -> None:
    """Check that no volume replaces mounted files. A volume at a new folder of a mount is possible.

    Args:
        job: The run.
        selections: The files of the job's mounts, in their order.

    Raises:
        SpecError: A volume's path is a mounted file, is below one, or is a folder with mounted files.
    """
    for volume in job.volumes:
        for mount, selection in zip(job.mounts, selections, strict=True):
            if not is_below(volume.mount_path, mount.remote_path):
                continue
            inside = volume.mount_path.removeprefix(f"{mount.remote_path}/")
            file = next((name for name in selection.files if is_below(inside, name)), None)
            if file is not None:
                raise SpecError("mount_path", volume.mount_path, f"{mount.remote_path}/{file} is a mounted file")
            hidden = [name for name in selection.files if is_below(name, inside)]
            if hidden:
                remedy = (
                    f"the volume {volume.name} would hide {len(hidden)} mounted files, such as "
                    f"{mount.remote_path}/{hidden[0]}; pass the path of a new folder"
                )
                raise SpecError("mount_path", volume.mount_path, remedy)
