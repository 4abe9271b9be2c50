"""Whether the Ray that a run starts is the one that the checkout requires.

A driver can use a cluster only if both have the same version of Ray. A driver that ``uv run`` starts has the version
that the checkout requires; any other driver has the Ray of this machine, or of the image on Modal, like the cluster.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from skyrl_modal.checkout import Checkout, read_ray_requirement
from skyrl_modal.errors import SpecError
from skyrl_modal.findings import Finding, Severity
from skyrl_modal.gitfiles.result_cache import ResultCache
from skyrl_modal.machine import RAY_TOKEN_VERSION, RayInstallation, find_ray
from skyrl_modal.protocol.job import Job
from skyrl_modal.ray_requirement import RayRequirement, permits
from skyrl_modal.skyrl.uv_run import calls_uv_run
from skyrl_modal.spec.fields import is_below
from skyrl_modal.spec.image import IMAGE_BY_RAY_VERSION, ImageSpec

#: The codes of the findings: about this machine, and about the image.
RAY_VERSION = "ray-version"
IMAGE_RAY_VERSION = "image-ray-version"

#: The command and the scripts that it runs: what each is called, and its text.
Texts = Sequence[tuple[str, str]]


def find_version_mismatch(job: Job, checkout: Checkout | None, texts: Texts, cache: ResultCache) -> Finding | None:
    """Return the finding about a run on this machine whose Ray is not the one that the checkout requires.

    Args:
        job: The run.
        checkout: The checkout; None if none is mounted.
        texts: The command and the scripts that it runs.
        cache: Where the requirements of projects are stored.

    Returns:
        An error if a text calls ``uv run``, else a warning; None if there is no mismatch, or it is not known.
    """
    requirement = _find_requirement(job, checkout, cache)
    if job.ray is None or requirement is None:
        return None
    ray = _find_local_ray(job)
    mismatch = describe_mismatch(ray, requirement)
    if ray is None or mismatch is None:
        return None
    where = _find_uv_run(texts)
    if where is None:
        note = "A driver with the installed Ray works; one that `uv run` starts could not connect"
        remedy = f"{note}. {mismatch_remedy(ray, requirement)}"
        return Finding(code=RAY_VERSION, severity=Severity.WARNING, message=mismatch, remedy=remedy)
    message = _refusal(mismatch, where)
    remedy = f"{mismatch_remedy(ray, requirement)}. A command that uses no Ray can run with ray=None (--no-ray)"
    return Finding(code=RAY_VERSION, severity=Severity.ERROR, message=message, remedy=remedy)


def find_image_mismatch(
    job: Job, spec: ImageSpec, checkout: Checkout | None, texts: Texts, cache: ResultCache, *, warning: str | None
) -> Finding | None:
    """Return the finding about a run on Modal whose image has another Ray than the checkout requires.

    Args:
        job: The run.
        spec: What the user declared about its image.
        checkout: The checkout; None if none is mounted.
        texts: The command and the scripts that it runs.
        cache: Where the requirements of projects are stored.
        warning: The warning of ``ImageSpec.resolved_base``; None if there is none.

    Returns:
        An error if a text calls ``uv run`` and the image's version is known, else a warning; None if there is no
        mismatch, or it is not known.
    """
    requirement = _find_requirement(job, checkout, cache)
    version = spec.ray_version_in(job.image)
    if job.ray is None or requirement is None or version is None or requirement.permits(version):
        return None if warning is None else _image_warning(warning)
    mismatch = f"the checkout requires {requirement.text}, but the image {job.image} contains Ray {version}"
    where = _find_uv_run(texts)
    if where is None:
        return _image_warning(warning or f"{mismatch}. A driver that `uv run` starts could not connect")
    return Finding(
        code=IMAGE_RAY_VERSION,
        severity=Severity.ERROR,
        message=_refusal(mismatch, where),
        remedy=f"{_image_remedy(requirement)}. A command that uses no Ray can run with ray=None (--no-ray)",
    )


def _find_requirement(job: Job, checkout: Checkout | None, cache: ResultCache) -> RayRequirement | None:
    """Return what the project requires in which the command runs: the next one above its workdir, as for uv.

    If that project does not name Ray, it is often a member of a workspace, and the requirement of the checkout applies.
    """
    if checkout is None:
        return None
    remote = next((mount.remote_path for mount in job.mounts if mount.is_checkout), None)
    if remote is not None and is_below(job.workdir, remote):
        inside = PurePosixPath(job.workdir).relative_to(remote)
        for folder in (inside, *inside.parents)[:-1]:
            if (checkout.root / folder / "pyproject.toml").is_file():
                return read_ray_requirement(checkout.root / folder, cache) or checkout.ray_requirement
    return checkout.ray_requirement


def _image_warning(warning: str) -> Finding:
    """Return the finding about an image that may contain another version of Ray."""
    return Finding(
        code=IMAGE_RAY_VERSION,
        severity=Severity.WARNING,
        message=warning,
        remedy="Pass ImageSpec(base=...) with an image that contains the pinned version.",
    )


def _image_remedy(requirement: RayRequirement) -> str:
    known = next((item for item in reversed(list(IMAGE_BY_RAY_VERSION)) if requirement.permits(item)), None)
    if known is not None:
        return f'Use ImageSpec(base="{IMAGE_BY_RAY_VERSION[known]}")'
    specifier = requirement.specifiers[0] if requirement.version is None else f"=={requirement.version}"
    return f"Install it into the image: ImageSpec(pip=['ray[default]{specifier}']), or use one that contains it"


def _find_uv_run(texts: Texts) -> str | None:
    """Return what the first text with a call of ``uv run`` is called; None if there is none."""
    return next((name for name, text in texts if calls_uv_run(text)), None)


def _refusal(mismatch: str, where: str) -> str:
    return f"{mismatch}, and {where} calls `uv run`, whose driver cannot connect to another version of Ray"


def refuse_version_mismatch(job: Job, findings: Sequence[Finding]) -> None:
    """Raise the error among the findings about the version of Ray.

    Args:
        job: The run.
        findings: The findings of its plan.

    Raises:
        SpecError: The command calls ``uv run``, and the Ray of this machine, or of the image, is not the one that the
            checkout requires.
    """
    for finding in findings:
        if finding.severity is not Severity.ERROR:
            continue
        if finding.code == RAY_VERSION:
            ray = _find_local_ray(job)
            raise SpecError("ray", None if ray is None else ray.version, str(finding))
        if finding.code == IMAGE_RAY_VERSION:
            raise SpecError("image", job.image, str(finding))


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
