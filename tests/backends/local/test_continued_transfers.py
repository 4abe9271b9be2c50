"""Transfers of the local backend that continue one that was killed, also where a run has changed what it has left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from skyrl_modal import Launcher, VolumeSpec
from skyrl_modal.backends.local import tree_copy
from skyrl_modal.backends.staging import STAGING_PREFIX
from tests.backends.local.conftest import paths_below

MIB = 1 << 20
#: Files and their sizes. The last one is killed in its middle.
FILES = {"a": 10, "sub/b": 20, "sub/deep/c": 0, "aa/large": 32 * MIB + 5}

#: Pushes or pulls a folder with one thread, and is killed after 2 MiB of the large file.
KILLED_TRANSFER = """
import os, signal, sys, threading
from skyrl_modal import Launcher, VolumeSpec
from skyrl_modal.backends.local import tree_copy
from skyrl_modal.views import transfer_progress

interrupted = threading.Event()

def interrupt(number, frame):
    interrupted.set()
    raise KeyboardInterrupt

signal.signal(signal.SIGINT, interrupt)

class Killing(transfer_progress.TransferProgress):
    def transferred(self, size, *, is_resumed=False):
        super().transferred(size, is_resumed=is_resumed)
        if self.done_bytes >= 2 << 20:
            os.kill(os.getpid(), signal.SIGKILL if sys.argv[3] == "KILL" else signal.SIGINT)
            interrupted.wait()

transfer_progress.TransferProgress = Killing
tree_copy._THREADS = 1
launcher = Launcher(backend="local", mounts=[], volumes=[VolumeSpec(name=sys.argv[1])])
getattr(launcher, sys.argv[2])(*sys.argv[4:])
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a folder with files."""
    for name, size in FILES.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size))
    return tmp_path / "source"


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of each file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def staging_folders(folder: Path) -> list[Path]:
    """Return the staging folders in a folder."""
    return sorted(folder.glob(f"{STAGING_PREFIX}*"))


def interrupt(volume: VolumeSpec, verb: str, *arguments: str, with_signal: str = "KILL") -> None:
    """Start a transfer in another process, which is killed, or interrupted as with Ctrl-C."""
    command = [sys.executable, "-c", KILLED_TRANSFER, volume.name, verb, with_signal, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (-signal.SIGKILL, -signal.SIGINT), (done.returncode, done.stderr)


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that receives the names of the files that this process copies, or continues."""
    names: list[str] = []
    copy_file = tree_copy.copy_file

    def record(entry: tree_copy.TreeEntry, *others: object) -> None:
        names.append(entry.path)
        copy_file(entry, *others)  # type: ignore[arg-type]  # the arguments of the function

    monkeypatch.setattr(tree_copy, "copy_file", record)
    return names


