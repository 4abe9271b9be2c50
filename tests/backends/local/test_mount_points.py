"""Mount points that depend on this machine: its files and links, and where its programs are."""

from __future__ import annotations

import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

import skyrl_modal
from skyrl_modal import Launcher, SpecError, VolumeSpec
from skyrl_modal.backends.local.sandbox import find_sandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mount points need namespaces")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yield a folder outside of /tmp, which the run would not see."""
    with tempfile.TemporaryDirectory(dir=Path.home(), prefix=".skyrl-test-") as folder:
        yield Path(folder).resolve()


def run(checkout: Path, path: Path | str) -> int:
    """Run a command with a volume at a path, and return its exit code."""
    if find_sandbox(checkout).sandbox is None:
        pytest.skip("this machine allows no namespaces")
    volume = VolumeSpec(name=f"test-{uuid.uuid4().hex[:12]}", mount_path=path)
    launcher = Launcher(backend="local", checkout=checkout, ray=None, volumes=[volume])
    return launcher.run(f"test -w {path} && test -d {path}/.skyrl_modal", quiet=True).returncode


def test_file_is_refused(checkout: Path, folder: Path) -> None:
    """A path that is a file, leads through one, or is a link to nothing is an error before anything starts."""
    (folder / "file").touch()
    (folder / "broken").symlink_to("nothing")
    for name in ("file", "file/x/y", "broken"):
        with pytest.raises(SpecError, match="is no folder"):
            run(checkout, folder / name)


def test_link_to_what_the_run_needs_is_refused(checkout: Path, folder: Path) -> None:
    """A path whose links lead to a system folder is treated like that folder."""
    for number, target in enumerate(("/", "/usr/lib", "/proc", "/tmp")):
        (folder / str(number)).symlink_to(target)
        with pytest.raises(SpecError, match=f"leads to {target} on this machine"):
            run(checkout, folder / str(number))


def test_programs_of_the_run_are_not_hidden(checkout: Path) -> None:
    """A path at, above or below the package, or the Python in use, is an error."""
    package = Path(skyrl_modal.__file__).resolve().parent
    for path in (package, package.parent, package / "protocol", Path(sys.prefix) / "bin"):
        with pytest.raises(SpecError, match="the run needs"):
            run(checkout, path)


def test_folder_and_link_to_a_folder_are_possible(checkout: Path, folder: Path) -> None:
    """An existing folder, a new one, and a link to a folder can be mount points."""
    (folder / "real").mkdir()
    (folder / "link").symlink_to("real")
    for name in ("real", "new/deep", "link"):
        assert run(checkout, folder / name) == 0


def test_file_in_this_machines_tmp_is_not_on_the_path(checkout: Path, tmp_path: Path) -> None:
    """A run has a /tmp of its own, so files in this machine's do not matter."""
    with tempfile.NamedTemporaryFile(dir="/tmp", prefix="skyrl-test-") as file:
        assert run(checkout, file.name) == 0
