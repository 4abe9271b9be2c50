"""Files that are not regular, or are too large, in each place where a file of a checkout is read."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_modal.checkout import inspect_checkout, pinned_ray_version
from skyrl_modal.errors import SpecError
from skyrl_modal.gitfiles.config_file import parse_config
from skyrl_modal.gitfiles.digest import file_digest
from skyrl_modal.gitfiles.files import UnsuitableFileError, find_unsuitable, read_regular_file
from skyrl_modal.mount import Selection, select
from skyrl_modal.skyrl.scripts import scripts_of_command
from tests.gitfiles.repositories import git
from tests.gitfiles.trees import commit, has_warning, make

# git would wait for a named pipe until its time limit, which is longer than this.
pytestmark = pytest.mark.timeout(60)
SPARSE_BYTES = 10_000_000_000


def _socket(path: Path) -> None:
    previous = Path.cwd()
    os.chdir(path.parent)  # The path of a socket is limited to about 100 bytes.
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(previous)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(SPARSE_BYTES)


def _unreadable(path: Path) -> None:
    path.write_text("x")
    path.chmod(0)


KINDS: dict[str, Callable[[Path], object]] = {
    "named pipe": os.mkfifo,
    "link to a named pipe": lambda path: (os.mkfifo(f"{path}.pipe"), path.symlink_to(f"{path}.pipe")),
    "link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "socket": _socket,
    "folder": Path.mkdir,
    "sparse file of 10 GB": _sparse,
    "unreadable file": _unreadable,
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to nothing": lambda path: path.symlink_to("absent"),
}
PLACES = [
    ".gitignore", "pkg/.gitignore", ".skyrlignore", ".gitattributes", "pkg/.gitattributes", ".gitmodules",
    ".git/info/exclude", ".git/info/attributes", ".git/config", ".git/config.worktree", ".git/HEAD", ".git/index",
    ".git/commondir", ".git/packed-refs", ".git/refs/heads/main", ".git/objects/info/alternates", ".git/shallow",
    ".git/info/sparse-checkout", ".git/info/grafts", "nested/.git", "excludes", "attributes", "included", "included2",
    "global",
]  # fmt: skip

# Without one of these files there is no commit, or no repository.
NO_COMMIT = (".git/HEAD", ".git/commondir", ".git/refs/heads/main")


@pytest.fixture
def checkout(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose configuration names further files."""
    git("symbolic-ref", "HEAD", "refs/heads/main", cwd=tree)
    commit(tree)
    (tree / "nested").mkdir()
    git("config", "core.excludesFile", "excludes", cwd=tree)
    git("config", "core.attributesFile", str(tree / "attributes"), cwd=tree)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tree / "global"))
    return tree


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_planning_ends(checkout: Path, place: str, kind: str) -> None:
    """A file of any kind in any place is read, refused with a warning or an error, and never waited for."""
    if place.startswith("included"):
        git("config", "include.path", str(checkout / "included"), cwd=checkout)
        make(checkout, {"included": f"[include]\n\tpath = {checkout}/included2\n", "included2": "[core]\n"})
    path = checkout / place
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    KINDS[kind](path)
    inspected = inspect_checkout(checkout)
    assert inspected.commit is not None or inspected.warning or place in NO_COMMIT
    assert "did not end" not in inspected.warning
    selection = select(checkout)
    assert "train.py" in selection.files
    assert selection.warnings is not None
    assert selection.explain("train.py")


@pytest.mark.parametrize("place", [".gitignore", "excludes", ".git/info/exclude", ".git/config", ".skyrlignore"])
@pytest.mark.parametrize("kind", ["named pipe", "sparse file of 10 GB"])
def test_refused_files_are_reported(checkout: Path, place: str, kind: str) -> None:
    """A file that is not read causes a warning with its name and the reason."""
    (checkout / place).unlink(missing_ok=True)
    KINDS[kind](checkout / place)
    if place == ".git/config":
        make(checkout, {"global": "[core]\n\texcludesFile = excludes\n"})
    reason = "larger than" if kind.startswith("sparse") else "named pipe"
    assert has_warning(select(checkout), place, reason)


def test_named_pipes_that_only_git_reads(checkout: Path) -> None:
    """A named pipe for which git waits is found after a second, and the warning names it."""
    os.mkfifo(checkout / "pkg" / ".gitattributes")
    os.utime(checkout / "pkg" / "kept.log", (1, 1))
    assert "pkg/.gitattributes is a named pipe" in inspect_checkout(checkout).warning


