"""Checks of the credentials of Modal's client, before a run and for ``skyrl-modal doctor``."""

from __future__ import annotations

from collections.abc import Iterator

import modal
import modal.config

from skyrl_modal.backends.base import CheckResult
from skyrl_modal.errors import BackendUnavailable


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


def diagnose() -> Iterator[CheckResult]:
    """Check what the Modal backend needs on this machine."""
    if has_token():
        yield CheckResult("modal", True, f"client {modal.__version__}, with a token", optional=True)
    else:
        detail = f"client {modal.__version__}, without a token: run `modal setup`"
        yield CheckResult("modal", False, detail, optional=True)
