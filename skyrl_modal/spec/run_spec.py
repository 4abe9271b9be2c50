"""What a launcher declares: its fields, with their checks where the values are given."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from attrs import Attribute, field, frozen

from skyrl_modal.backends import BACKENDS, Backend, unknown_backend
from skyrl_modal.checkout import find_checkout
from skyrl_modal.errors import SpecError
from skyrl_modal.spec.duration import parse_duration
from skyrl_modal.spec.fields import at_least, check_name, to_env
from skyrl_modal.spec.gpu import check_gpu_names
from skyrl_modal.spec.image import ImageSpec
from skyrl_modal.spec.mount import MountSpec
from skyrl_modal.spec.ray import RaySpec
from skyrl_modal.spec.secret import SecretSpec
from skyrl_modal.spec.volume import VolumeSpec


def _volumes(value: Sequence[VolumeSpec]) -> Sequence[VolumeSpec]:
    return value if isinstance(value, str) else tuple(value)


def _mounts(value: Sequence[MountSpec]) -> Sequence[MountSpec]:
    return value if isinstance(value, str) else tuple(value)


def _timeout(value: float | str | timedelta) -> float:
    return parse_duration(value, name="timeout")


def _grace(value: float | str | timedelta) -> float:
    return parse_duration(value, name="grace")


def _secrets(value: str | SecretSpec | Sequence[str | SecretSpec]) -> Sequence[str | SecretSpec]:
    return (value,) if isinstance(value, str | SecretSpec) else tuple(value)


def _exit_codes(value: Sequence[int] | Callable[[int], bool] | None) -> Sequence[int] | None:
    """Exit codes as data: a callable cannot go along, so it is asked about each of them now."""
    if value is None:
        return None
    if callable(value):
        return tuple(code for code in range(1, 256) if value(code))
    codes = tuple(value)
    if not all(isinstance(code, int) and 1 <= code <= 255 for code in codes):
        raise SpecError("should_retry", value, "give exit codes from 1 to 255, or a callable that takes one")
    return codes


def _checkout(value: str | Path | None) -> Path | None:
    return None if value is None else find_checkout(value)


def _all_of(kind: type) -> Callable[[Any, Attribute[Any], Any], None]:
    def check(instance: object, attribute: Attribute[Any], value: object) -> None:
        if not isinstance(value, tuple) or not all(isinstance(item, kind) for item in value):
            raise SpecError(attribute.name, value, f"give a list of {kind.__name__}")

    return check


@frozen(kw_only=True)
class Declaration:
    """The fields of ``skyrl_modal.Launcher``, which documents them; here so that a plan can be made without it."""

    image: ImageSpec = field(factory=ImageSpec)
    volumes: Sequence[VolumeSpec] = field(
        factory=lambda: [VolumeSpec()], converter=_volumes, validator=_all_of(VolumeSpec)
    )
    mounts: Sequence[MountSpec] = field(factory=lambda: [MountSpec()], converter=_mounts, validator=_all_of(MountSpec))
    gpu: str | Sequence[str] | None = field(
        factory=lambda: os.environ.get("MODAL_GPU", "L4:1"), converter=check_gpu_names
    )
    nodes: int = field(default=1)
    rdma: bool = field(default=False)
    ray: RaySpec | None = field(factory=RaySpec)
    timeout: float = field(default=3600.0, converter=_timeout)
    retries: int = field(default=0)
    secrets: Sequence[str | SecretSpec] = field(default=(), converter=_secrets)
    env: Mapping[str, str] = field(factory=dict, converter=to_env)
    cpu: float | None = field(default=None, validator=at_least(0.125))
    memory: int | None = field(default=None, validator=at_least(128))
    region: str | None = None
    cloud: str | None = None
    workdir: str = field(default=".")
    app_name: str = field(factory=lambda: os.environ.get("MODAL_APP_NAME", "my_skyrl_app"), validator=check_name)
    checkout: Path | None = field(default=None, converter=_checkout)
    backend: str | Backend = field(factory=lambda: os.environ.get("SKYRL_MODAL_BACKEND", "modal"))
    grace: float = field(default=6.0, converter=_grace)
    should_retry: Sequence[int] | None = field(default=None, converter=_exit_codes)

    @nodes.validator
    def _check_nodes(self, attribute: Attribute[int], value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SpecError("nodes", value, "give a whole number of at least 1")

    @rdma.validator
    def _check_rdma(self, attribute: Attribute[bool], value: object) -> None:
        if not isinstance(value, bool):
            raise SpecError("rdma", value, "give True or False")
        if value and self.nodes == 1:
            raise SpecError("rdma", value, "it is the network between nodes: give nodes=2 or more, or leave it out")

    @retries.validator
    def _check_retries(self, attribute: Attribute[int], value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 10:
            raise SpecError("retries", value, "give a whole number from 0 to 10")

    @image.validator
    def _check_image(self, attribute: Attribute[ImageSpec], value: object) -> None:
        if not isinstance(value, ImageSpec):
            raise SpecError("image", value, "give an ImageSpec")

    @ray.validator
    def _check_ray(self, attribute: Attribute[RaySpec | None], value: object) -> None:
        if value is not None and not isinstance(value, RaySpec):
            raise SpecError("ray", value, "give a RaySpec, or None for no Ray")

    @secrets.validator
    def _check_secrets(self, attribute: Attribute[Any], value: Sequence[object]) -> None:
        for item in value:
            if isinstance(item, SecretSpec):
                continue
            if not isinstance(item, str) or not item.isidentifier():
                remedy = "give the names of variables, not their values, or SecretSpec for secrets that Modal keeps"
                # The text may be a secret by mistake ("KEY=value"): it is not repeated.
                raise SpecError("secrets", "(not shown)", remedy)

    @workdir.validator
    def _check_workdir(self, attribute: Attribute[str], value: object) -> None:
        if not isinstance(value, str) or not value or ".." in value.split("/") or "\0" in value:
            raise SpecError("workdir", value, 'give a folder in the checkout, without "..", such as "skyrl-train"')

    @backend.validator
    def _check_backend(self, attribute: Attribute[str | Backend], value: object) -> None:
        if value not in BACKENDS and (isinstance(value, str) or not hasattr(value, "start")):
            raise unknown_backend(value)

    def __attrs_post_init__(self) -> None:
        taken: dict[str, str] = {}
        for volume in self.volumes:
            if volume.mount_path in taken:
                raise SpecError("volumes", volume.mount_path, "two volumes are at this path; give each its own")
            taken[volume.mount_path] = "volume"
        for mount in self.mounts:
            path = mount.remote_path
            if taken.get(path) == "mount":
                raise SpecError("mounts", path, "two mounts are at this path; give each its own")
            for volume in self.volumes:
                if path == volume.mount_path or path.startswith(f"{volume.mount_path}/"):
                    raise SpecError(
                        "mounts", path, f"the volume {volume.name} is at {volume.mount_path}; mount beside it"
                    )
            taken[path] = "mount"
