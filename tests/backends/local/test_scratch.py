"""Scratch folders that a killed process has left are removed; those that are in use are not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from skyrl_modal.backends.local.descriptors import DescriptorSet
from skyrl_modal.backends.local.sandbox import PROBE_PREFIX, Sandbox
from skyrl_modal.backends.local.scratch import create_scratch_folder, remove_abandoned_folders, scratch_root
from skyrl_modal.backends.temporary_folders import locked_temporary_folder

#: Creates a probe folder in a folder, prints its name, and waits.
PROBE_SCRIPT = """
import sys
from pathlib import Path
from skyrl_modal.backends.temporary_folders import locked_temporary_folder
from skyrl_modal.backends.local.sandbox import PROBE_PREFIX
with locked_temporary_folder(Path(sys.argv[1]), PROBE_PREFIX) as folder:
    print(folder.name, flush=True)
    sys.stdin.read()
"""


def names(folder: Path) -> set[str]:
    """Return the names in a folder."""
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("rank", [0, 1])
def test_folder_of_an_active_run_is_not_removed(rank: int) -> None:
    """A scratch folder is removed when its last descriptor is closed, and not before. The rank does not matter."""
    root = scratch_root()
    with DescriptorSet() as fds:
        folder = create_scratch_folder("20000101-000000-000000", rank, Sandbox("bwrap"), fds).path

        remove_abandoned_folders(root)
        assert folder.is_dir()

    remove_abandoned_folders(root)
    assert not folder.exists()


def test_folder_of_an_active_probe_is_not_removed(tmp_path: Path) -> None:
    """A probe folder of another process is removed after that process was killed, and not before."""
    command = [sys.executable, "-c", PROBE_SCRIPT, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()

        remove_abandoned_folders(tmp_path)
        assert names(tmp_path) == {name}

        process.kill()

    remove_abandoned_folders(tmp_path)
    assert names(tmp_path) == set()


def test_locked_folders_have_different_names(tmp_path: Path) -> None:
    """Two probes of one process have a folder each."""
    with (
        locked_temporary_folder(tmp_path, PROBE_PREFIX) as first,
        locked_temporary_folder(tmp_path, PROBE_PREFIX) as second,
    ):
        assert names(tmp_path) == {first.name, second.name}


def test_a_start_removes_abandoned_folders() -> None:
    """The start of a rank removes scratch folders and probe folders that no process uses."""
    root = scratch_root()
    (root / "20000101-000000-000000" / "mount-0").mkdir(parents=True)
    (root / f"{PROBE_PREFIX}left").mkdir()

    with DescriptorSet() as fds:
        scratch = create_scratch_folder("20000101-000000-000001", 1, Sandbox("bwrap"), fds)

    assert scratch.path.name == "20000101-000000-000001.1"
    assert not {"20000101-000000-000000", f"{PROBE_PREFIX}left"} & names(root)
    scratch.remove()
    assert not scratch.path.exists()
