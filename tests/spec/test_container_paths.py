"""Paths in the container at which volumes and mounts are refused, since the run needs what is there."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from skyrl_modal import Launcher, MountSpec, SpecError, VolumeSpec

MAKERS: list[Callable[[str], object]] = [
    lambda path: VolumeSpec(mount_path=path),
    lambda path: MountSpec(local_path="/tmp", remote_path=path),
]
NEEDED = [
    "/",
    "/proc",
    "/proc/1/root",
    "/sys",
    "/dev",
    "/dev/shm",
    "/etc",
    "/etc/ssl/certs",
    "/boot",
    "/bin",
    "/sbin",
    "/lib",
    "/lib64",
    "/usr",
    "/usr/lib",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/bin",
    "/usr/local",
    "/usr/local/bin",
    "/usr/local/lib/python3.12",
    "/run",
    "/run/lock",
    "/var",
    "/var/run",
    "/tmp",
    "/tmp/ray",
    "/opt",
    "/root",
    "/root/skyrl_modal",
    "/root/skyrl_modal/protocol",
    "/root/.skyrl_modal",
    "/home",
    "/home/ray",
    "/home/ray/anaconda3/lib",
    "/home/ray/.local",
    "/__modal",
    "/__modal/volumes",
    "//tmp",
    "/tmp/",
    "///usr//lib/",
    "/root/.",
    "/root/./",
    "/./proc",
    "/root/data/../..",
    "/usr/../tmp",
]
POSSIBLE = [
    "/root/data",
    "/root/data/",
    "/root/ckpts",
    "/root/SkyRL/outputs",
    "/root/.cache/huggingface",
    "/tmp/data",
    "/tmp/rays",
    "/mnt",
    "/mnt/data",
    "/data",
    "/home/ray/data",
    "/home/me",
    "/opt/own",
    "/usr/share/own",
    "/usr/local/share/own",
    "/var/cache/own",
    "/srv",
    "/root/skyrl_modal2",
]


@pytest.mark.parametrize("make", MAKERS, ids=["volume", "mount"])
@pytest.mark.parametrize("path", NEEDED)
def test_needed_path_is_refused(make: Callable[[str], object], path: str) -> None:
    """A path that would hide what a run needs is an error, however it is written."""
    with pytest.raises(SpecError) as caught:
        make(path)

    assert caught.value.field in ("mount_path", "remote_path")
    assert caught.value.value == path
    assert "/root/data" in caught.value.remedy


@pytest.mark.parametrize("make", MAKERS, ids=["volume", "mount"])
@pytest.mark.parametrize("path", POSSIBLE)
def test_other_path_is_accepted(make: Callable[[str], object], path: str) -> None:
    """A folder of its own is accepted."""
    make(path)


@pytest.mark.parametrize(
    ("checkout", "other"),
    [
        ("/root/SkyRL", "/root/SkyRL/sub"),
        ("/root/a/SkyRL", "/root/a"),
        ("/root/SkyRL", "/root/SkyRL/skyrl/"),
        ("/srv/a/b/c", "/srv"),
        ("/srv", "//srv/./x"),
    ],
)
def test_nested_mounts_are_refused(checkout: str, other: str) -> None:
    """A mount in another one is an error, in either order."""
    mounts = [MountSpec(remote_path=checkout), MountSpec(local_path="/tmp", remote_path=other)]
    for order in (mounts, mounts[::-1]):
        with pytest.raises(SpecError, match="contains this path"):
            Launcher(mounts=order)


@pytest.mark.parametrize(
    "path", ["/root/data/.skyrl_modal", "/root/data/.skyrl_modal/runs", "/root/data/.skyrl_modal/x"]
)
def test_volume_over_the_records_is_refused(path: str) -> None:
    """A volume must not replace the folder in which another volume has the records of runs."""
    with pytest.raises(SpecError, match="records of runs"):
        Launcher(volumes=[VolumeSpec(), VolumeSpec(name="b", mount_path=path)])
