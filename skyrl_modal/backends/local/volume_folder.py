"""Where the volumes and buckets of the local backend are."""

from __future__ import annotations

from pathlib import Path

from skyrl_modal.protocol.job import Bucket
from skyrl_modal.spec.bucket import AnyVolume, BucketSpec
from skyrl_modal.user_folders import data_folder


def volume_folder(name: str) -> Path:
    """Return the folder of a volume."""
    return data_folder() / "volumes" / name


def bucket_folder(bucket: Bucket | BucketSpec) -> Path:
    """Return the folder with the objects of a bucket whose keys begin with its prefix."""
    return data_folder() / "buckets" / bucket.name / (bucket.key_prefix or "")


def storage_folder(item: AnyVolume) -> Path:
    """Return the folder of a volume or bucket."""
    return bucket_folder(item) if isinstance(item, BucketSpec) else volume_folder(item.name)
