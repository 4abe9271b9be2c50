"""The folder in which the command runs."""

from __future__ import annotations

import os

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
    workdir = job.workdir
    if not os.path.isdir(workdir):
        raise StartError(Failure(FailureCause.WORKDIR_MISSING, f"workdir {workdir} does not exist"))
    if not os.access(workdir, os.X_OK):
        user = f"the user with the id {os.geteuid()}"
        raise StartError(Failure(FailureCause.WORKDIR_MISSING, f"workdir {workdir} cannot be entered by {user}"))
    if job.repo_root is None:
        return None
    # SkyRL's older layout: uv resolves the editable package skyrl-gym only inside the folder that the command runs in.
    source, copy = os.path.join(job.repo_root, "skyrl-gym"), os.path.join(workdir, "skyrl-gym")
    if os.path.normpath(workdir) == os.path.join(job.repo_root, "skyrl-train") and not os.path.exists(copy):
        import shutil  # imported here, since most runs do not need it

        shutil.copytree(source, copy, symlinks=True)
        return f"copied {source} to {copy}, where uv expects it"
    return None