def test_null_device_is_an_empty_file(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The null device is the usual way to disable a configuration, and causes no warning."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    git("config", "core.excludesFile", os.devnull, cwd=checkout)
    assert read_regular_file(os.devnull) == b""
    assert not find_unsuitable(os.devnull)
    assert inspect_checkout(checkout).warning == ""
    assert not has_warning(select(checkout), "cannot be read")


def test_recursive_includes(checkout: Path) -> None:
    """Files that include themselves or each other end with git's own error, as a warning."""
    for name in ("one", "two"):
        make(checkout, {name: f"[include]\n\tpath = {checkout}/one\n[include]\n\tpath = {checkout}/two\n"})
    git("config", "include.path", str(checkout / "one"), cwd=checkout)
    assert has_warning(select(checkout), "includes other files")
    assert inspect_checkout(checkout).warning


def test_many_includes(checkout: Path) -> None:
    """A configuration that includes more than 100 files is not given to git."""
    lines = "".join(f"[include]\n\tpath = {checkout}/many/{number}\n" for number in range(1000))
    make(checkout, {f"many/{number}": lines for number in range(3)})
    git("config", "include.path", str(checkout / "many" / "0"), cwd=checkout)
    assert has_warning(select(checkout), "includes more than 100 files")


@pytest.mark.parametrize("kind", KINDS)
def test_pyproject(tmp_path: Path, kind: str) -> None:
    """A pyproject.toml that cannot be read is an error that names it; an absent one pins no version."""
    path = tmp_path / "pyproject.toml"
    KINDS[kind](path)
    if kind in ("folder", "link to nothing") or (kind.startswith("unreadable") and os.access(path, os.R_OK)):
        assert pinned_ray_version(tmp_path) is None if kind != "unreadable file" else True
        return
    with pytest.raises(SpecError, match="pyproject"):
        pinned_ray_version(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "project = 1", "[project]\ndependencies = 5", "[project]\noptional-dependencies = [1]", "a = " + "[" * 100_000,
        "[project]\ndependencies = [1, {}]", "[project.optional-dependencies]\na = 'ray==2.51'", "\0", "project = []",
    ],
    ids=range(8),
)  # fmt: skip
def test_pyproject_of_any_content(tmp_path: Path, text: str) -> None:
    """A pyproject.toml of any content pins no version, or is an error that names it."""
    (tmp_path / "pyproject.toml").write_text(text)
    try:
        assert pinned_ray_version(tmp_path) is None
    except SpecError as error:
        assert error.field == "checkout"  # noqa: PT017  some of the contents are valid


@pytest.mark.parametrize("kind", KINDS)
def test_scripts(tmp_path: Path, kind: str) -> None:
    """A script that is not a readable regular file is not searched for calls."""
    KINDS[kind](tmp_path / "run.sh")
    found = list(scripts_of_command("bash run.sh", workdir="/x", remote_path="/x", root=tmp_path, files={"run.sh"}))
    assert not found or (kind == "unreadable file" and os.geteuid() == 0)


@pytest.mark.parametrize("kind", ["named pipe", "socket", "link to /dev/zero", "link to a named pipe", "folder"])
def test_digest(tmp_path: Path, kind: str) -> None:
    """The digest of a file reads no special file; a link has the digest of its target's name."""
    KINDS[kind](tmp_path / "x")
    if kind.startswith("link"):
        assert file_digest(str(tmp_path / "x"))
        return
    with pytest.raises(OSError, match="x"):
        file_digest(str(tmp_path / "x"))


def test_file_that_grows(tmp_path: Path) -> None:
    """The limit also holds for a file whose size is not known, as in /proc."""
    (tmp_path / "x").write_bytes(b"a" * 100)
    assert read_regular_file(tmp_path / "x", max_bytes=100) == b"a" * 100
    with pytest.raises(UnsuitableFileError, match="larger than 99 bytes"):
        read_regular_file(tmp_path / "x", max_bytes=99)
    if Path("/proc/self/maps").exists():
        assert read_regular_file("/proc/self/maps")
        with pytest.raises(UnsuitableFileError, match="larger than 10 bytes"):
            read_regular_file("/proc/self/maps", max_bytes=10)
    with pytest.raises(UnsuitableFileError, match="NUL"):
        read_regular_file("a\0b")


def test_long_values_of_a_configuration() -> None:
    """Values of 1 MB are parsed in linear time."""
    for value in (b"a" * 1_000_000, b"a " * 500_000, b"\\t" * 500_000, b'"" ' * 300_000, b"\\\n" * 500_000):
        assert len(list(parse_config(b"[core]\n\tx = " + value + b"\n"))) == 1


@pytest.mark.parametrize("value", ["1" * 5000, "+-1", "\0", "0x1", "1k", "²"])
def test_numbers_of_a_configuration(tree: Path, value: str) -> None:
    """A boolean key can have any value."""
    with (tree / ".git" / "config").open("a", encoding="utf-8") as file:
        file.write(f"[core]\n\tignorecase = {value}\n\texcludesFile = a{value}b\n")
    assert isinstance(select(tree), Selection)