@pytest.mark.parametrize("with_signal", ["KILL", "INT"])
@pytest.mark.parametrize("verb", ["push", "pull"])
def test_next_transfer_copies_the_rest(
    volume_launcher: Launcher, volume_root: Path, volume: VolumeSpec, source: Path, tmp_path: Path, verb: str,
    with_signal: str, copied: list[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """After a kill or Ctrl-C nothing is at the target; the same transfer copies only what was not complete."""
    target = volume_root / "new" if verb == "push" else tmp_path / "new"
    if verb == "pull":
        source.rename(volume_root / "source")
        source = volume_root / "source"
    arguments = (str(source), "/root/data/new") if verb == "push" else ("/root/data/source", str(target))

    interrupt(volume, verb, *arguments, with_signal=with_signal)
    assert not target.exists()
    [staging] = staging_folders(target.parent)
    assert sorted(contents(staging / "item")) == ["a", "sub/b", "sub/deep/c"]
    [part] = (staging / "parts").iterdir()
    assert part.stat().st_size == 2 * MIB or with_signal == "INT"
    getattr(volume_launcher, verb)(*arguments)

    assert copied == ["aa/large"]
    assert contents(target) == contents(source)
    assert staging_folders(target.parent) == []


def test_changed_and_removed_files_are_copied_again(
    volume_launcher: Launcher, volume_root: Path, volume: VolumeSpec, source: Path, copied: list[str]
) -> None:
    """Files that changed after the kill are copied again from their beginning, and removed ones are not in the copy."""
    interrupt(volume, "push", str(source), "/root/data/new")
    (source / "a").write_bytes(b"0123456789")
    (source / "sub" / "b").unlink()
    (source / "aa" / "large").write_bytes(os.urandom(32 * MIB + 5))

    volume_launcher.push(source, "/root/data/new")

    assert sorted(copied) == ["a", "aa/large"]
    assert contents(volume_root / "new") == contents(source)
    assert sorted(paths_below(volume_root / "new")) == sorted(paths_below(source))


def test_what_a_killed_transfer_left_is_not_trusted(
    volume_launcher: Launcher, volume_root: Path, volume: VolumeSpec, source: Path, tmp_path: Path
) -> None:
    """Links, named pipes and further names that a run puts into a staging folder lead the next push nowhere."""
    victim = tmp_path / "victim"
    (victim / "deep").mkdir(parents=True)
    (victim / "file").write_bytes(b"kept")
    interrupt(volume, "push", str(source), "/root/data/new")
    [staging] = staging_folders(volume_root)
    [part] = (staging / "parts").iterdir()
    part.unlink()
    os.link(victim / "file", part)
    (staging / "item" / "a").unlink()
    (staging / "item" / "a").symlink_to(victim / "file")
    (staging / "item" / "sub" / "b").unlink()
    os.mkfifo(staging / "item" / "sub" / "b")
    (staging / "item" / "aa").rmdir()
    (staging / "item" / "aa").symlink_to(victim)
    (staging / "item" / "further").write_bytes(b"not in the source")
    (staging / "item" / "victim").symlink_to(victim)

    volume_launcher.push(source, "/root/data/new")

    assert contents(victim) == {"file": b"kept"}
    assert contents(volume_root / "new") == contents(source)
    assert sorted(paths_below(volume_root / "new")) == sorted(paths_below(source))


@pytest.mark.parametrize("place", ["item", "parts"])
def test_replaced_folder_of_a_killed_transfer_is_not_followed(
    volume_launcher: Launcher, volume_root: Path, volume: VolumeSpec, source: Path, tmp_path: Path, place: str
) -> None:
    """A link in place of a folder of the transfer is removed, and what it leads to is not changed."""
    interrupt(volume, "push", str(source), "/root/data/new")
    [staging] = staging_folders(volume_root)
    (staging / place).rename(tmp_path / "moved")
    (staging / place).symlink_to(tmp_path / "moved")
    before = contents(tmp_path / "moved")

    volume_launcher.push(source, "/root/data/new")

    assert contents(tmp_path / "moved") == before
    assert contents(volume_root / "new") == contents(source)


def test_folder_with_a_guessed_name_is_not_used(
    volume_launcher: Launcher, volume_root: Path, source: Path, tmp_path: Path
) -> None:
    """A staging folder that this user's transfers did not create is not continued."""
    (tmp_path / "victim").mkdir()
    guessed = volume_root / f"{STAGING_PREFIX}guessed"
    guessed.mkdir()
    (guessed / "item").symlink_to(tmp_path / "victim")

    volume_launcher.push(source, "/root/data/new")

    assert contents(tmp_path / "victim") == {}
    assert contents(volume_root / "new") == contents(source)


def test_unchanged_files_are_not_copied(
    volume_launcher: Launcher, volume_root: Path, source: Path, tmp_path: Path, copied: list[str]
) -> None:
    """Files with the same size, time and permissions are not copied again, unless force is set."""
    volume_launcher.push(source, "/root/data/source")
    copied.clear()
    (source / "a").write_bytes(b"9876543210")
    (source / "sub" / "b").chmod(0o600)
    inode = (volume_root / "source" / "aa" / "large").stat().st_ino

    volume_launcher.push(source, "/root/data/source")
    assert sorted(copied) == ["a", "sub/b"]
    assert (volume_root / "source" / "aa" / "large").stat().st_ino == inode
    copied.clear()
    volume_launcher.push(source, "/root/data/source")
    assert copied == []
    volume_launcher.push(source, "/root/data/source", force=True)

    assert sorted(copied) == sorted(FILES)
    assert contents(volume_root / "source") == contents(source)
    plan = volume_launcher.plan_pull("/root/data/source/", tmp_path / "source")
    assert {str(file.state) for file in plan.files} == {"unchanged"}


def test_names_of_all_kinds_are_copied(volume_launcher: Launcher, volume_root: Path, tmp_path: Path) -> None:
    """Names with control characters, invalid UTF-8 and patterns are copied in both directions, and listed escaped."""
    names = [b"line\nbreak", b"\x1b[2Jclear", b"bytes-\xff", b"star*[x]?", "\u202eright".encode(), b"-r"]
    (tmp_path / "up").mkdir()
    for name in names:
        with open(os.fsencode(tmp_path / "up") + b"/" + name, "wb") as file:
            file.write(name)

    volume_launcher.push(tmp_path / "up", "/root/data/names")
    volume_launcher.pull("/root/data/names/", tmp_path / "back")
    volume_launcher.pull("/root/data/names/star*[x]?", tmp_path / "one")

    assert sorted(os.listdir(os.fsencode(tmp_path / "back"))) == sorted(names)
    assert (tmp_path / "one").read_bytes() == b"star*[x]?"
    for arguments in (
        ["ls", "/root/data/names"],
        ["du", "/root/data/names"],
        ["pull", "--dry-run", "/root/data/names", "x"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "skyrl_modal", arguments[0], "--backend", "local",
             "--volume", f"/root/data={volume_launcher.volumes[0].name}", *arguments[1:]],
            capture_output=True, cwd=tmp_path, timeout=60, check=True,
        )  # fmt: skip
        assert b"\x1b" not in done.stdout
        assert b"\\x1b[2Jclear" in done.stdout
        assert b"line\\nbreak" in done.stdout
    for path in ("/root/data/names/line\nbreak", "/root/data/names/*clear"):
        volume_launcher.remove(path)
    assert len(os.listdir(volume_root / "names")) == len(names) - 2


def test_links_are_removed_and_not_followed(volume_launcher: Launcher, volume_root: Path, tmp_path: Path) -> None:
    """Removing a link, or a folder with links, keeps what the links lead to. So does measuring it."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "file").write_bytes(b"kept")
    (volume_root / "out").symlink_to(tmp_path / "victim")
    (volume_root / "folder").mkdir()
    (volume_root / "folder" / "out").symlink_to(tmp_path / "victim")
    (volume_root / "folder" / "loop").symlink_to("..")

    assert volume_launcher.du("/root/data/folder").bytes == 0
    volume_launcher.remove("/root/data/ck/latest")
    volume_launcher.remove("/root/data/folder", recursive=True)

    assert paths_below(volume_root) == ["ck", "ck/step_10", "ck/step_10/weights", "out"]
    assert (tmp_path / "victim" / "file").read_bytes() == b"kept"


def test_kept_transfers_end_after_some_days(
    volume_launcher: Launcher, volume_root: Path, volume: VolumeSpec, source: Path, tmp_path: Path
) -> None:
    """The next transfer to any place removes what a transfer left that was killed a week ago."""
    interrupt(volume, "push", str(source), "/root/data/new")
    volume_launcher.pull("/root/data/ck", tmp_path / "other")
    assert len(staging_folders(volume_root)) == 1
    links = Path(os.environ["XDG_STATE_HOME"]) / "skyrl_modal" / "transfers"
    for link in links.iterdir():
        os.utime(link, (1_700_000_000, 1_700_000_000), follow_symlinks=False)

    volume_launcher.pull("/root/data/ck", tmp_path / "another")

    assert staging_folders(volume_root) == []
