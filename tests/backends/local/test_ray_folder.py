"""The folder for Ray's sockets: short, local, and reported."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from skyrl_modal import Launcher, RaySpec
from skyrl_modal.backends.local import ray_folder
from skyrl_modal.backends.local.descriptors import DescriptorSet
from skyrl_modal.backends.local.file_systems import file_system_of, make_own_folder, socket_error
from skyrl_modal.backends.local.ray_folder import find_ray_place
from skyrl_modal.backends.local.sandbox import Sandbox
from skyrl_modal.backends.local.scratch import abandoned_folders, create_scratch_folder, remove_abandoned_folders
from skyrl_modal.errors import BackendUnavailable
from tests.support.small_mounts import run_with_mount

LONG = "a-folder-for-temporary-files-with-a-long-path"


@pytest.fixture
def short() -> Path:
    """Return the machine's own folder for temporary files."""
    if file_system_of(Path("/tmp")).is_network:
        pytest.skip("/tmp is on a network file system")
    return Path("/tmp")


@pytest.mark.parametrize("name", ["", LONG, "é", "日本", "a" * 30])
def test_short_paths_are_used_themselves(short: Path, name: str) -> None:
    """Ray's folder is in the folder for temporary files, unless its path is too long or not ASCII: then by a link."""
    with tempfile.TemporaryDirectory(prefix="", dir=short) as parent:
        folder = Path(parent) / name
        folder.mkdir(exist_ok=True)

        place = find_ray_place(folder, None)

        assert (place.parent is None) == (not name)
        assert place.is_link == bool(name)
        assert str(folder) in place.description


def test_long_paths_do_not_matter_in_a_sandbox(tmp_path: Path) -> None:
    """In a sandbox the path is /tmp/ray, wherever the scratch folder is."""
    folder = tmp_path / LONG
    folder.mkdir()

    assert find_ray_place(folder, Sandbox("bwrap")).parent is None


def test_the_reason_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If no folder is suitable, the error lists each folder with its reason, and the variable to set."""
    monkeypatch.setattr(ray_folder, "short_folders", lambda: [Path("/proc"), tmp_path / LONG])

    with pytest.raises(BackendUnavailable) as caught:
        find_ray_place(tmp_path / LONG, None)

    text = str(caught.value)
    assert "TMPDIR" in text
    assert "characters too long" in text
    assert "/proc: " in text


#: Prints the places that are found if file systems in memory are taken for network file systems.
NETWORK_SCRIPT = """
import sys
from pathlib import Path
from skyrl_modal.backends.local import file_systems
from skyrl_modal.backends.local.ray_folder import find_ray_place
from skyrl_modal.backends.local.sandbox import Sandbox
from skyrl_modal.backends.local.scratch import scratch_root
file_systems.NETWORK_TYPES = frozenset({"tmpfs"})
place = find_ray_place(Path(sys.argv[1]), None)
print(place.parent != None and place.parent != Path(sys.argv[1]), place.is_link)
print("is not on a local disk" in place.description)
print(scratch_root().is_relative_to(sys.argv[1]))
"""


def test_network_file_systems_are_avoided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the cache on a network file system, scratch folders are on a local disk, and so are Ray's files."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mount"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "mount").mkdir()
    if file_system_of(tmp_path).is_memory:
        pytest.skip("the tests have no folder on a disk")

    done = run_with_mount(
        tmp_path / "mount", "size=1m", [sys.executable, "-c", NETWORK_SCRIPT, str(tmp_path / "mount")]
    )

    assert done.stdout.splitlines() == ["True False", "True", "False"], done.stderr
    assert (tmp_path / f"skyrl-modal-{os.geteuid()}").stat().st_mode & 0o777 == 0o700


#: Creates an abandoned folder as on another machine, and starts a clean-up.
OTHER_MACHINE_SCRIPT = """
import sys
from pathlib import Path
from skyrl_modal.backends.local import file_systems, scratch
file_systems.NETWORK_TYPES = frozenset({"tmpfs"})
root = Path(sys.argv[1])
for name, target in (("other", "other machine:run"), ("own", scratch._machine_id() + ":run"), ("new", None)):
    (root / name).mkdir()
    if target:
        (root / name / "skyrl-modal-run").symlink_to(target)
