"""Wraps functions of training code that log metrics or receive rollouts.

``sitecustomize.py`` of this folder loads it by its path.

A wrapped function has the arguments, the result and the exceptions of the original. An error of this module is ignored.
While one of these functions runs, others that it calls record nothing: SkyRL's ``Tracking.log`` calls ``wandb.log``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    #: Receives the arguments of the wrapped function.
    Reader = Callable[..., None]


def _load(name: str, folder: str = "") -> Any:
    """Return a module of ``formats``, or of a folder of it, by its path. It is loaded once."""
    from importlib.util import module_from_spec, spec_from_file_location

    key = f"_skyrl_modal_{name}"
    if key in sys.modules:
        return sys.modules[key]
    path = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), folder, f"{name}.py")
    spec = spec_from_file_location(key, path)
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[key] = module
    return module


_writer = _load("metrics_writer")
_calls = threading.local()
_counts: dict[tuple[int, str], int] = {}


def wrap(owner: Any, name: str, read: Reader) -> None:
    """Replace a function of a class by one that also passes its arguments to another function.

    Args:
        owner: The class.
        name: The name of the function.
        read: The other function. Its errors are ignored.
    """
    original = owner.__dict__.get(name)
    if original is None or hasattr(original, "_skyrl_modal_original"):
        return

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        depth = getattr(_calls, "depth", 0)
        if depth == 0:
            with contextlib.suppress(Exception):  # the training must not notice it
                read(*args, **kwargs)
        _calls.depth = depth + 1
        try:
            return original(*args, **kwargs)
        finally:
            _calls.depth = depth

    wrapper._skyrl_modal_original = original  # type: ignore[attr-defined]  # a function has attributes
    setattr(owner, name, wrapper)


def _record(source: str, data: Any, step: Any) -> None:
    number = _writer.to_step(step)
    if number is not None:
        _writer.append_row(source, number, _writer.numbers_of(data))


# -- SkyRL: skyrl/train/utils/tracking.py -----------------------------------------------------------------------------


def _read_tracking(tracking: Any, data: Any, step: Any, *_: Any, **__: Any) -> None:
    _record("tracker", data, step)


def _patch_tracking(module: ModuleType) -> None:
    wrap(module.Tracking, "log", _read_tracking)


# -- wandb: wandb/sdk/wandb_run.py; wandb.log is a method of the run (0.19 to 0.31) ------------------------------------


def _read_wandb(run: Any, data: Any, step: Any = None, *_: Any, **__: Any) -> None:
    # Without a step, wandb uses that of the row that is not finished yet.
    _record("wandb", data, run.step if step is None else step)


def _patch_wandb(module: ModuleType) -> None:
    wrap(module.Run, "log", _read_wandb)


# -- tensorboard: SummaryWriter of torch and of tensorboardX -----------------------------------------------------------


def _step_of(writer: Any, key: str, step: Any) -> Any:
    """Return the step; for a call without one, the number of earlier calls with this key."""
    if step is None:
        step = _counts.get((id(writer), key), 0)
        _counts[(id(writer), key)] = step + 1
    return step


def _read_scalar(writer: Any, tag: Any, scalar_value: Any, global_step: Any = None, *_: Any, **__: Any) -> None:
    _record("tensorboard", {tag: scalar_value}, _step_of(writer, tag, global_step))


def _read_scalars(
    writer: Any, main_tag: Any, tag_scalar_dict: Any, global_step: Any = None, *_: Any, **__: Any
) -> None:
    data = {f"{main_tag}/{tag}": value for tag, value in tag_scalar_dict.items()}
    _record("tensorboard", data, _step_of(writer, main_tag, global_step))


def _patch_tensorboard(module: ModuleType) -> None:
    wrap(module.SummaryWriter, "add_scalar", _read_scalar)
    wrap(module.SummaryWriter, "add_scalars", _read_scalars)


# -- tinker_cookbook/utils/ml_log.py, whose JsonLogger writes metrics.jsonl (0.6) --------------------------------------


def _read_cookbook(logger: Any, metrics: Any, step: Any = None, *_: Any, **__: Any) -> None:
    _record("tinker", metrics, _step_of(logger, "", step))


def _patch_cookbook(module: ModuleType) -> None:
    for name in ("MultiplexLogger", "JsonLogger"):
        wrap(getattr(module, name), "log_metrics", _read_cookbook)


# -- SkyRL: the rollouts of a step in skyrl/train/trainer.py -----------------------------------------------------------


def _patch_trainer(module: ModuleType) -> None:
    writer = _load("rollout_writer")
    if writer.samples_per_step():
        recorder = _load("trainer_rollouts", "hook").RolloutRecorder(writer)

        def read(*args: Any, **kwargs: Any) -> None:
            recorder.read_trainer(*args, **kwargs)

        wrap(module.RayPPOTrainer, "postprocess_generator_output", read)


#: What instruments a module, by its name. ``sitecustomize.py`` has the same names.
PATCHES = {
    "skyrl.train.trainer": _patch_trainer,
    "skyrl.train.utils.tracking": _patch_tracking,
    "skyrl_train.trainer": _patch_trainer,
    "skyrl_train.utils.tracking": _patch_tracking,
    "tensorboardX.writer": _patch_tensorboard,
    "tinker_cookbook.utils.ml_log": _patch_cookbook,
    "torch.utils.tensorboard.writer": _patch_tensorboard,
    "wandb.sdk.wandb_run": _patch_wandb,
}
