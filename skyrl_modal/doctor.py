"""Checks of this machine, for ``skyrl-modal doctor``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

from skyrl_modal.backends import get_backend, installed_backends
from skyrl_modal.backends.base import CheckResult
from skyrl_modal.backends.local.environment import search_path
from skyrl_modal.checkout import Checkout, inspect_checkout, required_uv_version
from skyrl_modal.checkout_search import find_checkout
from skyrl_modal.dataclass import replace
from skyrl_modal.errors import CheckoutNotFound, SkyRLModalError, translate_system_errors
from skyrl_modal.machine import find_ray
from skyrl_modal.prepare.ray_version import describe_mismatch, mismatch_remedy
from skyrl_modal.ray_requirement import RayRequirement, permits


def run_checks(backend: str | None = None) -> Iterator[CheckResult]:
    """Check what a run needs: Python, the checkout, and what each installed backend requires.

    Args:
        backend: The backend that is to be used. What it requires is not optional.
    """
    yield CheckResult("Python", True, f"{sys.version.split()[0]} at {sys.executable}")
    checkout = yield from _check_checkout()
    if checkout is not None:
        yield from _check_ray_version(checkout.ray_requirement)
    yield _check_uv(None if checkout is None else checkout.root)
    for name in installed_backends():
        is_chosen = name == backend
        try:
            for check in get_backend(name).diagnose():
                yield replace(check, optional=False) if is_chosen and check.is_required else check
        except Exception as error:  # any error of a backend that another package may provide
            yield CheckResult(name, False, f"the backend could not be checked: {error}", optional=not is_chosen)


def _check_checkout() -> Generator[CheckResult, None, Checkout | None]:
    """Yield the check of the checkout. Return the checkout; None if there is none."""
    try:
        with translate_system_errors():
            checkout = inspect_checkout(find_checkout())
    except CheckoutNotFound as error:
        places = " or ".join(f"{folder} ({why})" for why, folder in error.searched)
        remedy = "set SKYRL_REPO_ROOT, pass --checkout to the commands, or call them inside of it"
        detail = f"no folder with skyrl-gym/ was found at or above {places}: {remedy}"
        yield CheckResult("checkout", False, detail, optional=True)
        return None
    except SkyRLModalError as error:
        yield CheckResult("checkout", False, "; ".join(map(str.strip, str(error).splitlines())), optional=True)
        return None
    requirement = checkout.ray_requirement
    ray = "requires no version of Ray" if requirement is None else f"requires {requirement.text}"
    yield CheckResult("checkout", True, f"{checkout.root}, {checkout.description}, {ray}")
    return checkout


def _check_ray_version(requirement: RayRequirement | None) -> Iterator[CheckResult]:
    """Check that local runs start the Ray that the checkout requires. Without Ray, the local backend reports it."""
    ray = find_ray(search_path(os.environ))
    if ray is None or ray.version is None or requirement is None:
        return
    mismatch = describe_mismatch(ray, requirement)
    if mismatch is None:
        yield CheckResult("Ray version", True, f"{ray.version}, as the checkout requires")
        return
    detail = f"{mismatch}: local runs cannot start their driver with `uv run`. {mismatch_remedy(ray, requirement)}"
    yield CheckResult("Ray version", False, detail, optional=True)


def _check_uv(root: Path | None) -> CheckResult:
    """Check that uv is installed for local runs, in a version that the checkout permits, and that it can be used."""
    program = shutil.which("uv", path=search_path(os.environ))
    if program is None:
        detail = "not found, which `uv run` on this machine needs: pip install uv"
        return CheckResult("uv", False, detail, optional=True)
    version = _first_line([program, "--version"]).split()[1:2]
    if not version:
        return CheckResult("uv", False, f"{program} --version failed", optional=True)
    detail = f"{program}: {version[0]}"
    required = None if root is None else required_uv_version(root)
    if required is not None and not permits(required, version[0]):
        remedy = f"the checkout requires uv{required}: pip install 'uv{required}'"
        return CheckResult("uv", False, f"{detail}; {remedy}", optional=True)
    if os.environ.get("UV_OFFLINE", "").lower() not in ("1", "true", "yes", "on"):
        return CheckResult("uv", True, detail, optional=True)
    cache = _first_line([program, "cache", "dir"])
    has_packages = bool(cache) and any(Path(cache).glob("archive-v*/*"))
    detail += f", offline ($UV_OFFLINE): packages are taken from its cache {cache}"
    return CheckResult("uv", has_packages, f"{detail}{'' if has_packages else ', which has none'}", optional=True)


def _first_line(argv: Sequence[str]) -> str:
    """Return the first line that a program prints; empty if it fails."""
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            cwd="/",
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip().partition("\n")[0]
