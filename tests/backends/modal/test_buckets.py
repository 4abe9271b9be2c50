"""Buckets on Modal: the mount that reaches Modal's servers, its secret, and what cannot be done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from modal_proto import api_pb2

from skyrl_modal import BucketSpec, Launcher, SpecError, VolumeSpec
from tests.support.loopback import LoopbackModal

AWS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
R2 = "https://1234.r2.cloudflarestorage.com"
GOOGLE = "https://storage.googleapis.com"
#: Writes a file that is large enough to be reported if it is lost.
WRITE = "head -c 3000000 /dev/zero >"
TYPES = api_pb2.CloudBucketMount.BucketType


def test_mounts_reach_modal(server: LoopbackModal, launcher: Callable[..., Launcher], volume: VolumeSpec) -> None:
    """Each declared value is in the request that creates the function. The run reads and writes the buckets."""
    server.secret("aws", AWS)
    buckets = [
        BucketSpec(
            name="my-r2", mount_path="/mnt/r2", endpoint_url=R2, key_prefix="a/", secret="aws", requester_pays=True
        ),
        BucketSpec(name="my-gcs", mount_path="/mnt/gcs", endpoint_url=GOOGLE, force_path_style=True),
        BucketSpec(
            name="my-s3",
            mount_path="/mnt/s3",
            oidc_auth_role_arn="arn:aws:iam::123456789012:role/reader",
            read_only=True,
        ),
    ]
    source = server.plane.folder / "buckets" / "my-s3" / "in"
    source.parent.mkdir(parents=True)
    source.write_text("content")

    made = launcher(volumes=[volume, *buckets])
    result = made.run(f"cp /mnt/s3/in /mnt/r2/out && {WRITE} /mnt/r2/model.pt && ! touch /mnt/s3/refused", quiet=True)

    mounts = server.requests("FunctionCreate")[0].function.cloud_bucket_mounts
    wire = {mount.mount_path: mount for mount in mounts}
    assert (result.returncode, result.unsaved) == (0, ())
    assert {path: (mount.bucket_name, mount.bucket_type) for path, mount in wire.items()} == {
        "/mnt/r2": ("my-r2", TYPES.R2),
        "/mnt/gcs": ("my-gcs", TYPES.GCP),
        "/mnt/s3": ("my-s3", TYPES.S3),
    }
    r2, gcs, s3 = wire["/mnt/r2"], wire["/mnt/gcs"], wire["/mnt/s3"]
    assert (r2.bucket_endpoint_url, r2.key_prefix, r2.requester_pays, r2.read_only) == (R2, "a/", True, False)
    assert server.plane.secrets.secrets[r2.credentials_secret_id].name == "aws"
    assert (gcs.force_path_style, gcs.credentials_secret_id, r2.force_path_style) == (True, "", False)
    assert (s3.oidc_auth_role_arn, s3.read_only) == ("arn:aws:iam::123456789012:role/reader", True)
    assert (server.plane.folder / "buckets" / "my-r2" / "a" / "out").read_text() == "content"
    # The command does not receive the credentials.
    assert r2.credentials_secret_id not in server.requests("FunctionCreate")[0].function.secret_ids


@pytest.mark.parametrize(
    ("declared", "endpoint", "keys"),
    [
        (None, None, "AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=..."),
        ({"AWS_ACCESS_KEY_ID": "a"}, R2, "AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=..."),
        (AWS, GOOGLE, "GOOGLE_ACCESS_KEY_ID=... GOOGLE_ACCESS_KEY_SECRET=..."),
    ],
)
def test_missing_secret(
    server: LoopbackModal,
    launcher: Callable[..., Launcher],
    declared: dict[str, str] | None,
    endpoint: str | None,
    keys: str,
) -> None:
    """A secret that Modal does not have, or without the variables that the store requires, starts nothing."""
    if declared is not None:
        server.secret("store", declared)
    bucket = BucketSpec(name="sets", mount_path="/mnt/sets", secret="store", endpoint_url=endpoint)

    made = launcher(volumes=[VolumeSpec(), bucket])

    with pytest.raises(SpecError) as planned:
        made.plan("true", check=True)
    with pytest.raises(SpecError) as caught:
        made.run("true", quiet=True)

    assert (caught.value.field, caught.value.value) == ("secret", "store")
    assert str(planned.value) == str(caught.value)
    assert f"modal secret create store {keys}" in caught.value.remedy
    assert not server.requests("FunctionCreate")


@pytest.mark.parametrize(
    "call",
    [
        lambda launcher, folder: launcher.ls("/mnt/sets/a"),
        lambda launcher, folder: launcher.du("/mnt/sets/a"),
        lambda launcher, folder: list(launcher.read("/mnt/sets/a")),
        lambda launcher, folder: launcher.pull("/mnt/sets/a", folder / "copy"),
        lambda launcher, folder: launcher.plan_pull("/mnt/sets/a", folder / "copy"),
        lambda launcher, folder: launcher.push(folder, "/mnt/sets/a"),
        lambda launcher, folder: launcher.plan_push(f"{folder}/", "/mnt/sets/a"),
        lambda launcher, folder: launcher.remove("/mnt/sets/a", recursive=True),
    ],
)
def test_files_are_refused(
    server: LoopbackModal, launcher: Callable[..., Launcher], tmp_path: Path, call: Callable[[Launcher, Path], Any]
) -> None:
    """Modal's API cannot access objects: the error names the store's own program, and nothing is requested."""
    bucket = BucketSpec(name="sets", mount_path="/mnt/sets", endpoint_url=R2, key_prefix="p/")

    with pytest.raises(SpecError) as caught:
        call(launcher(volumes=[VolumeSpec(), bucket]), tmp_path)

    assert (caught.value.field, caught.value.value) == ("path", "/mnt/sets/a")
    assert f"`aws s3 ls s3://sets/p/a --endpoint-url {R2}`" in caught.value.remedy
    assert not [name for name in server.names() if name.startswith("Volume")]
