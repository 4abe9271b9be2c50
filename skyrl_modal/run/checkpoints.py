"""The checkpoints of a run, as they are on its volumes or this machine now."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from skyrl_modal.backends.checkpoint_listing import read_checkpoint_folder

if TYPE_CHECKING:
    from skyrl_modal.backends.base import Backend
    from skyrl_modal.formats.checkpoints import Checkpoint
    from skyrl_modal.protocol.job import Job

#: Checkpoints that are examined at the same time.
_REQUESTS = 8


class CheckpointList(list["Checkpoint"]):
    """A list of checkpoints, which a notebook shows as a table."""

    def _repr_html_(self) -> str:
        from skyrl_modal.views.checkpoints import checkpoint_rows  # only a notebook needs them
        from skyrl_modal.views.notebook import table_to_html

        return table_to_html(("step", "complete", "bytes", "path", "missing"), checkpoint_rows(self))


def list_checkpoints(backend: Backend, job: Job) -> list[Checkpoint]:
    """Return the checkpoints in the folders of a run, by folder and step.

    Args:
        backend: The run's backend.
        job: The run.

    Raises:
        SkyRLModalError: The backend cannot answer now.
        OSError: A folder cannot be listed.
    """
    found = CheckpointList()
    for path in job.checkpoint_folders:
        folder = read_checkpoint_folder(backend, job, path)
        if folder is not None:
            with ThreadPoolExecutor(_REQUESTS) as pool:  # on Modal, each checkpoint is a request or more
                found += pool.map(folder.checkpoint, folder.steps)
    return found
