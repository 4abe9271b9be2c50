"""The run's folder as this machine's processes find it."""

from __future__ import annotations

from pathlib import Path

from skyrl_modal.backends.local.run_lock import state_folder
from skyrl_modal.backends.local.volume_folder import volume_folder
from skyrl_modal.errors import RecordError
from skyrl_modal.protocol.codec import ProtocolError
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.result import RunResultRecord
from skyrl_modal.protocol.run_folder import RESULT_FILE, STATUS_FILE, RunFolder
from skyrl_modal.protocol.status import StatusRecord


def private_run_folder(run_id: str) -> Path:
    """Return the run's folder of a run without a writable volume."""
    return state_folder(run_id) / "run"


def host_run_folder(job: Job) -> Path:
    """Return the run's folder on this machine: on the volume that holds it, else in the run's state folder."""
    if job.run_folder_volume is None:
        return private_run_folder(job.run_id)
    volume, path = job.run_folder_volume
    return volume_folder(volume.name) / path


def read_status(folder: RunFolder) -> StatusRecord | None:
    """Return the content of state.json; None if there is no such file.

    Raises:
        RecordError: It is damaged, or was written by a newer version.
    """
    try:
        return folder.read_status()
    except ProtocolError as error:
        raise RecordError(str(folder.path / STATUS_FILE), str(error)) from error


def read_result(folder: RunFolder) -> RunResultRecord | None:
    """Return the content of result.json; None if there is no such file.

    Raises:
        RecordError: It is damaged, or was written by a newer version.
    """
    try:
        return folder.read_result()
    except ProtocolError as error:
        raise RecordError(str(folder.path / RESULT_FILE), str(error)) from error
