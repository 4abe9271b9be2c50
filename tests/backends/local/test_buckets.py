"""Buckets on this machine: folders that are kept between runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from skyrl_modal import BucketSpec, Launcher, VolumeSpec
from skyrl_modal.backends.local.volume_folder import bucket_folder

#: Writes a file that is large enough to be reported if it is lost.
WRITE = "head -c 3000000 /dev/zero >"


def test_objects_are_kept(launcher: Callable[..., Launcher], volume: VolumeSpec, tmp_path: Path) -> None:
    """A run reads and writes the folder below the prefix; one that is read only refuses writes. Files can be copied."""
    name = volume.name
    written = BucketSpec(name=name, mount_path="/mnt/out", key_prefix="a/b/")
    read = BucketSpec(name=name, mount_path="/mnt/in", read_only=True)
    made = launcher(volumes=[volume, written, read])
    (tmp_path / "up").write_text("content")

    made.push(tmp_path / "up", "/mnt/in/")
    result = made.run(
        f"cp /mnt/in/up /mnt/out/copy && {WRITE} /mnt/out/model.pt && ! touch /mnt/in/refused", quiet=True
    )

    assert result.returncode == 0
    assert bucket_folder(written) == bucket_folder(read) / "a" / "b"
    assert sorted(entry.path for entry in made.ls("/mnt/in/a/b")) == ["/mnt/in/a/b/copy", "/mnt/in/a/b/model.pt"]
    assert made.pull("/mnt/out/copy", tmp_path / "down").read_text() == "content"
    assert result.unsaved == ()


def test_folder_without_namespaces(no_namespaces: None, launcher: Callable[..., Launcher], volume: VolumeSpec) -> None:
    """Where nothing can be mounted, a warning names the folder of the bucket, which exists while the command runs."""
    bucket = BucketSpec(name=volume.name, mount_path="/mnt/sets", key_prefix="a/")
    made = launcher(volumes=[volume, bucket])

    [folder] = [text.partition(": use ")[2] for text in made.plan("true").warnings if text.startswith("/mnt/sets ")]

    assert made.run(f"touch {folder}/out", quiet=True).returncode == 0
    assert [entry.path for entry in made.ls("/mnt/sets")] == ["/mnt/sets/out"]


def test_plan_shows_buckets(launcher: Callable[..., Launcher], volume: VolumeSpec) -> None:
    """A plan has a row for each bucket."""
    bucket = BucketSpec(name="sets", mount_path="/mnt/sets", key_prefix="a/", read_only=True)

    rows = launcher(volumes=[volume, bucket]).plan("true").rows()

    assert ("bucket", "/mnt/sets is sets, a/ (read only)") in rows
