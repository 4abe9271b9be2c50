"""Folders of the user: private whatever the umask, corrected if they exist, refused if another user owns them."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import platformdirs
import pytest

from skyrl_modal.errors import StorageError
from skyrl_modal.user_folders import cache_folder, create_user_folder, data_folder, make_private_folder, state_folder

#: An ordinary user: the kernel's overflow user id.
OTHER_USER = 65534


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Redirect the user's folders to a home folder that does not exist."""
    folder = tmp_path / "home"
    for name in ("DATA", "STATE", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(folder / name))
    return folder


def mode(path: Path) -> int:
    """Return the permissions of a path."""
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_new_folders_are_private(home: Path, umask: int) -> None:
    """New folders have the mode 0700, and so have the parents that did not exist."""
    before = os.umask(umask)
    try:
        for top in (data_folder(), state_folder(), cache_folder()):
            create_user_folder(top / "a" / "b")
    finally:
        os.umask(before)

    assert {mode(path) for path in [home, *home.rglob("*")]} == {0o700}
    assert len(list(home.rglob("b"))) in (2, 3)  # on macOS, data and state are one folder


@pytest.mark.parametrize("existing", [0o777, 0o755, 0o750, 0o701, 0o2770, 0o1777])
def test_existing_folders_are_corrected(existing: int) -> None:
    """Folders of this user from an earlier version are closed for others, up to the user's folder of this package."""
    folder = cache_folder() / "scratch"
    folder.mkdir(parents=True)
    for path in (folder, folder.parent):
        path.chmod(existing)

    create_user_folder(folder)

    assert {mode(path) & 0o777 for path in (folder, folder.parent)} == {0o700}


def test_parents_of_the_user_are_not_changed(home: Path) -> None:
    """Folders above the user's folder of this package keep their permissions."""
    (home / "CACHE").mkdir(parents=True)
    for path in (home, home / "CACHE"):
        path.chmod(0o755)

    create_user_folder(cache_folder() / "scratch")

    assert {mode(path) for path in (home, home / "CACHE")} == {0o755}


def test_linked_volume_keeps_its_permissions(tmp_path: Path) -> None:
    """A volume that is a link to a folder that several users share keeps its permissions."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o775)
    volume = data_folder() / "volumes" / "team"
    volume.parent.mkdir(parents=True)
    volume.symlink_to(shared)

    create_user_folder(volume)

    assert mode(shared) == 0o775
    assert mode(volume.parent) == 0o700


def test_linked_user_folder_is_corrected(tmp_path: Path) -> None:
    """A user's folder that is a link to a folder on another disk is corrected there."""
    other = tmp_path / "other"
    other.mkdir()
    other.chmod(0o755)
    cache_folder().parent.mkdir(parents=True)
    cache_folder().symlink_to(other)

    create_user_folder(cache_folder() / "scratch")

    assert {mode(path) for path in (other, other / "scratch")} == {0o700}


@pytest.mark.parametrize("obstacle", ["file", "dangling link", "loop", "long name", "parent is a file"])
def test_folder_that_cannot_be_created(obstacle: str) -> None:
    """The error names the folder."""
    folder = cache_folder() / "scratch"
    if obstacle == "parent is a file":
        cache_folder().parent.mkdir(parents=True)
        cache_folder().touch()
    else:
        cache_folder().mkdir(parents=True)
    if obstacle == "file":
        folder.touch()
    elif obstacle == "dangling link":
        folder.symlink_to("missing")
    elif obstacle == "loop":
        folder.symlink_to(folder)
    elif obstacle == "long name":
        folder = folder / ("x" * 300)

    with pytest.raises(StorageError) as caught:
        create_user_folder(folder)

    assert caught.value.path == str(folder)
    assert "\n" not in str(caught.value)


def test_concurrent_creation() -> None:
    """Processes that create the same folder at the same time all succeed."""
    program = (
        "from skyrl_modal.user_folders import *\n"
        "for number in range(100): create_user_folder(cache_folder() / str(number) / 'a')\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(4)]

    assert [process.wait() for process in processes] == [0] * 4


@pytest.fixture
def open_home() -> Iterator[Path]:
    """Return a folder that every user may enter, unlike pytest's folders."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to act as a second user")
    folder = Path("/var/tmp") / f"skyrl-folders-{os.getpid()}"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_folder_of_another_user_is_refused(open_home: Path) -> None:
    """A folder that another user has created before is refused: its owner could replace what is in it."""
    folder = open_home / "skyrl_modal"
    folder.mkdir()
    os.chown(folder, OTHER_USER - 1, OTHER_USER - 1)
    folder.chmod(0o777)
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(OTHER_USER)
        os.setuid(OTHER_USER)
        try:
            make_private_folder(folder)
        except StorageError as error:
            os._exit(7 if error.path == str(folder) and "another user" in error.reason else 1)
        os._exit(0)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_second_user_cannot_read_a_run(open_home: Path, checkout: Path, umask: int) -> None:
    """After a run, another user reaches nothing of it: neither output, records, volumes, snapshots nor scratch."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    command = [sys.executable, "-m", "skyrl_modal", "run", "--backend", "local", "--no-ray", "--gpu", "none"]
    script = (
        "echo confidential; echo confidential >/root/data/x; stat -c %a /tmp /root/SkyRL; "
        "cd /root/data/.skyrl_modal/runs; stat -c %a *"
    )

    done = subprocess.run(
        [*command, "--", "sh", "-c", script],
        cwd=checkout,
        env={**environment, "HOME": str(open_home)},
        capture_output=True,
        text=True,
        check=False,
        umask=umask,
    )
    found = subprocess.run(
        ["find", str(open_home)],
        user=OTHER_USER,
        group=OTHER_USER,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    # Within the run, the modes are those of a container; the run's folder is private.
    assert done.stdout.split() == ["confidential", "1777", "755", "700"]
    assert [path for path in open_home.rglob("x") if path.parent.name == "skyrl-data"] != []
    assert list(open_home.rglob("result.json")) != []
    reached = [line for line in found.stdout.splitlines() if "/skyrl_modal/" in line]
    assert reached == []


@pytest.mark.parametrize("home", ["/home/x", "/home/x/", "/", "relative", "", None])
@pytest.mark.parametrize("base", ["/base", "/base/", "relative", " ", "", None])
def test_folders_are_those_of_platformdirs(base: str | None, home: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders are those that platformdirs finds, whatever HOME and the variables of XDG contain."""
    for name, value in (("HOME", home), *((f"XDG_{kind}_HOME", base) for kind in ("DATA", "STATE", "CACHE"))):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)

    assert data_folder() == platformdirs.user_data_path("skyrl_modal")
    assert state_folder() == platformdirs.user_state_path("skyrl_modal")
    assert cache_folder() == platformdirs.user_cache_path("skyrl_modal")
