"""What works on this machine, found out by trying it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import platformdirs
from attrs import frozen

from skyrl_modal.backends.local.backend import why_side_by_side
from skyrl_modal.backends.local.sandbox import find_sandbox
from skyrl_modal.checkout import find_checkout, inspect_checkout
from skyrl_modal.errors import SkyRLModalError


@frozen
class Finding:
    """One thing that was looked at.

    Attributes:
        what: The thing.
        ok: Whether it is as it should be.
        detail: What was seen, and the remedy where it is not.
        optional: Whether runs work without it.
    """

    what: str
    ok: bool
    detail: str
    optional: bool = False


def examine() -> Iterator[Finding]:
    """Look at everything that a run needs."""
    yield Finding("Python", True, f"{sys.version.split()[0]} at {sys.executable}")
    yield _checkout()
    scratch = platformdirs.user_cache_path("skyrl_modal") / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    search = find_sandbox(scratch)
    if search.sandbox is None:
        reasons = "; ".join(search.reasons)
        yield Finding("namespaces", False, f'none: pip install "skyrl-modal[local]" ({reasons})', optional=True)
    else:
        layers = "with overlays" if search.sandbox.overlays else "without overlays: each run copies its mounts"
        yield Finding("namespaces", True, f"{search.sandbox.binary}, {layers}")
    reason = why_side_by_side(search.sandbox)
    nodes = f"side by side on this machine's network: {reason}" if reason else "each with an address of its own"
    yield Finding("nodes", True, nodes, optional=True)
    yield _ray()
    yield _modal()
    free = shutil.disk_usage(scratch).free
    yield Finding("disk", free > 5e9, f"{free / 1e9:,.0f} GB free at {scratch}", optional=True)


def _checkout() -> Finding:
    try:
        checkout = inspect_checkout(find_checkout())
    except SkyRLModalError as error:
        return Finding("checkout", False, str(error), optional=True)
    ray = f"pins ray=={checkout.ray_version}" if checkout.ray_version else "pins no version of Ray"
    return Finding("checkout", True, f"{checkout.root}, {checkout.description}, {ray}")


def _ray() -> Finding:
    beside = Path(sys.executable).parent / "ray"
    ray = str(beside) if beside.exists() else shutil.which("ray")
    if ray is None:
        return Finding("ray", False, 'not found: pip install "skyrl-modal[local]"', optional=True)
    done = subprocess.run([ray, "--version"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    return Finding("ray", done.returncode == 0, f"{ray}: {(done.stdout or done.stderr).strip()}", optional=True)


def _modal() -> Finding:
    import modal.config

    if modal.config.config.get("token_id"):
        return Finding("modal", True, f"client {modal.__version__}, with a token", optional=True)
    return Finding("modal", False, f"client {modal.__version__}, without a token: run `modal setup`", optional=True)
