"""Run a command from a SkyRL checkout in a Modal GPU container, or on this machine through the same container code.

The public names are loaded on first use: importing this package imports nothing else.

Example:
    >>> from skyrl_modal import VolumeSpec
    >>> VolumeSpec().mount_path
    '/root/data'
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skyrl_modal.errors import (
        BackendUnavailable,
        CheckoutNotFound,
        CommandFailed,
        RunCancelled,
        RunLost,
        RunNotFound,
        RunTimeout,
        SkyRLModalError,
        SpecError,
    )
    from skyrl_modal.launcher import Launcher
    from skyrl_modal.plan import Plan
    from skyrl_modal.run import Run, RunResult, RunState, runs
    from skyrl_modal.specs import ImageSpec, MountSpec, RaySpec, SecretSpec, VolumeSpec

_HOME = {
    **dict.fromkeys(
        ("BackendUnavailable", "CheckoutNotFound", "CommandFailed", "RunCancelled", "RunLost", "RunNotFound",
         "RunTimeout", "SkyRLModalError", "SpecError"), "errors"
    ),
    **dict.fromkeys(("ImageSpec", "MountSpec", "RaySpec", "SecretSpec", "VolumeSpec"), "specs"),
    **dict.fromkeys(("Run", "RunResult", "RunState", "runs"), "run"),
    "Launcher": "launcher",
    "Plan": "plan",
}  # fmt: skip

__all__ = [
    "BackendUnavailable",
    "CheckoutNotFound",
    "CommandFailed",
    "ImageSpec",
    "Launcher",
    "MountSpec",
    "Plan",
    "RaySpec",
    "Run",
    "RunCancelled",
    "RunLost",
    "RunNotFound",
    "RunResult",
    "RunState",
    "RunTimeout",
    "SecretSpec",
    "SkyRLModalError",
    "SpecError",
    "VolumeSpec",
    "runs",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
