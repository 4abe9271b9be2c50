"""Run a command from a SkyRL checkout in a Modal GPU container, or on this machine through the same container code.

Public names are loaded on first use. Importing this package imports nothing else.

Example:
    >>> from skyrl_modal import VolumeSpec
    >>> VolumeSpec().mount_path
    '/root/data'
"""

from __future__ import annotations

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from typing import Any

    from skyrl_modal.errors import AmbiguousRun as AmbiguousRun
    from skyrl_modal.errors import BackendUnavailable as BackendUnavailable
    from skyrl_modal.errors import CheckoutNotFound as CheckoutNotFound
    from skyrl_modal.errors import CommandFailed as CommandFailed
    from skyrl_modal.errors import RunCancelled as RunCancelled
    from skyrl_modal.errors import RunLost as RunLost
    from skyrl_modal.errors import RunNotFound as RunNotFound
    from skyrl_modal.errors import RunTimeout as RunTimeout
    from skyrl_modal.errors import SkyRLModalError as SkyRLModalError
    from skyrl_modal.errors import SpecError as SpecError
    from skyrl_modal.formats.chat_text import Message as Message
    from skyrl_modal.formats.checkpoints import Checkpoint as Checkpoint
    from skyrl_modal.formats.metrics_writer import log_metrics as log_metrics
    from skyrl_modal.formats.rollout import Rollout as Rollout
    from skyrl_modal.formats.rollout_writer import log_rollouts as log_rollouts
    from skyrl_modal.launcher import Launcher as Launcher
    from skyrl_modal.prepare.plan import Plan as Plan
    from skyrl_modal.protocol.state import RunState as RunState
    from skyrl_modal.run.handle import Run as Run
    from skyrl_modal.run.result import RunResult as RunResult
    from skyrl_modal.run.run_list import runs as runs
    from skyrl_modal.run_map import map as map  # noqa: A004  # it is used as skyrl_modal.map
    from skyrl_modal.spec.bucket import BucketSpec as BucketSpec
    from skyrl_modal.spec.image import ImageSpec as ImageSpec
    from skyrl_modal.spec.image_steps import AptInstall as AptInstall
    from skyrl_modal.spec.image_steps import CopyFiles as CopyFiles
    from skyrl_modal.spec.image_steps import PipInstall as PipInstall
    from skyrl_modal.spec.image_steps import RunCommands as RunCommands
    from skyrl_modal.spec.image_steps import SetEnv as SetEnv
    from skyrl_modal.spec.image_steps import SetWorkdir as SetWorkdir
    from skyrl_modal.spec.image_steps import UvSync as UvSync
    from skyrl_modal.spec.mount import MountSpec as MountSpec
    from skyrl_modal.spec.ray import RaySpec as RaySpec
    from skyrl_modal.spec.secret import SecretSpec as SecretSpec
    from skyrl_modal.spec.volume import VolumeSpec as VolumeSpec

#: The module that defines each public name.
_MODULE_OF_NAME = {
    "AptInstall": "spec.image_steps",
    "AmbiguousRun": "errors",
    "BackendUnavailable": "errors",
    "BucketSpec": "spec.bucket",
    "Checkpoint": "formats.checkpoints",
    "CheckoutNotFound": "errors",
    "CommandFailed": "errors",
    "CopyFiles": "spec.image_steps",
    "ImageSpec": "spec.image",
    "Launcher": "launcher",
    "Message": "formats.chat_text",
    "MountSpec": "spec.mount",
    "PipInstall": "spec.image_steps",
    "Plan": "prepare.plan",
    "RaySpec": "spec.ray",
    "Rollout": "formats.rollout",
    "Run": "run.handle",
    "RunCancelled": "errors",
    "RunCommands": "spec.image_steps",
    "RunLost": "errors",
    "RunNotFound": "errors",
    "RunResult": "run.result",
    "RunState": "protocol.state",
    "RunTimeout": "errors",
    "SecretSpec": "spec.secret",
    "SetEnv": "spec.image_steps",
    "SetWorkdir": "spec.image_steps",
    "SkyRLModalError": "errors",
    "SpecError": "errors",
    "UvSync": "spec.image_steps",
    "VolumeSpec": "spec.volume",
    "log_metrics": "formats.metrics_writer",
    "log_rollouts": "formats.rollout_writer",
    "map": "run_map",
    "runs": "run.run_list",
}

# The names are the keys of the table above. ``from skyrl_modal import *`` does not replace Python's ``map``.
__all__ = [name for name in _MODULE_OF_NAME if name != "map"]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_MODULE_OF_NAME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF_NAME])
