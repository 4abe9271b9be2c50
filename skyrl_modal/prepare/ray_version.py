"""Whether the Ray that the local backend starts is the one that the checkout requires.

A driver can use a cluster only if both have the same version of Ray. A driver that ``uv run`` starts has the version
that the checkout requires; any other driver has the Ray that is installed on this machine, like the cluster.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from skyrl_modal.checkout import Checkout
from skyrl_modal.errors import SpecError
from skyrl_modal.findings import Finding, Severity
from skyrl_modal.machine import RAY_TOKEN_VERSION, RayInstallation, find_ray
from skyrl_modal.protocol.job import Job
from skyrl_modal.ray_requirement import RayRequirement, permits
from skyrl_modal.skyrl.uv_run import calls_uv_run

#: The code of the finding.
RAY_VERSION = "ray-version"


def find_version_mismatch(
    job: Job, checkout: Checkout | None, texts: Callable[[], Sequence[tuple[str, str]]]
) -> Finding | None:
    """Return the finding about a run on this machine whose Ray is not the one that the checkout requires.

    Args:
        job: The run.
        checkout: The checkout; None if none is mounted.
        texts: Returns the command and the scripts that it runs: what each is called, and its text.

    Returns:
        An error if a text calls ``uv run``, else a warning; None if there is no mismatch, or it is not known.
    """
    requirement = None if checkout is None else checkout.ray_requirement
    if job.ray is None or requirement is None:
        return None
    ray = _find_local_ray(job)
    mismatch = describe_mismatch(ray, requirement)
    if ray is None or mismatch is None:
        return None
    where = next((name for name, text in texts() if calls_uv_run(text)), None)
    if where is None:
        note = "A driver with the installed Ray works; one that `uv run` starts could not connect"
        remedy = f"{note}. {mismatch_remedy(ray, requirement)}"
        return Finding(code=RAY_VERSION, severity=Severity.WARNING, message=mismatch, remedy=remedy)
    message = f"{mismatch}, and {where} calls `uv run`, whose driver cannot connect to another version of Ray"
    remedy = f"{mismatch_remedy(ray, requirement)}. A command that uses no Ray can run with ray=None (--no-ray)"
    return Finding(code=RAY_VERSION, severity=Severity.ERROR, message=message, remedy=remedy)


def refuse_version_mismatch(job: Job, findings: Sequence[Finding]) -> None:
    """Raise the error among the findings about the version of Ray.

    Args:
        job: The run.
        findings: The findings of its plan.

    Raises:
        SpecError: The command calls ``uv run``, and the installed Ray is not the one that the checkout requires.
    """
    for finding in findings:
        if finding.code == RAY_VERSION and finding.severity is Severity.ERROR:
            ray = _find_local_ray(job)
            raise SpecError("ray", None if ray is None else ray.version, str(finding))


def describe_mismatch(ray: RayInstallation | None, requirement: RayRequirement | None) -> str | None:
    """Return that the installed Ray is not the required one, as a clause; None if it is, or that is not known."""
    if ray is None or requirement is None or ray.version is None or requirement.permits(ray.version):
        return None
    return f"the checkout requires {requirement.text}, but Ray {ray.version} is installed ({ray.program})"


def mismatch_remedy(ray: RayInstallation, requirement: RayRequirement) -> str:
    """Return the command that installs the required Ray into the environment in use, if a local run could use it."""
    minimum = ".".join(map(str, RAY_TOKEN_VERSION))
    if requirement.version is not None and not permits(f">={minimum}", requirement.version):
        return f"Use the Modal backend, or ray=None: the local backend requires Ray {minimum} or later"
    specifier = requirement.specifiers[0] if requirement.version is None else f"=={requirement.version}"
    return f'Run: {_installer(ray.python)} "ray[default]{specifier}"'


def _installer(python: str) -> str:
    """Return the command that installs packages for an interpreter. Environments that uv creates have no pip."""
    has_pip = any((Path(python).parent.parent / "lib").glob("python3.*/site-packages/pip"))
    return f"{python} -m pip install" if has_pip or not os.path.exists(python) else f"uv pip install --python {python}"


def _find_local_ray(job: Job) -> RayInstallation | None:
    """Return the Ray that the local backend would start for a run; None if there is none."""
    # Imported here: runs on Modal do not need the local backend, whose import takes a quarter of their start-up time.
    from skyrl_modal.backends.local.environment import path_of_run

    return find_ray(path_of_run(job))
