"""Conversion of a RunSpec to plain data and back, for the index of runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skyrl_modal.declaration import evolve, fields, has
from skyrl_modal.spec.bucket import AnyVolume, BucketSpec
from skyrl_modal.spec.image import ImageSpec
from skyrl_modal.spec.mount import MountSpec
from skyrl_modal.spec.ray import RaySpec
from skyrl_modal.spec.run_spec import RunSpec
from skyrl_modal.spec.secret import SecretSpec
from skyrl_modal.spec.volume import VolumeSpec

#: The key that distinguishes the two kinds of volumes.
_KIND = "kind"
_BUCKET = "bucket"


def encode_spec(spec: RunSpec, *, checkout: Path | None) -> dict[str, Any]:
    """Convert a spec to data that ``json.dumps`` accepts. It contains the names of secrets and no values.

    Args:
        spec: The spec. Fields that a subclass adds are left out.
        checkout: The checkout that was found for it; None to store the spec's own.
    """
    data = {item.name: _encode(getattr(spec, item.name)) for item in fields(RunSpec)}
    return data if checkout is None else {**data, "checkout": str(checkout)}


def _encode(value: Any) -> Any:
    if isinstance(value, ImageSpec) and value.steps:
        from skyrl_modal.spec.image_steps import encode_step  # imported here, since most images have no steps

        return {**_encode(evolve(value, steps=())), "steps": [encode_step(step) for step in value.steps]}
    if isinstance(value, BucketSpec):
        return {_KIND: _BUCKET, **{field.name: getattr(value, field.name) for field in fields(BucketSpec)}}
    if has(type(value)):
        return {field.name: _encode(getattr(value, field.name)) for field in fields(type(value))}
    if isinstance(value, Mapping):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def decode_spec(data: Mapping[str, Any]) -> RunSpec:
    """Convert stored data to a spec. Unknown keys are ignored, and missing fields take their default.

    Raises:
        SpecError: A value is not valid.
        TypeError: A field contains data of another type.
        CheckoutNotFound: The checkout does not exist any more.
    """
    values = _known(RunSpec, data)
    if values.get("image") is not None:
        values["image"] = ImageSpec(**_known(ImageSpec, values["image"]))
    if values.get("ray") is not None:
        values["ray"] = RaySpec(**_known(RaySpec, values["ray"]))
    if "mounts" in values:
        values["mounts"] = [MountSpec(**_known(MountSpec, item)) for item in values["mounts"]]
    if "volumes" in values:
        values["volumes"] = list(map(_decode_volume, values["volumes"]))
    if "secrets" in values:
        values["secrets"] = [
            item if isinstance(item, str) else SecretSpec(**_known(SecretSpec, item)) for item in values["secrets"]
        ]
    return RunSpec(**values)


def _decode_volume(data: Mapping[str, Any]) -> AnyVolume:
    if isinstance(data, Mapping) and data.get(_KIND) == _BUCKET:
        return BucketSpec(**_known(BucketSpec, data))
    return VolumeSpec(**_known(VolumeSpec, data))


def _known(cls: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the items that are fields of a class."""
    if not isinstance(data, Mapping):
        raise TypeError(f"expected the fields of {cls.__name__}, found {type(data).__name__}")
    return {field.name: data[field.name] for field in fields(cls) if field.name in data}
