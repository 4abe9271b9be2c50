"""Steps that build an image, for ``ImageSpec(steps=[...])``. They run in the order of the list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from skyrl_modal.declaration import Attribute, field, fields, frozen
from skyrl_modal.errors import SpecError
from skyrl_modal.spec.fields import check_strings, check_unicode, container_path, to_env, to_strings


def _check_not_empty(instance: object, attribute: Attribute[Any], value: Sequence[str]) -> None:
    check_strings(instance, attribute, value)
    check_unicode(instance, attribute, value)
    if not value or not all(item.strip() for item in value):
        raise SpecError(attribute.name, value, "pass a list of at least one string that is not empty")


def _check_gpu(instance: object, attribute: Attribute[Any], value: object) -> None:
    if value is not None and (not isinstance(value, str) or not value.isprintable() or not value.strip()):
        raise SpecError(attribute.name, value, 'pass a GPU such as "any" or "T4", or None for a machine without GPU')


def _to_path(value: str) -> str:
    return container_path(value, "path")


def _to_target(value: str) -> str:
    return container_path(value, "target")


def _to_source(value: str | Path) -> str:
    if not isinstance(value, str | Path) or not str(value).strip() or "\0" in str(value):
        raise SpecError("source", value, "pass a path")
    if ".." in PurePosixPath(value).parts:
        raise SpecError("source", str(value), 'pass a path in the checkout, or an absolute path, without ".."')
    return str(value)


@frozen
class AptInstall:
    """Install Debian packages.

    Attributes:
        packages: Their names.

    Example:
        >>> AptInstall(["git", "curl"]).packages
        ('git', 'curl')
    """

    packages: Sequence[str] = field(converter=to_strings, validator=_check_not_empty)


@frozen
class PipInstall:
    """Install Python packages with pip.

    Attributes:
        packages: Packages in pip's notation.
        gpu: The GPU of the machine that builds this step, such as ``"any"``; None for none.

    Example:
        >>> PipInstall("wandb>=0.21").packages
        ('wandb>=0.21',)
    """

    packages: Sequence[str] = field(converter=to_strings, validator=_check_not_empty)
    gpu: str | None = field(default=None, validator=_check_gpu, kw_only=True)


@frozen
class RunCommands:
    """Run shell commands.

    Attributes:
        commands: The commands, one layer each.
        gpu: The GPU of the machine that builds this step, such as ``"any"``; None for none.

    Example:
        >>> RunCommands(["nvidia-smi"], gpu="any").gpu
        'any'
    """

    commands: Sequence[str] = field(converter=to_strings, validator=_check_not_empty)
    gpu: str | None = field(default=None, validator=_check_gpu, kw_only=True)


@frozen
class SetEnv:
    """Set environment variables for the following steps, and for the command.

    Attributes:
        env: The variables. ``$NAME`` and ``${NAME}`` stand for variables that are set before this step.

    Example:
        >>> SetEnv({"PATH": "/opt/bin:${PATH}"}).env
        {'PATH': '/opt/bin:${PATH}'}
    """

    env: Mapping[str, str] = field(converter=to_env, validator=check_unicode)


@frozen
class SetWorkdir:
    """Change the working folder of the following steps. The working folder of the command is ``Launcher.workdir``.

    Attributes:
        path: An absolute path in the image.

    Example:
        >>> SetWorkdir("/opt/build").path
        '/opt/build'
    """

    path: str = field(converter=_to_path)


@frozen
class CopyFiles:
    """Copy a file or a folder into the image, so that the following steps can use it.

    Of a folder, the files are copied that a mount of it would contain: git's ignored files are left out.

    Attributes:
        source: A path on this machine if it is absolute, else a path in the mounted checkout.
        target: An absolute path in the image: of the file, or of the folder.

    Example:
        >>> CopyFiles("skyrl-gym", "/opt/skyrl-gym").source
        'skyrl-gym'
    """

    source: str = field(converter=_to_source)
    target: str = field(converter=_to_target)


@frozen
class UvSync:
    """Install the dependencies that the checkout's ``uv.lock`` pins, into a virtual environment of the image.

    The layer depends on ``pyproject.toml``, ``uv.lock`` and the local packages that they name, such as ``skyrl-gym/``.
    It is not built again if other files of the checkout change. ``UV_PROJECT_ENVIRONMENT`` is set, so that ``uv run``
    in the run's command uses the environment. uv is installed with pip if the image has none.

    Attributes:
        extras: Extras of the project to install.
        groups: Dependency groups to install.
        gpu: The GPU of the machine that builds this step, such as ``"any"``; None for none.

    Example:
        >>> UvSync(extras=["tinker", "fsdp"], gpu="any").extras
        ('tinker', 'fsdp')
    """

    extras: Sequence[str] = field(
        default=(), converter=to_strings, validator=[check_strings, check_unicode], kw_only=True
    )
    groups: Sequence[str] = field(
        default=(), converter=to_strings, validator=[check_strings, check_unicode], kw_only=True
    )
    gpu: str | None = field(default=None, validator=_check_gpu, kw_only=True)


ImageStep = AptInstall | PipInstall | RunCommands | SetEnv | SetWorkdir | CopyFiles | UvSync
#: The class of each kind of step, by the name that stored records contain.
STEP_BY_NAME: Mapping[str, type[ImageStep]] = {
    "apt": AptInstall,
    "pip": PipInstall,
    "commands": RunCommands,
    "env": SetEnv,
    "workdir": SetWorkdir,
    "copy": CopyFiles,
    "uv_sync": UvSync,
}
_NAME_BY_STEP = {cls: name for name, cls in STEP_BY_NAME.items()}
#: The key of a step's name in a stored record.
_NAME_KEY = "step"


def to_steps(value: Any) -> Any:
    """Convert a list of steps, or of their stored records, to a tuple. The validator refuses other values."""
    if not isinstance(value, Iterable) or isinstance(value, str | Mapping):
        return value
    return tuple(decode_step(item) if isinstance(item, Mapping) else item for item in value)


def check_steps(instance: object, attribute: Attribute[Any], value: object) -> None:
    """Validate a tuple of steps."""
    if not isinstance(value, tuple) or not all(type(item) in _NAME_BY_STEP for item in value):
        names = ", ".join(cls.__name__ for cls in _NAME_BY_STEP)
        raise SpecError(attribute.name, value, f"pass a list of steps: {names}")


def encode_step(step: ImageStep) -> dict[str, Any]:
    """Return a step as data that ``json.dumps`` accepts.

    Example:
        >>> encode_step(AptInstall("git"))
        {'step': 'apt', 'packages': ['git']}
    """
    values = {item.name: getattr(step, item.name) for item in fields(type(step))}
    data = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return {_NAME_KEY: _NAME_BY_STEP[type(step)], **data}


def decode_step(data: Mapping[str, Any]) -> ImageStep:
    """Return the step of a stored record. Unknown keys are ignored.

    Raises:
        SpecError: The record is of an unknown kind.
        TypeError: A value is missing.
    """
    cls = STEP_BY_NAME.get(str(data.get(_NAME_KEY)))
    if cls is None:
        raise SpecError("steps", dict(data), f"the kind of a step is one of {', '.join(STEP_BY_NAME)}")
    return cls(**{item.name: data[item.name] for item in fields(cls) if item.name in data})
