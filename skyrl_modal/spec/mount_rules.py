"""Which mount points of one run exclude each other."""

from __future__ import annotations

from collections.abc import Sequence

from skyrl_modal.errors import SpecError
from skyrl_modal.spec.bucket import AnyVolume, BucketSpec, kind_of
from skyrl_modal.spec.container_paths import RECORDS_FOLDER, find_nested
from skyrl_modal.spec.fields import is_below
from skyrl_modal.spec.mount import MountSpec
from skyrl_modal.spec.volume import VolumeSpec


def check_places(volumes: Sequence[AnyVolume], mounts: Sequence[MountSpec]) -> None:
    """Check that no mount point is used twice, or hides what another one shows.

    Args:
        volumes: The volumes and buckets.
        mounts: The mounts.

    Raises:
        SpecError: Two paths are equal, or one contains another one that it must not contain.
    """
    _check_unique("volumes", [volume.mount_path for volume in volumes])
    mount_paths = [mount.remote_path for mount in mounts]
    _check_unique("mounts", mount_paths)
    nested = find_nested(mount_paths)
    if nested is not None:
        inner, outer = nested
        raise SpecError("mounts", inner, f"the mount at {outer} contains this path; pass a path outside of it")
    _check_records_visible([volume for volume in volumes if isinstance(volume, VolumeSpec)])
    for path in mount_paths:
        for volume in volumes:
            if is_below(path, volume.mount_path):
                place = f"the {kind_of(volume)} {volume.name} is mounted at {volume.mount_path}"
                raise SpecError("mounts", path, f"{place}; pass a path outside of it")
    for volume in volumes:
        if isinstance(volume, BucketSpec):
            _check_bucket(volume, volumes, mounts)


def _check_bucket(bucket: BucketSpec, volumes: Sequence[AnyVolume], mounts: Sequence[MountSpec]) -> None:
    """Check that a bucket is in no mount and no volume, and that nothing is in it."""
    around = [(mount.remote_path, f"the mount at {mount.remote_path}") for mount in mounts]
    others = [volume for volume in volumes if volume is not bucket]
    around += [(other.mount_path, f"the {kind_of(other)} {other.name}") for other in others]
    for path, name in around:
        if is_below(bucket.mount_path, path):
            raise SpecError("volumes", bucket.mount_path, f"{name} contains this path; pass a path outside of it")
    for other in others:
        if is_below(other.mount_path, bucket.mount_path):
            remedy = f"the bucket {bucket.name} contains this path; pass a path outside of it"
            raise SpecError("volumes", other.mount_path, remedy)


def _check_records_visible(volumes: Sequence[VolumeSpec]) -> None:
    """Check that no volume hides the folder in which another volume has the records of runs."""
    for volume in volumes:
        for other in volumes:
            records = f"{other.mount_path}/{RECORDS_FOLDER}"
            if is_below(volume.mount_path, records):
                remedy = f"the volume {other.name} has the records of runs in {records}; pass a path outside of it"
                raise SpecError("volumes", volume.mount_path, remedy)


def _check_unique(name: str, paths: Sequence[str]) -> None:
    for number, path in enumerate(paths):
        if path in paths[:number]:
            raise SpecError(name, path, f"two {name} have this path; pass a path of its own for each")
