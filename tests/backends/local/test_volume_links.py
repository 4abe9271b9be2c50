"""Links on volumes of the local backend and at targets of transfers: none leads out of the volume or the target."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

from skyrl_modal import Launcher
from skyrl_modal.errors import SpecError, StorageError
from tests.backends.local.conftest import paths_below

# -- links on a volume -------------------------------------------------------------------------------------------------


def test_absolute_link_is_listed_and_pulled(volume_launcher: Launcher, tmp_path: Path) -> None:
    """A link to a path below the mount path leads to that path on the volume, as in the container."""
    assert [entry.type for entry in volume_launcher.ls("/root/data/ck")] == ["dir", "dir"]
    assert [Path(entry.path).name for entry in volume_launcher.ls("/root/data/ck/latest")] == ["weights"]

    assert volume_launcher.pull("/root/data/ck/latest", tmp_path / "copy") == tmp_path / "copy"
    assert volume_launcher.pull("/root/data/ck/latest/weights", tmp_path / "file").stat().st_size == 1000

    assert paths_below(tmp_path / "copy") == ["weights"]


def test_push_through_a_link_stays_on_the_volume(volume_launcher: Launcher, volume_root: Path, tmp_path: Path) -> None:
    """A file that is pushed to a path below a link is written to the folder that the link leads to on the volume."""
    (tmp_path / "new").write_text("new")

    volume_launcher.push(tmp_path / "new", "/root/data/ck/latest/sub/new")
    volume_launcher.push(tmp_path / "new", "/root/data/ck/latest")

    assert paths_below(volume_root / "ck" / "step_10") == ["new", "sub", "sub/new", "weights"]


@pytest.mark.parametrize(
    ("text", "copied"),
    [
        ("/root/data/ck/step_10", "step_10"),
        ("step_10", "step_10"),
        ("./step_10/../step_10", "./step_10/../step_10"),
        ("/root/data/ck/step_99", "step_99"),
        ("../ck/step_10", "../ck/step_10"),
        ("/etc", None),
        ("../../../../etc", None),
        ("../other", None),
        ("loop", None),
    ],
)
def test_links_in_a_pulled_folder(
    volume_launcher: Launcher, volume_root: Path, tmp_path: Path, text: str, copied: str | None
) -> None:
    """A link within the folder works in the copy; any other one is not copied, and reported."""
    (volume_root / "other").mkdir()
    link = volume_root / "ck" / ("loop" if text == "loop" else "latest")
    link.unlink(missing_ok=True)
    link.symlink_to(text)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        copy = volume_launcher.pull("/root/data/ck", tmp_path / "ck") / link.name

    assert (os.readlink(copy) if copy.is_symlink() else None) == copied
    assert [repr(link.name) in str(item.message) for item in caught] == ([] if copied else [True])


def test_link_to_a_file_elsewhere_is_pulled_as_a_file(
    volume_launcher: Launcher, volume_root: Path, tmp_path: Path
) -> None:
    """A link out of the folder to a file on the volume is replaced by the content, as in caches of Hugging Face."""
    (volume_root / "blob").write_text("content")
    (volume_root / "ck" / "step_10" / "config").symlink_to("../../blob")

    copy = volume_launcher.pull("/root/data/ck/step_10", tmp_path / "copy")

    assert not (copy / "config").is_symlink()
    assert (copy / "config").read_text() == "content"


@pytest.mark.parametrize(
    "text",
    [
        "/etc/passwd",
        "/root/SkyRL/x",
        "/root/data/../x",
        "../../../../../../../../etc",
        "link",
        "/root/data/link",
    ],
)
def test_path_out_of_the_volume_is_refused(
    volume_launcher: Launcher, volume_root: Path, tmp_path: Path, text: str
) -> None:
    """A link out of the volume, or to itself, is not followed by ls, pull and push."""
    (volume_root / "link").symlink_to(text)
    (tmp_path / "x").write_text("x")

    for act in (
        lambda: volume_launcher.ls("/root/data/link"),
        lambda: volume_launcher.pull("/root/data/link", tmp_path / "copy"),
        lambda: volume_launcher.push(tmp_path / "x", "/root/data/link"),
        lambda: volume_launcher.push(tmp_path / "x", "/root/data/link/x"),
    ):
        with pytest.raises(SpecError, match="outside of the volume"):
            act()
    assert sorted(os.listdir(tmp_path)) == ["SkyRL", "x"]
    assert [entry.type for entry in volume_launcher.ls("/root/data")] == ["dir", "other"]


@pytest.mark.parametrize("path", ["/root/data/../x", "/root/data/\0", "data/x", "", "/root/database"])
def test_path_on_no_volume_is_refused(volume_launcher: Launcher, tmp_path: Path, path: str) -> None:
    """A path that is not on a volume of the launcher is refused."""
    with pytest.raises(SpecError):
        volume_launcher.pull(path, tmp_path / "copy")


# -- links and other entries at the target -----------------------------------------------------------------------------


def test_link_at_the_target_is_replaced_by_a_file(volume_launcher: Launcher, volume_root: Path, tmp_path: Path) -> None:
    """A pulled or pushed file replaces a link, whether or not it leads to a file, and does not write through it."""
    (tmp_path / "victim").write_text("unchanged")
    (volume_root / "victim").write_text("unchanged")
    for name, text in (("link", tmp_path / "victim"), ("dangling", tmp_path / "none")):
        (tmp_path / name).symlink_to(text)
        assert volume_launcher.pull("/root/data/ck/step_10/weights", tmp_path / name).stat().st_size == 1000
        assert not (tmp_path / name).is_symlink()
    (volume_root / "link").symlink_to("/root/data/victim")

    volume_launcher.push(tmp_path / "link", "/root/data/link")

    assert not (volume_root / "link").is_symlink()
    assert (tmp_path / "victim").read_text() == (volume_root / "victim").read_text() == "unchanged"
    assert not (tmp_path / "none").exists()


def test_link_to_a_folder_at_the_target_is_refused(volume_launcher: Launcher, tmp_path: Path) -> None:
    """Nothing is written through a link to a folder: neither the target nor a folder below it."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "copy" / "ck").mkdir(parents=True)
    (tmp_path / "copy" / "ck" / "step_10").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(SpecError, match="symbolic link"):
        volume_launcher.pull("/root/data/ck", tmp_path / "out")
    with pytest.raises(StorageError, match="symbolic link"):
        volume_launcher.pull("/root/data/ck", tmp_path / "copy")

    assert paths_below(tmp_path / "elsewhere") == []
    assert paths_below(tmp_path / "copy") == ["ck", "ck/step_10"]


