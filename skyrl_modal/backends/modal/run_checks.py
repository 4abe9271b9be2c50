"""Checks of a run on Modal that need neither Modal's client nor an account, so that a plan makes them too."""

from __future__ import annotations

import re
from collections.abc import Sequence

from skyrl_modal.backends.modal.limits import check_cluster, check_timeout, total_time_limit
from skyrl_modal.errors import SpecError
from skyrl_modal.machine import RAY_TOKEN_VERSION
from skyrl_modal.protocol.job import Job
from skyrl_modal.spec.image import IMAGE_BY_RAY_VERSION, ImageSpec
from skyrl_modal.spec.image_steps import PipInstall, RunCommands
from skyrl_modal.spec.run_spec import RunSpec

#: A requirement of pip that names Ray, such as ``ray[default]==2.60``.
_RAY_REQUIREMENT = re.compile(r"\s*ray\s*($|[\[=<>!~@;,])", re.IGNORECASE)


def check_run(job: Job, spec: RunSpec) -> Sequence[str]:
    """Check whether Modal would accept a run.

    Returns:
        Warnings for the user.

    Raises:
        SpecError: Modal would refuse the run: its timeout, or the GPUs of a cluster. Or its dashboard would not be
            protected.
    """
    check_timeout(spec.timeout)
    warnings = check_cluster(spec) if spec.nodes > 1 else []
    check_dashboard(job, spec.image)
    limit = total_time_limit(job)
    if limit is not None and (job.resume is None or job.limits.attempt_timeout > limit):
        warnings.append(
            f"Modal stops a container after 24 h. If the run has not ended after {limit:.0f} s, it is stopped with "
            "its grace period"
        )
    return warnings


def check_dashboard(job: Job, image: ImageSpec) -> None:
    """Check that the image's Ray can protect its dashboard by a token. An unknown image is checked in the container.

    Raises:
        SpecError: The image is known, and its Ray is too old.
    """
    if job.ray is None or not job.ray.dashboard:
        return
    version = ray_version_of_image(job.image, image)
    if version is not None and _parse_version(version) < RAY_TOKEN_VERSION:
        minimum = ".".join(map(str, RAY_TOKEN_VERSION))
        newer = [name for known, name in IMAGE_BY_RAY_VERSION.items() if _parse_version(known) >= RAY_TOKEN_VERSION]
        remedy = (
            f"the image {job.image} has Ray {version}, and only Ray {minimum} or later protects its dashboard by a "
            f"token. Use an image with a later Ray, for example {newer[-1]}"
        )
        raise SpecError("dashboard", True, remedy)


def ray_version_of_image(base: str, image: ImageSpec) -> str | None:
    """Return the version of Ray in an image; None if it is not known.

    Args:
        base: The base image.
        image: The layers on it, which may install another Ray.

    Example:
        >>> ray_version_of_image("novaskyai/skyrl-train-ray-2.57.0-py3.12-cu13.0", ImageSpec(pip=["wandb"]))
        '2.57.0'
        >>> ray_version_of_image("novaskyai/skyrl-train-ray-2.57.0-py3.12-cu13.0", ImageSpec(pip=["ray==2.60"])) is None
        True
    """
    packages = [*image.pip, *(name for step in image.steps if isinstance(step, PipInstall) for name in step.packages)]
    runs_commands = image.commands or any(isinstance(step, RunCommands) for step in image.steps)
    if runs_commands or any(_RAY_REQUIREMENT.match(requirement) for requirement in packages):
        return None
    return next((version for version, name in IMAGE_BY_RAY_VERSION.items() if name == base), None)


def _parse_version(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])
