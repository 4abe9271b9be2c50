"""Comparison of an earlier run's files with those of today."""

from __future__ import annotations

from collections.abc import Iterator

from skyrl_modal.checkout import inspect_checkout
from skyrl_modal.mount import select
from skyrl_modal.prepare.plan import mounted_folder
from skyrl_modal.protocol.job import Job
from skyrl_modal.spec.run_spec import RunSpec


def changes_since(job: Job, spec: RunSpec) -> Iterator[str]:
    """Yield a sentence for each mounted folder whose files differ from those that the run used.

    Args:
        job: The earlier run.
        spec: What the user declared for it.
    """
    if job.checkout is not None and spec.checkout is not None:
        today = inspect_checkout(spec.checkout)
        if today.commit != job.checkout.commit:
            yield f"the run used commit {job.checkout.commit}, but {today.root} is at commit {today.commit}"
    for mount, mount_spec in zip(job.mounts, spec.mounts, strict=False):
        folder = mounted_folder(mount_spec, spec.checkout)
        if not folder.is_dir():
            yield f"{folder} does not exist any more"
            continue
        selection = select(
            folder, include=mount_spec.include, exclude=mount_spec.exclude, skip_caches=mount_spec.skip_caches
        )
        if selection.digest != mount.digest:
            yield f"the files of {folder} differ from those that the run used"
