"""Buckets of object stores, which are mounted beside volumes."""

from __future__ import annotations

import re
from pathlib import Path

from skyrl_modal.declaration import Attribute, field, frozen
from skyrl_modal.errors import SpecError
from skyrl_modal.spec.container_paths import mount_point
from skyrl_modal.spec.fields import check_flag, check_optional_name
from skyrl_modal.spec.shown import Shown
from skyrl_modal.spec.volume import VolumeSpec

# The rules of Amazon S3 and Cloudflare R2; Google Cloud Storage permits underscores too, and 222 characters with dots.
# Expressions are compiled on first use, since importing Launcher imports this module.
_NAME = r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"
_MAX_NAME_WITHOUT_DOTS = 63
_NAME_REMEDY = "use 3 to 63 lowercase letters, digits, dots, dashes, underscores; start and end with a letter or digit"
_URL_NAME = r"[a-z0-9]+://([^/]+)/?(.*)"
_ENDPOINT = r"https?://[A-Za-z0-9.-]+(:\d{1,5})?/?"
_ROLE = r"arn:[a-z-]+:iam::[0-9]+:role/[A-Za-z0-9_+=,.@/-]+"


def _to_mount_path(value: str | Path) -> str:
    return mount_point(value, "mount_path")


@frozen(kw_only=True)
class BucketSpec(Shown):
    """A bucket of Amazon S3, Cloudflare R2, Google Cloud Storage or another S3-compatible store.

    On Modal it is a ``modal.CloudBucketMount``. On the local backend it is a folder that is kept between runs, in the
    user's data folder below ``buckets/``; nothing is read from the store.

    Attributes:
        name: Its name, without ``s3://``.
        mount_path: Its path in the container, outside of mounts and volumes.
        endpoint_url: The store's address for R2, Google Cloud Storage and others; None for Amazon S3.
        key_prefix: What the keys of the mounted objects begin with, such as ``"datasets/"``; None for all objects.
        secret: The secret on Modal with the credentials, ``AWS_ACCESS_KEY_ID`` and ``AWS_SECRET_ACCESS_KEY``, for
            Google Cloud Storage ``GOOGLE_ACCESS_KEY_ID`` and ``GOOGLE_ACCESS_KEY_SECRET``; None for a public bucket.
            The command does not receive its variables.
        oidc_auth_role_arn: The role of AWS that Modal assumes, in place of a secret; None for none.
        read_only: Whether writes are refused.
        requester_pays: Whether the caller is billed for the requests, which requires ``secret``.
        force_path_style: Whether the store's addresses have the bucket in their path instead of in the host's name.

    Example:
        >>> BucketSpec(name="my-datasets", mount_path="/mnt/datasets", key_prefix="gsm8k/").read_only
        False
    """

    name: str = field()
    mount_path: str = field(converter=_to_mount_path)
    endpoint_url: str | None = field(default=None)
    key_prefix: str | None = field(default=None)
    secret: str | None = field(default=None, validator=check_optional_name)
    oidc_auth_role_arn: str | None = field(default=None)
    read_only: bool = field(default=False, validator=check_flag)
    requester_pays: bool = field(default=False, validator=check_flag)
    force_path_style: bool = field(default=False, validator=check_flag)

    @name.validator
    def _check_name(self, attribute: Attribute[str], value: object) -> None:
        text = value if isinstance(value, str) else ""
        if url := re.fullmatch(_URL_NAME, text):
            prefix = f", and key_prefix={url[2].rstrip('/') + '/'!r}" if url[2] else ""
            raise SpecError("name", value, f"pass the name alone, {url[1]!r}{prefix}")
        is_long = any(len(part) > _MAX_NAME_WITHOUT_DOTS for part in text.split("."))
        if not re.fullmatch(_NAME, text) or ".." in text or is_long:
            raise SpecError("name", value, _NAME_REMEDY)

    @endpoint_url.validator
    def _check_endpoint(self, attribute: Attribute[str | None], value: object) -> None:
        if value is not None and (not isinstance(value, str) or not re.fullmatch(_ENDPOINT, value)):
            example = "https://ACCOUNT.r2.cloudflarestorage.com or https://storage.googleapis.com"
            # The text may have a password in front of the host: it is not repeated.
            shown = value if not isinstance(value, str) or "@" not in value else "(not shown)"
            raise SpecError("endpoint_url", shown, f"pass the store's address, such as {example}, without the bucket")

    @key_prefix.validator
    def _check_prefix(self, attribute: Attribute[str | None], value: object) -> None:
        if value is None:
            return
        parts = value.split("/") if isinstance(value, str) else []
        if isinstance(value, str) and value and not value.endswith("/"):
            raise SpecError("key_prefix", value, f'end it with a slash: "{value}/"')
        if len(parts) < 2 or any(part in ("", ".", "..") or not part.isprintable() for part in parts[:-1]):
            raise SpecError("key_prefix", value, 'pass folders that end with a slash, such as "datasets/gsm8k/"')

    @oidc_auth_role_arn.validator
    def _check_role(self, attribute: Attribute[str | None], value: object) -> None:
        if value is None:
            return
        if not isinstance(value, str) or not re.fullmatch(_ROLE, value):
            remedy = 'pass the ARN of a role, such as "arn:aws:iam::123456789012:role/name"'
            raise SpecError("oidc_auth_role_arn", value, remedy)
        if self.secret is not None:
            raise SpecError("oidc_auth_role_arn", value, "omit secret: the role takes its place")

    @requester_pays.validator
    def _check_payer(self, attribute: Attribute[bool], value: object) -> None:
        if value and self.secret is None:
            raise SpecError("requester_pays", value, "pass secret too: requests without credentials cannot be billed")


#: What ``Launcher.volumes`` contains.
AnyVolume = VolumeSpec | BucketSpec


def kind_of(item: AnyVolume) -> str:
    """Return what a spec of a volume or a bucket is called in messages.

    Example:
        >>> kind_of(VolumeSpec())
        'volume'
    """
    return "bucket" if isinstance(item, BucketSpec) else "volume"
