"""What a user declares: image, volumes, mounts, Ray, GPUs, secrets, durations.

Every class is frozen and checks its values where they are written: a wrong one never gets as far as a container.
"""

from __future__ import annotations

import math
import posixpath
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from attrs import Attribute, field, frozen

from skyrl_modal.errors import SpecError

#: The image that is used where the checkout pins no Ray that a published image has.
DEFAULT_BASE = "novaskyai/skyrl-train-ray-2.51.1-py3.12-cu12.8"

#: Published images by the Ray version inside, as listed by the SkyRL project in August 2026. A new image is a new line.
BASE_BY_RAY: Mapping[str, str] = {
    "2.48.0": "novaskyai/skyrl-train-ray-2.48.0-py3.12-cu12.8",
    "2.51.1": DEFAULT_BASE,
    "2.56.0": "novaskyai/skyrl-train-ray-2.56.0-py3.12-cu12.8",
    "2.57.0": "novaskyai/skyrl-train-ray-2.57.0-py3.12-cu13.0",
}

#: GPU names that Modal documents. Others are passed on with a warning: Modal adds types faster than this list grows.
KNOWN_GPUS = (
    "T4", "L4", "A10", "A10G", "L40S", "A100", "A100-40GB", "A100-80GB", "RTX-PRO-6000",
    "H100", "H100!", "H200", "B200", "B200+", "B300", "ANY",
)  # fmt: skip

_GPU_NAME = re.compile(r"[A-Za-z][A-Za-z0-9+!-]*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(d|h|m|s)", re.IGNORECASE)
_UNIT_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}


def parse_duration(value: float | str | timedelta, *, name: str = "timeout") -> float:
    """Turn a duration into seconds.

    Args:
        value: Seconds, a ``timedelta``, or text: a number with d, h, m or s, also several (``"1h30m"``).
        name: The field that an error names.

    Returns:
        Seconds, above 0.

    Raises:
        SpecError: The value cannot be read, or is not above 0.

    Example:
        >>> parse_duration("90m"), parse_duration("1h30m"), parse_duration(30)
        (5400.0, 5400.0, 30.0)
    """
    remedy = 'give seconds above 0, a timedelta, or text such as "45s", "90m", "24h" or "1h30m"'
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, bool):
        raise SpecError(name, value, remedy)
    elif isinstance(value, int | float):
        seconds = float(value)
    elif isinstance(value, str):
        text = value.strip()
        parts = _DURATION_PART.findall(text)
        if parts and _DURATION_PART.sub("", text).strip() == "":
            seconds = sum(float(number) * _UNIT_SECONDS[unit.lower()] for number, unit in parts)
        elif re.fullmatch(r"\d+(\.\d+)?", text):
            seconds = float(text)
        else:
            raise SpecError(name, value, remedy)
    else:
        raise SpecError(name, value, remedy)
    if not math.isfinite(seconds) or seconds <= 0:
        raise SpecError(name, value, remedy)
    return seconds


@frozen
class GpuRequest:
    """One GPU type and how many of it.

    Attributes:
        name: As Modal names it, for example ``"A100-80GB"``.
        count: GPUs in one container, at least 1.
    """

    name: str
    count: int = 1

    def __str__(self) -> str:
        return f"{self.name}:{self.count}"


