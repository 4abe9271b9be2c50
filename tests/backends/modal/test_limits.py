"""Tests of Modal's limits and of the checks before a run, without a server."""

from __future__ import annotations

from dataclasses import replace

import modal.exception
import pytest

from skyrl_modal import ImageSpec, SpecError
from skyrl_modal.backends.modal.errors import is_cancellation
from skyrl_modal.backends.modal.limits import container_timeout, total_time_limit
from skyrl_modal.backends.modal.run_checks import check_dashboard, ray_version_of_image
from skyrl_modal.protocol.job import Job, Limits, RayOptions
from skyrl_modal.spec.image import DEFAULT_IMAGE, IMAGE_BY_RAY_VERSION

DAY = 24 * 3600
JOB = Job(run_id="r", command="true", workdir="/", run_folder="/r", created_at="2026-01-01T00:00:00+00:00")


@pytest.mark.parametrize(
    ("limits", "timeout", "total"),
    [
        (Limits(attempt_timeout=5400, grace=10, retries=1), 2 * 5410 + 300, None),
        (Limits(attempt_timeout=DAY, grace=6), DAY, DAY - 306),
        (Limits(attempt_timeout=8 * 3600, grace=6, retries=3), DAY, DAY - 306),
    ],
)
def test_total_time_is_limited_by_modal(limits: Limits, timeout: float, total: float | None) -> None:
    """Runs that would exceed Modal's limit are stopped before it, with time to save."""
    job = replace(JOB, limits=limits)

    assert container_timeout(job) == timeout
    assert total_time_limit(job) == total


@pytest.mark.parametrize("text", ["Function call was cancelled by user or a failure.", ""])
def test_cancellation_is_recognized(text: str) -> None:
    """Both forms of Modal's error for a cancelled call are recognized."""
    assert is_cancellation(modal.exception.RemoteError(text))


@pytest.mark.parametrize(
    "error",
    [
        modal.exception.RemoteError("Container terminated unexpectedly with exit code 137."),
        modal.exception.FunctionTimeoutError(),
        modal.exception.OutputExpiredError(),
    ],
)
def test_other_ends_are_no_cancellation(error: modal.exception.Error) -> None:
    """A container that died, a timeout and an expired result are no cancellation."""
    assert not is_cancellation(error)


def job_with_dashboard(image: str) -> Job:
    """Return a job with a dashboard on an image."""
    return Job(
        run_id="r", command="true", workdir="/", run_folder="/r", created_at="2026-01-01", image=image,
        ray=RayOptions(dashboard=True),
    )  # fmt: skip


def test_dashboard_without_token_is_refused() -> None:
    """A dashboard on a known image whose Ray checks no token is refused, with an image to use instead."""
    with pytest.raises(SpecError) as caught:
        check_dashboard(job_with_dashboard(DEFAULT_IMAGE), ImageSpec())

    assert (caught.value.field, caught.value.value) == ("dashboard", True)
    assert IMAGE_BY_RAY_VERSION["2.57.0"] in caught.value.remedy


@pytest.mark.parametrize(
    ("base", "image"),
    [
        (IMAGE_BY_RAY_VERSION["2.57.0"], ImageSpec()),
        ("registry.example/team/image:1", ImageSpec()),
        (DEFAULT_IMAGE, ImageSpec(pip=["ray[default]==2.60"])),
        (DEFAULT_IMAGE, ImageSpec(commands=["pip install -U ray"])),
    ],
)
def test_dashboard_is_accepted_where_ray_may_check_tokens(base: str, image: ImageSpec) -> None:
    """A newer Ray is accepted, and an unknown one is left to the check in the container."""
    check_dashboard(job_with_dashboard(base), image)


def test_other_packages_keep_the_known_ray() -> None:
    """Packages whose names only begin with ray do not make the version unknown."""
    assert ray_version_of_image(DEFAULT_IMAGE, ImageSpec(pip=["wandb", "raylib==5"])) == "2.51.1"
