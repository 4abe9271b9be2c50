"""Checks of the credentials of Modal's client, before a run and for ``skyrl-modal doctor``."""

from __future__ import annotations

import importlib.util
import os
import urllib.request
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
        reason = 'there is no token. Run `modal setup`, or use the local backend (--backend local, backend="local")'
        raise BackendUnavailable("modal", reason)


def diagnose() -> Iterator[CheckResult]:
    """Check what the Modal backend needs on this machine."""
    yield from _check_proxies()
    if has_token():
        yield CheckResult("modal", True, f"client {modal.__version__}, with a token", optional=True)
    else:
        detail = f"client {modal.__version__}, without a token: run `modal setup`"
        yield CheckResult("modal", False, detail, optional=True, is_required=True)


def _check_proxies() -> Iterator[CheckResult]:
    """Check that Modal's client can use the proxies of this environment (modal/_utils/proxy_support.py, 1.6.4)."""
    proxies = sorted(name for name in urllib.request.getproxies() if name in ("http", "https", "all"))
    if not proxies:
        return
    names = ", ".join(f"{name.upper()}_PROXY" for name in proxies)
    if os.environ.get("MODAL_DISABLE_API_PROXY"):
        yield CheckResult("proxies", True, f"{names}; Modal's client connects directly", optional=True)
    elif importlib.util.find_spec("python_socks") is not None:
        yield CheckResult("proxies", True, f"{names}, which Modal's client uses", optional=True)
    else:
        remedy = "pip install 'modal[api-proxy-support]', or set MODAL_DISABLE_API_PROXY=1 to connect directly"
        detail = f"{names} set, and Modal's client lacks what it needs to use them: {remedy}"
        yield CheckResult("proxies", False, detail, optional=True, is_required=True)
