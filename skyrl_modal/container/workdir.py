"""The folder in which the command runs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from skyrl_modal.container.failures import Failure, StartError
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.state import FailureCause


def prepare_workdir(job: Job) -> str | None:
    """Check that the folder exists, and complete it for SkyRL's older layout.

    Returns:
        A message about what was added; None if nothing was.

    Raises:
        StartError: The folder does not exist, or this user has no permission to enter it.
        OSError: It cannot be completed.
    """
    workdir = Path(job.workdir)
    if not workdir.is_dir():
        raise StartError(Failure(FailureCause.WORKDIR_MISSING, f"workdir {workdir} does not exist"))
    if not os.access(workdir, os.X_OK):
        user = f"the user with the id {os.geteuid()}"
        raise StartError(Failure(FailureCause.WORKDIR_MISSING, f"workdir {workdir} cannot be entered by {user}"))
    if job.repo_root is None:
        return None
    # SkyRL's older layout: uv resolves the editable package skyrl-gym only inside the folder that the command runs in.
    source, copy = Path(job.repo_root) / "skyrl-gym", workdir / "skyrl-gym"
    if workdir == Path(job.repo_root) / "skyrl-train" and not copy.exists():
        shutil.copytree(source, copy, symlinks=True)
        return f"copied {source} to {copy}, where uv expects it"
    return None