def parse_gpu(value: str | Sequence[str] | None) -> tuple[GpuRequest, ...]:
    """Read a GPU request.

    Args:
        value: ``"A100:4"``, ``"L4"``, several in order of preference, or None for no GPU.

    Returns:
        The requests in order of preference; empty for None.

    Raises:
        SpecError: The text is not ``NAME`` or ``NAME:COUNT``.

    Example:
        >>> parse_gpu(["H100:8", "A100-80GB:8"])
        (GpuRequest(name='H100', count=8), GpuRequest(name='A100-80GB', count=8))
    """
    if value is None:
        return ()
    items = [value] if isinstance(value, str) else list(value)
    if not items:
        raise SpecError("gpu", value, 'give at least one request such as "L4:1", or None for no GPU')
    requests = []
    for item in items:
        remedy = 'write NAME or NAME:COUNT with a count of at least 1, for example "A100-80GB:4"'
        if not isinstance(item, str):
            raise SpecError("gpu", value, remedy)
        name, colon, count = item.strip().partition(":")
        if not _GPU_NAME.fullmatch(name) or (colon and not re.fullmatch(r"[1-9]\d{0,3}", count)):
            raise SpecError("gpu", value, remedy)
        requests.append(GpuRequest(name.upper(), int(count) if colon else 1))
    return tuple(requests)


def check_gpu_names(value: str | Sequence[str] | None) -> str | Sequence[str] | None:
    """Check a GPU request and pass it on; a misspelt name is an error, an unknown one a warning.

    Raises:
        SpecError: The request cannot be read, or a name looks like a misspelling of one that Modal has.
    """
    for request in parse_gpu(value):
        if request.name in KNOWN_GPUS:
            continue
        near = get_close_matches(request.name, KNOWN_GPUS, n=3, cutoff=0.8)
        if near:
            raise SpecError("gpu", value, f"Modal has no {request.name}; did you mean {' or '.join(near)}?")
        warnings.warn(
            f"gpu={value!r}: {request.name} is not among the types known here ({', '.join(KNOWN_GPUS)}); Modal decides",
            stacklevel=4,
        )
    return value if value is None or isinstance(value, str) else tuple(value)


def container_path(value: object, name: str) -> str:
    """Check and normalise an absolute path in the container.

    Raises:
        SpecError: It is relative, is ``/``, or has a ``..`` in it.

    Example:
        >>> container_path("/root/data/", "mount_path")
        '/root/data'
    """
    remedy = 'give an absolute path in the container below /, without "..", for example "/root/data"'
    text = str(value) if isinstance(value, Path) else value
    if not isinstance(text, str) or not text.startswith("/") or "\0" in text or ".." in text.split("/"):
        raise SpecError(name, value, remedy)
    normal = "/" + posixpath.normpath(text).lstrip("/")
    if normal == "/":
        raise SpecError(name, value, remedy)
    return normal


def to_tuple(value: str | Iterable[str]) -> Sequence[str]:
    """Convert to a tuple; one string is a tuple of one. What cannot be converted is left to the validator."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, Iterable) else value


def check_texts(instance: object, attribute: Attribute[Any], value: object) -> None:
    """Check that the value is a tuple of strings."""
    if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
        raise SpecError(attribute.name, value, "give a list of strings")


def to_env(value: Mapping[str, str | int | float | Path]) -> Mapping[str, str]:
    """Convert to the variables of an environment, for a field named ``env``.

    Raises:
        SpecError: A name is no variable's name, or a value is neither text, number nor path.
    """
    remedy = "give a dict of variable names to strings, numbers or paths"
    if not isinstance(value, Mapping):
        raise SpecError("env", value, remedy)
    result: dict[str, str] = {}
    for key, item in value.items():
        name = f"env[{key!r}]"
        if not isinstance(key, str) or not _VARIABLE.fullmatch(key):
            raise SpecError(name, item, "a variable's name is letters, digits and underscores")
        if isinstance(item, bool) or not isinstance(item, str | int | float | Path) or "\0" in str(item):
            raise SpecError(name, item, remedy)
        result[key] = str(item)
    return result


def check_name(instance: object, attribute: Attribute[Any], value: object) -> None:
    """Check a name that Modal, or a folder here, gets."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise SpecError(attribute.name, value, "use 1 to 64 letters, digits, dots, dashes and underscores")


def _mount_path(value: str | Path) -> str:
    return container_path(value, "mount_path")


def _remote_path(value: str | Path) -> str:
    return container_path(value, "remote_path")


