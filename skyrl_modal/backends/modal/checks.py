"""Checks of the Modal backend before a run, and for ``skyrl-modal doctor``."""

from __future__ import annotations

import re
from collections.abc import Iterator

import modal
import modal.config

from skyrl_modal.backends.base import CheckResult
from skyrl_modal.errors import BackendUnavailable, SpecError
from skyrl_modal.machine import RAY_TOKEN_VERSION
from skyrl_modal.protocol.job import Job
from skyrl_modal.spec.image import IMAGE_BY_RAY_VERSION, ImageSpec
from skyrl_modal.spec.image_steps import PipInstall, RunCommands

#: A requirement of pip that names Ray, such as ``ray[default]==2.60``.
_RAY_REQUIREMENT = re.compile(r"\s*ray\s*($|[\[=<>!~@;,])", re.IGNORECASE)


def has_token() -> bool:
    """Return whether Modal's client has credentials, from the environment or from ``modal setup``."""
    config = modal.config.config
    return bool(config.get("token_id") and config.get("token_secret")) or bool(config.get("oauth_refresh_token"))


def check_token() -> None:
    """Check that Modal's client has credentials.

    Raises:
        BackendUnavailable: It has none.
    """
    if not has_token():
        reason = 'there is no token. Run `modal setup`, or use backend="local" to run on this machine'
        raise BackendUnavailable("modal", reason)


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
            f"token. Use an image with a later Ray, for example ImageSpec(base={newer[-1]!r})"
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


def diagnose() -> Iterator[CheckResult]:
    """Check what the Modal backend needs on this machine."""
    if has_token():
        yield CheckResult("modal", True, f"client {modal.__version__}, with a token", optional=True)
    else:
        detail = f"client {modal.__version__}, without a token: run `modal setup`"
        yield CheckResult("modal", False, detail, optional=True)
