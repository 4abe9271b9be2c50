"""Declared buckets: their names, addresses and credentials, and where they can be mounted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from skyrl_modal import BucketSpec, Launcher, MountSpec, SpecError, VolumeSpec
from skyrl_modal.declaration import evolve
from skyrl_modal.spec.run_spec import RunSpec
from skyrl_modal.spec.stored import decode_spec, encode_spec

BUCKET = BucketSpec(name="sets", mount_path="/mnt/sets")


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("name", "", "3 to 63"),
        ("name", "ab", "3 to 63"),
        ("name", "a" * 64, "3 to 63"),
        ("name", "Upper", "lowercase"),
        ("name", "a..b", "lowercase"),
        ("name", "../b", "lowercase"),
        ("name", "-abc", "start and end"),
        ("name", "s3://sets", "pass the name alone, 'sets'"),
        ("name", "gs://sets/a/b", "'sets', and key_prefix='a/b/'"),
        ("mount_path", "mnt/sets", "absolute"),
        ("mount_path", "/etc", "the system's configuration"),
        ("endpoint_url", "storage.googleapis.com", "https://storage.googleapis.com"),
        ("endpoint_url", "https://host/bucket", "without the bucket"),
        ("key_prefix", "a", 'end it with a slash: "a/"'),
        ("key_prefix", "/a/", "folders"),
        ("key_prefix", "a/../../b/", "folders"),
        ("key_prefix", "", "folders"),
        ("key_prefix", "a\n/", "folders"),
        ("key_prefix", "\udc80/", "folders"),
        ("secret", "A=b", "1 to 64"),
        ("oidc_auth_role_arn", "reader", "arn:aws:iam"),
        ("oidc_auth_role_arn", "arn:aws:iam::1:role/\udc80", "arn:aws:iam"),
        ("read_only", "yes", "True or False"),
        ("requester_pays", True, "pass secret too"),
    ],
)
def test_invalid_value(field: str, value: object, remedy: str) -> None:
    """An invalid value is refused with its field and what is valid."""
    with pytest.raises(SpecError) as caught:
        evolve(BUCKET, **{field: value})

    assert (caught.value.field, caught.value.value) == (field, value)
    assert remedy in caught.value.remedy


def test_passwords_are_not_repeated() -> None:
    """An address with a password is refused without being shown."""
    with pytest.raises(SpecError) as caught:
        evolve(BUCKET, endpoint_url="https://user:hunter2@host")

    assert "hunter2" not in str(caught.value)


def test_role_and_secret_exclude_each_other() -> None:
    """A bucket has one kind of credentials."""
    with pytest.raises(SpecError, match="omit secret"):
        evolve(BUCKET, secret="aws", oidc_auth_role_arn="arn:aws:iam::123456789012:role/reader")


@pytest.mark.parametrize("name", ["abc", "my.sets", "a_b", "a" * 63, f"{'a' * 60}.{'b' * 60}"])
def test_valid_names(name: str) -> None:
    """Names that S3, R2 or Google Cloud Storage permit are accepted."""
    assert evolve(BUCKET, name=name).name == name


@pytest.mark.parametrize(
    ("fields", "field", "value"),
    [
        ({"volumes": [VolumeSpec(mount_path="/mnt/sets"), BUCKET]}, "volumes", "/mnt/sets"),
        ({"volumes": [BUCKET, evolve(BUCKET, name="other")]}, "volumes", "/mnt/sets"),
        ({"volumes": [evolve(BUCKET, mount_path="/root/SkyRL/data")]}, "volumes", "/root/SkyRL/data"),
        ({"volumes": [VolumeSpec(), evolve(BUCKET, mount_path="/root/data/b")]}, "volumes", "/root/data/b"),
        ({"volumes": [BUCKET, VolumeSpec(mount_path="/mnt/sets/v")]}, "volumes", "/mnt/sets/v"),
        (
            {"volumes": [BUCKET], "mounts": [MountSpec(local_path="/", remote_path="/mnt/sets/m")]},
            "mounts",
            "/mnt/sets/m",
        ),
        ({"volumes": ["sets"]}, "volumes", ("sets",)),
    ],
)
def test_places(fields: dict[str, Any], field: str, value: object) -> None:
    """A bucket has a path of its own: not that of a volume, in a mount or in another bucket, and nothing is in it."""
    with pytest.raises(SpecError) as caught:
        Launcher(backend="local", **fields)

    assert (caught.value.field, caught.value.value) == (field, value)


def test_data_folder_is_a_volume() -> None:
    """A bucket is never $SKYRL_DATA, so that the variable can be declared if there is no volume."""
    assert Launcher(backend="local", volumes=[BUCKET], env={"SKYRL_DATA": "/mnt/sets"}).persistent_volumes == ()
    with pytest.raises(SpecError):
        Launcher(backend="local", volumes=[BUCKET, VolumeSpec()], env={"SKYRL_DATA": "/mnt/sets"})


def test_stored() -> None:
    """The index of runs keeps buckets and volumes in their order."""
    spec = RunSpec(volumes=[evolve(BUCKET, secret="aws", key_prefix="a/"), VolumeSpec(version=2)])

    assert decode_spec(json.loads(json.dumps(encode_spec(spec, checkout=None)))) == spec