def at_least(minimum: float) -> Callable[[Any, Attribute[Any], Any], None]:
    """A validator: None, or a number of at least ``minimum``."""

    def check(instance: object, attribute: Attribute[Any], value: object) -> None:
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, int | float) or value < minimum:
            raise SpecError(attribute.name, value, f"give a number of at least {minimum:g}, or None")

    return check


@frozen(kw_only=True)
class ImageSpec:
    """The container's image: a base from a registry and layers on it.

    Attributes:
        base: Image in a registry. None: the published SkyRL image whose Ray the checkout pins.
        apt: Debian packages.
        pip: Python packages, in pip's notation.
        commands: Shell commands, each a layer, run as the image is built.
        env: Variables of the image. ``SKYRL_REPO_ROOT=/root/SkyRL`` is always set.
        python: Python version to add to a base that has none, for example ``"3.12"``.
        registry_secret: Name of a Modal secret with ``REGISTRY_USERNAME`` and ``REGISTRY_PASSWORD``.

    Example:
        >>> ImageSpec(pip=["wandb"]).pip
        ('wandb',)
    """

    base: str | None = field(default=None)
    apt: Sequence[str] = field(default=(), converter=to_tuple, validator=check_texts)
    pip: Sequence[str] = field(default=(), converter=to_tuple, validator=check_texts)
    commands: Sequence[str] = field(default=(), converter=to_tuple, validator=check_texts)
    env: Mapping[str, str] = field(factory=dict, converter=to_env)
    python: str | None = field(default=None)
    registry_secret: str | None = None

    @base.validator
    def _check_base(self, attribute: Attribute[str | None], value: object) -> None:
        if value is not None and (not isinstance(value, str) or not value.strip() or re.search(r"\s", value)):
            raise SpecError("base", value, 'give an image such as "novaskyai/skyrl-train-ray-2.51.1-py3.12-cu12.8"')

    @python.validator
    def _check_python(self, attribute: Attribute[str | None], value: object) -> None:
        if value is not None and (not isinstance(value, str) or not re.fullmatch(r"3\.\d{1,2}", value)):
            raise SpecError("python", value, 'give a minor version such as "3.12", or None for the base\'s own')

    def resolved_base(self, ray_version: str | None) -> tuple[str, str | None]:
        """The base image for a checkout that pins a version of Ray.

        Args:
            ray_version: The version that the checkout pins, None where it pins none.

        Returns:
            The image, and a warning where its Ray may not be the pinned one (None where all is well).

        Example:
            >>> ImageSpec().resolved_base("2.57.0")
            ('novaskyai/skyrl-train-ray-2.57.0-py3.12-cu13.0', None)
        """
        if self.base is not None:
            return self.base, None
        if ray_version is None:
            return DEFAULT_BASE, None
        if ray_version in BASE_BY_RAY:
            return BASE_BY_RAY[ray_version], None
        return DEFAULT_BASE, (
            f"the checkout pins ray=={ray_version}, for which no published SkyRL image is known here "
            f"(known: {', '.join(BASE_BY_RAY)}); {DEFAULT_BASE} is used, and a driver with another version of Ray "
            "will be refused by its cluster. Give ImageSpec(base=...) an image with the pinned version."
        )


@frozen(kw_only=True)
class VolumeSpec:
    """A persistent volume. Locally it is a folder of this user's that is kept between runs.

    Attributes:
        name: Its name.
        mount_path: Where the container has it.
        create_if_missing: Whether to make it on first use.
        read_only: Whether writes are refused.
        version: Modal's volume version, 1 or 2; None for Modal's default.

    Example:
        >>> VolumeSpec(name="ckpts", mount_path="/root/ckpts").read_only
        False
    """

    name: str = field(default="skyrl-data", validator=check_name)
    mount_path: str = field(default="/root/data", converter=_mount_path)
    create_if_missing: bool = True
    read_only: bool = False
    version: int | None = field(default=None)

    @version.validator
    def _check_version(self, attribute: Attribute[int | None], value: object) -> None:
        if value not in (None, 1, 2):
            raise SpecError("version", value, "give 1, 2, or None for Modal's default")