def test_pushed_folder_does_not_follow_links(volume_launcher: Launcher, volume_root: Path, tmp_path: Path) -> None:
    """A folder on the volume that is a link is not written through when a folder is merged."""
    (volume_root / "other").mkdir()
    (volume_root / "target").mkdir()
    (volume_root / "target" / "sub").symlink_to("../other")
    (tmp_path / "up" / "sub").mkdir(parents=True)
    (tmp_path / "up" / "sub" / "file").write_text("x")

    with pytest.raises(StorageError):
        volume_launcher.push(f"{tmp_path / 'up'}/", "/root/data/target")

    assert paths_below(volume_root / "other") == []
    assert paths_below(volume_root / "target") == ["sub"]


def test_folder_is_merged_into_an_existing_one(volume_launcher: Launcher, tmp_path: Path) -> None:
    """Files of the copy replace those of the same name. Others are kept."""
    (tmp_path / "ck" / "step_10").mkdir(parents=True)
    (tmp_path / "ck" / "step_10" / "weights").write_text("old")
    (tmp_path / "ck" / "step_10" / "kept").write_text("kept")

    volume_launcher.pull("/root/data/ck", tmp_path)

    assert paths_below(tmp_path / "ck") == ["latest", "step_10", "step_10/kept", "step_10/weights"]
    assert (tmp_path / "ck" / "latest" / "weights").stat().st_size == 1000


@pytest.mark.parametrize("target", ["file", "folder"])
def test_file_and_folder_do_not_replace_each_other(volume_launcher: Launcher, tmp_path: Path, target: str) -> None:
    """A conflict of kinds anywhere in the target is refused before any file is moved."""
    (tmp_path / "ck" / "aaa").mkdir(parents=True)
    if target == "file":
        (tmp_path / "ck" / "step_10").write_text("a file")
    else:
        (tmp_path / "ck" / "step_10" / "weights").mkdir(parents=True)
    before = paths_below(tmp_path / "ck")

    with pytest.raises(StorageError):
        volume_launcher.pull("/root/data/ck", tmp_path)

    assert paths_below(tmp_path / "ck") == before


def test_whole_volume_is_pulled_and_pushed(volume_launcher: Launcher, volume_root: Path, tmp_path: Path) -> None:
    """The mount path itself can be pulled and pushed to. A file that is pushed to it keeps its name."""
    copy = volume_launcher.pull("/root/data", tmp_path / "all")
    (copy / "new").write_text("new")

    volume_launcher.push(f"{copy}/", "/root/data")
    volume_launcher.push(copy / "new", "/root/data")

    assert paths_below(volume_root) == ["ck", "ck/latest", "ck/step_10", "ck/step_10/weights", "new"]
