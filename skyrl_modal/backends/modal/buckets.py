"""Buckets on Modal: what mounts them. Modal's API cannot list, read or write their objects."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

import modal

from skyrl_modal.backends.modal.preflight import RequiredObject
from skyrl_modal.errors import SpecError
from skyrl_modal.spec.bucket import AnyVolume, BucketSpec
from skyrl_modal.spec.volume import VolumeSpec

_GOOGLE_HOST = "storage.googleapis.com"
#: The variables that Modal requires in a bucket's secret (https://modal.com/docs/guide/cloud-bucket-mounts).
_AWS_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_GOOGLE_KEYS = ("GOOGLE_ACCESS_KEY_ID", "GOOGLE_ACCESS_KEY_SECRET")


class BucketMount:
    """The mount of one bucket.

    Args:
        spec: The bucket.

    Attributes:
        value: What a function's ``volumes`` contains.
        required_objects: The secret that must exist on Modal, if the bucket has one.
    """

    def __init__(self, spec: BucketSpec) -> None:
        keys = _GOOGLE_KEYS if _is_at(spec, _GOOGLE_HOST) else _AWS_KEYS
        secret = None if spec.secret is None else modal.Secret.from_name(spec.secret, required_keys=list(keys))
        self.required_objects: Sequence[RequiredObject] = ()
        if spec.secret is not None and secret is not None:
            self.required_objects = [RequiredObject("secret", spec.secret, secret, keys=keys)]
        self.value = modal.CloudBucketMount(
            bucket_name=spec.name,
            bucket_endpoint_url=spec.endpoint_url,
            key_prefix=spec.key_prefix,
            secret=secret,
            oidc_auth_role_arn=spec.oidc_auth_role_arn,
            read_only=spec.read_only,
            requester_pays=spec.requester_pays,
            force_path_style=spec.force_path_style,
        )


def only_volume(item: AnyVolume, path: str) -> VolumeSpec:
    """Return the volume whose files are requested.

    Args:
        item: A volume or bucket.
        path: The requested path on it.

    Raises:
        SpecError: It is a bucket.
    """
    if isinstance(item, VolumeSpec):
        return item
    where = f"{item.mount_path}/{path}".rstrip("/")
    remedy = (
        f"it is in the bucket {item.name}, whose objects Modal's API cannot list or transfer. Use the store's own "
        f"program, such as `{_command(item, path)}`"
    )
    raise SpecError("path", where, remedy)


def _command(spec: BucketSpec, path: str) -> str:
    """Return a command that lists a path of a bucket."""
    key = f"{spec.key_prefix or ''}{path}"
    if _is_at(spec, _GOOGLE_HOST):
        return f"gcloud storage ls gs://{spec.name}/{key}"
    endpoint = f" --endpoint-url {spec.endpoint_url}" if spec.endpoint_url else ""
    return f"aws s3 ls s3://{spec.name}/{key}{endpoint}"


def _is_at(spec: BucketSpec, host: str) -> bool:
    """Return whether a bucket is on a host, by the rule of ``modal.CloudBucketMount`` (modal 1.6.4)."""
    return (urlsplit(spec.endpoint_url or "").hostname or "").endswith(host)