def _local_folder(value: object) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, str | Path):
        raise SpecError("local_path", value, "give a folder, or None for the checkout")
    return Path(value).expanduser().absolute()


@frozen(kw_only=True)
class MountSpec:
    """A local folder that goes into the container, without what .gitignore names.

    Attributes:
        local_path: The folder; None for the checkout.
        remote_path: Where the container has it.
        exclude: Patterns in .gitignore's language for files that stay behind; they win over git's rules.
        include: Patterns for files that go all the same; they win over git's rules and over ``exclude``.
        skip_caches: Whether untracked environments and caches stay behind also where no .gitignore names them.

    Example:
        >>> MountSpec(exclude="*.ckpt").exclude
        ('*.ckpt',)
    """

    local_path: Path | None = field(default=None, converter=_local_folder)
    remote_path: str = field(default="/root/SkyRL", converter=_remote_path)
    exclude: Sequence[str] = field(default=(), converter=to_tuple, validator=check_texts)
    include: Sequence[str] = field(default=(), converter=to_tuple, validator=check_texts)
    skip_caches: bool = True


def _start_timeout(value: float | str | timedelta) -> float:
    return parse_duration(value, name="start_timeout")


#: Ports that Ray gives its workers by default, and refuses for anything else (ray start --help).
WORKER_PORTS = range(10002, 20000)


@frozen(kw_only=True)
class RaySpec:
    """The Ray cluster that is up when the command starts.

    Attributes:
        port: The head's port; where it is taken, a free one is used.
        dashboard: Whether Ray's dashboard runs, at ``Run.url``; it makes the start about three times as long, and needs
            ``ray[default]`` where Ray runs.
        num_cpus: CPUs that Ray may hand out on each node; None: all (which several nodes on one machine share).
        object_store_memory: Bytes of the object store on each node; None: Ray's default. At least 75 MiB.
        start_timeout: Seconds until every node must be there with Ray ready, a ``timedelta``, or text such as ``"2m"``.
        env: Variables for Ray's own processes, on every node before it starts.
        on_worker_loss: What becomes of the command where a node other than the first is lost: ``"fail"`` ends it and
            the attempt at once; ``"wait"`` lets it go on, for commands that survive it, and starts the node again.

    Example:
        >>> RaySpec(start_timeout="2m").start_timeout
        120.0
    """

    port: int = field(default=6379)
    dashboard: bool = False
    num_cpus: int | None = field(default=None, validator=at_least(1))
    object_store_memory: int | None = field(default=None, validator=at_least(75 * 1024 * 1024))
    start_timeout: float = field(default=120.0, converter=_start_timeout)
    env: Mapping[str, str] = field(factory=dict, converter=to_env)
    on_worker_loss: str = field(default="fail")

    @on_worker_loss.validator
    def _check_on_worker_loss(self, attribute: Attribute[str], value: object) -> None:
        if value not in ("fail", "wait"):
            raise SpecError("on_worker_loss", value, 'give "fail" or "wait"')

    @port.validator
    def _check_port(self, attribute: Attribute[int], value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not 1024 <= value <= 65535:
            raise SpecError("port", value, "give a port from 1024 to 65535")
        if value in WORKER_PORTS:
            raise SpecError("port", value, "Ray keeps 10002 to 19999 for its workers: give one outside of these")


@frozen
class SecretSpec:
    """A secret that Modal keeps under a name.

    Attributes:
        name: Its name on Modal.
        keys: The variables that it holds; those given here are required, and their values are masked in the output.

    Example:
        >>> SecretSpec("huggingface", keys=["HF_TOKEN"]).keys
        ('HF_TOKEN',)
    """

    name: str = field(validator=check_name)
    keys: Sequence[str] = field(default=(), converter=to_tuple, validator=check_texts)