scratch.remove_abandoned_folders(root)
print(sorted(path.name for path in root.iterdir()))
"""


def test_folders_of_other_machines_are_kept(tmp_path: Path) -> None:
    """Locks are not visible through a network file system: only this machine's own folders are removed there."""
    done = run_with_mount(tmp_path, "size=1m", [sys.executable, "-c", OTHER_MACHINE_SCRIPT, str(tmp_path)])

    assert done.stdout.strip() == "['new', 'other']", done.stderr


def test_folders_of_others_are_not_used(tmp_path: Path) -> None:
    """A folder with a known name is used only if it belongs to this user alone, and is no link."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "own")
    (tmp_path / "file").write_text("")

    assert make_own_folder(tmp_path / "own")
    assert make_own_folder(tmp_path / "own")
    assert not make_own_folder(tmp_path / "open")
    assert not make_own_folder(tmp_path / "link")
    assert not make_own_folder(tmp_path / "file")
    assert not make_own_folder(tmp_path / "missing" / "own")


def test_sockets_are_tried(tmp_path: Path) -> None:
    """A socket is created to check a folder, also with a long path, and removed."""
    folder = tmp_path / ("x" * 100) / ("é" * 50)
    folder.mkdir(parents=True)

    assert socket_error(folder) is None
    assert list(folder.iterdir()) == []
    assert socket_error(tmp_path / "missing") is not None
    assert socket_error(Path("/proc/self")) is not None


@pytest.mark.parametrize("path", ["/proc/self", "/dev/shm", "/"])
def test_the_file_system_of_a_folder_is_known(path: str) -> None:
    """The type is the one that ``findmnt`` reports, also below a mount and for a folder that does not exist."""
    done = subprocess.run(["findmnt", "-n", "-o", "FSTYPE", "-T", path], capture_output=True, text=True, check=False)
    expected = done.stdout.split()[-1]

    assert file_system_of(Path(path)).type == expected
    assert file_system_of(Path(path) / "missing" / "folder").type == expected


def test_the_further_folder_is_removed(short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The short folder of an active run is kept, and removed after its processes were killed."""
    (tmp_path / LONG).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / LONG))
    with DescriptorSet() as fds:
        scratch = create_scratch_folder("20000101-000000-000000", 0, None, fds, has_ray=True)
        assert scratch.ray_parent is not None
        assert scratch.ray_folder == str(scratch.ray_parent / "ray")
        assert os.path.isdir(scratch.ray_folder)
        assert scratch.ray_parent.stat().st_mode & 0o777 == 0o700

        remove_abandoned_folders(scratch.ray_parent.parent, is_shared=True)
        assert not set(scratch.folders) & set(abandoned_folders())
        assert scratch.ray_parent.is_dir()

    assert set(scratch.folders) <= set(abandoned_folders())
    remove_abandoned_folders(scratch.ray_parent.parent, is_shared=True)
    assert not scratch.ray_parent.exists()
    scratch.remove()


def test_doctor_reports_the_folder(checkout: Path, tmp_path: Path) -> None:
    """`skyrl-modal doctor` states where Ray's sockets are."""
    done = subprocess.run(
        [sys.executable, "-m", "skyrl_modal", "doctor"], cwd=checkout, capture_output=True, text=True, check=False
    )

    assert "ray's sockets" in done.stdout


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("name", [LONG, "é"])
def test_ray_starts_with_every_temporary_folder(
    short: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch, no_namespaces: None, name: str
) -> None:
    """Without namespaces Ray starts if TMPDIR has a long path or other characters, and nothing is left of it."""
    before = set(short.glob("skyrl-????????"))
    with tempfile.TemporaryDirectory(dir=short) as parent:
        folder = Path(parent) / name
        folder.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(folder))
        made = Launcher(
            backend="local",
            checkout=checkout,
            volumes=[],
            gpu=None,
            ray=RaySpec(num_cpus=1, object_store_memory=100_000_000),
        )

        result = made.run(
            "python -c 'import ray; ray.init(); assert ray.get(ray.remote(lambda: 7).remote()) == 7'", quiet=True
        )

        assert result.returncode == 0, result.detail
        assert list(folder.iterdir()) == []
    run_folders = {path for path in short.glob("skyrl-????????") if os.path.lexists(path / "skyrl-modal-run")}
    assert not [path for path in run_folders - before if result.run_id in os.readlink(path / "skyrl-modal-run")]
