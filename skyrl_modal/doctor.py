"""Checks of this machine, for ``skyrl-modal doctor``."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from skyrl_modal.backends import get_backend, installed_backends
from skyrl_modal.backends.base import CheckResult
from skyrl_modal.checkout import find_checkout, inspect_checkout
from skyrl_modal.errors import SkyRLModalError, translate_system_errors


def run_checks() -> Iterator[CheckResult]:
    """Check what a run needs: Python, the checkout, and what each installed backend requires."""
    yield CheckResult("Python", True, f"{sys.version.split()[0]} at {sys.executable}")
    yield _check_checkout()
    for name in installed_backends():
        try:
            yield from get_backend(name).diagnose()
        except Exception as error:  # any error of a backend that another package may provide
            yield CheckResult(name, False, f"the backend could not be checked: {error}", optional=True)


def _check_checkout() -> CheckResult:
    try:
        with translate_system_errors():
            checkout = inspect_checkout(find_checkout())
    except SkyRLModalError as error:
        return CheckResult("checkout", False, str(error), optional=True)
    ray = f"pins ray=={checkout.ray_version}" if checkout.ray_version else "pins no version of Ray"
    return CheckResult("checkout", True, f"{checkout.root}, {checkout.description}, {ray}")
