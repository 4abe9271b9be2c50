"""Transfers between this machine and volumes, and the commands about files on volumes, on every backend."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_modal import Launcher, SpecError
from skyrl_modal.errors import PathNotFound
from tests.contract.conftest import LOCAL_FIRST

MakeLauncher = Callable[..., Launcher]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a folder with files."""
    root = tmp_path / "ds"
    for name in ("a.txt", "b.pt", "sub/c.pt", "sub/deep/d.txt", ".hidden/e.pt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


@pytest.fixture
def made(launcher: MakeLauncher, tree: Path) -> Launcher:
    """Return a launcher whose volume has the files at /root/data/ds."""
    made = launcher()
    made.push(tree, "/root/data/ds")
    return made


def files_below(folder: Path) -> list[str]:
    """Return the paths of the files below a folder, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def paths_on_volume(launcher: Launcher, path: str = "/root/data/**/*") -> list[str]:
    """Return the paths that match a pattern, relative to /root/data."""
    return [entry.path.removeprefix("/root/data/") for entry in launcher.ls(path)]


ALL = [".hidden/e.pt", "a.txt", "b.pt", "sub/c.pt", "sub/deep/d.txt"]


@pytest.mark.parametrize(
    ("source", "destination", "copy"),
    [
        ("ds", "new", "new"),
        ("ds", "new/", "new/ds"),
        ("ds", "present", "present/ds"),
        ("ds", "present/", "present/ds"),
        ("ds", "ds", "ds"),
        ("ds/", "new", "new"),
        ("ds/", "new/", "new"),
        ("ds/", "present", "present"),
        ("ds/a.txt", "new", "new"),
        ("ds/a.txt", "new/", "new/a.txt"),
        ("ds/a.txt", "present", "present/a.txt"),
        ("ds/a.txt", "new/deep/", "new/deep/a.txt"),
        ("ds/*.txt", "new", "new/a.txt"),
    ],
)
def test_destinations(made: Launcher, tree: Path, tmp_path: Path, source: str, destination: str, copy: str) -> None:
    """Pull and push have one rule: a folder with a slash, or that exists, receives the copy under its name."""
    (tmp_path / "there" / "present").mkdir(parents=True)
    (tmp_path / "there" / "ds").mkdir()
    expected = ALL if source in ("ds", "ds/") else [""]

    pulled = made.pull(f"/root/data/{source}", f"{tmp_path}/there/{destination}")
    made.push(tree / "a.txt", "/root/data/there/present/kept")
    made.push(tree / "a.txt", "/root/data/there/ds/kept")
    made.push(f"{tmp_path}/{source}", f"/root/data/there/{destination}")

    where = tmp_path / "there" / copy
    assert pulled == (where if source != "ds/*.txt" else where.parent) or pulled == where
    assert (files_below(where) if where.is_dir() else [""]) == expected
    made.pull(f"/root/data/there/{copy}", tmp_path / "back")
    found = files_below(tmp_path / "back") if (tmp_path / "back").is_dir() else [""]
    assert [name for name in found if name != "kept"] == expected


def test_several_sources_and_patterns(made: Launcher, tree: Path, tmp_path: Path) -> None:
    """Several sources and patterns are copied into a folder. A pattern does not match names that begin with a dot."""
    assert paths_on_volume(made, "/root/data/ds/*") == ["ds/a.txt", "ds/b.pt", "ds/sub"]
    assert paths_on_volume(made, "/root/data/*/**/*.pt") == ["ds/b.pt", "ds/sub/c.pt"]

    assert made.pull(["/root/data/ds/a.txt", "/root/data/ds/sub"], tmp_path / "two") == tmp_path / "two"
    made.pull("/root/data/ds/[ab].*", tmp_path / "pattern")
    made.push([tree / "a.txt", str(tree / "sub" / "*")], "/root/data/pushed")

    assert files_below(tmp_path / "two") == ["a.txt", "sub/c.pt", "sub/deep/d.txt"]
    assert files_below(tmp_path / "pattern") == ["a.txt", "b.pt"]
    made.pull("/root/data/pushed", tmp_path / "back")
    assert files_below(tmp_path / "back") == ["a.txt", "c.pt", "deep/d.txt"]


def test_wrong_paths_are_refused(made: Launcher, tmp_path: Path) -> None:
    """Paths that do not exist, patterns without a match, and copies with the same name are errors with a remedy."""
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.txt").write_text("other")
    with pytest.raises(PathNotFound, match="/root/data/none"):
        made.pull("/root/data/none", tmp_path / "x")
    with pytest.raises(PathNotFound, match="nothing matches"):
        made.pull("/root/data/none*", tmp_path / "x")
    with pytest.raises(PathNotFound):
        made.push(tmp_path / "none*", "/root/data/x")
    with pytest.raises(SpecError, match="would replace"):
        made.push([tmp_path / "one" / "a.txt", tmp_path / "ds" / "a.txt"], "/root/data/x")
    with pytest.raises(SpecError, match="Omit the slash"):
        made.push(f"{tmp_path}/ds/a.txt/", "/root/data/x")
    with pytest.raises(SpecError, match="Omit the slash"):
        made.pull("/root/data/ds/a.txt/", tmp_path / "x")
    with pytest.raises(SpecError, match="at least one"):
        made.pull([], tmp_path / "x")

    assert not (tmp_path / "x").exists()


def test_dry_run_copies_nothing(made: Launcher, tree: Path, tmp_path: Path) -> None:
    """A plan lists the files and their states, and nothing is created, also no volume."""
    pull = made.plan_pull("/root/data/ds", tmp_path / "out")
    push = made.plan_push([tree, tree / "a.txt"], "/root/data/")

    assert not (tmp_path / "out").exists()
    assert [str(file.state) for file in pull.files] == ["new"] * 5
    assert pull.size == sum(len(name) for name in ALL)
    assert {file.path for file in push.files} == {f"/root/data/ds/{name}" for name in ALL} | {"/root/data/a.txt"}
    assert json.loads(push.to_json())["copies"][1] == {"source": str(tree / "a.txt"), "target": "/root/data/a.txt"}
    assert paths_on_volume(made, "/root/data/*") == ["ds"]


def test_remove_needs_consent(made: Launcher) -> None:
    """A folder needs recursive. A whole volume and the records of runs need force as well. Checks come first."""
    made.push(__file__, "/root/data/.skyrl_modal/runs/x/output.log")
    for path in ("/root/data/ds", "/root/data/ds/*"):
        with pytest.raises(SpecError, match="recursive=True"):
            made.remove(path)
    for path in ("/root/data", "/root/data/.skyrl_modal", "/root/data/.skyrl_modal/runs/x"):
        with pytest.raises(SpecError, match="force=True"):
            made.remove(path, recursive=True)
    with pytest.raises(PathNotFound):
        made.remove("/root/data/none", recursive=True)
    assert paths_on_volume(made, "/root/data/ds/*") == ["ds/a.txt", "ds/b.pt", "ds/sub"]

    assert made.remove("/root/data/ds/*.pt") == ["/root/data/ds/b.pt"]
    assert made.remove("/root/data/ds/sub", recursive=True) == ["/root/data/ds/sub"]
    assert paths_on_volume(made, "/root/data/ds/*") == ["ds/a.txt"]
    made.remove("/root/data", recursive=True, force=True)
    assert made.ls("/root/data") == []


def test_files_are_read_and_measured(made: Launcher) -> None:
    """A file is read without a copy. The size of a folder is that of its files, with that of each entry."""
    assert b"".join(made.read("/root/data/ds/sub/c.pt")) == b"sub/c.pt"
    with pytest.raises(SpecError, match="folder"):
        list(made.read("/root/data/ds"))
    with pytest.raises(PathNotFound):
        list(made.read("/root/data/none"))

    usage = made.du("/root/data/ds")
    assert (usage.bytes, usage.files) == (sum(map(len, ALL)), 5)
    assert [(os.path.basename(each.path), each.files) for each in usage.entries] == [
        (".hidden", 1), ("a.txt", 1), ("b.pt", 1), ("sub", 2)
    ]  # fmt: skip
    assert (made.du("/root/data/ds/a.txt").files, made.du("/root/data/ds/a.txt").entries) == (1, ())


def test_run_is_pulled(launcher: MakeLauncher, tmp_path: Path) -> None:
    """A run's folder is copied to a folder with its id. It can be repeated."""
    run = launcher().submit("echo output; echo more > /root/data/other")
    run.wait()

    folder = run.pull(tmp_path)
    assert run.pull(tmp_path) == folder == tmp_path / run.id

    assert (folder / "output.log").read_text() == "output\n"
    assert json.loads((folder / "result.json").read_text())["returncode"] == 0
    assert not (folder / "checkpoints").exists()


@LOCAL_FIRST
def test_commands(made: Launcher, tree: Path, tmp_path: Path, backend: str) -> None:
    """The commands print paths in the container, and JSON with documented keys."""
    volume = f"/root/data={made.volumes[0].name}"

    def call(command: str, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "skyrl_modal", command, "--backend", backend, "--volume", volume, *arguments],
            capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    assert call("push", "ds/a.txt", "/root/data/newdir/") == "/root/data/newdir/a.txt\n"
    assert call("cat", "/root/data/newdir/a.txt", "/root/data/ds/b.pt") == "a.txtb.pt"
    [entry] = json.loads(call("ls", "--json", "/root/data/newdir"))
    assert (entry["path"], entry["type"], entry["size"]) == ("/root/data/newdir/a.txt", "file", 5)
    assert entry["mtime"] > 1_700_000_000
    assert call("ls", "-l", "/root/data/newdir/*").split()[-1] == "/root/data/newdir/a.txt"
    usage = json.loads(call("du", "--json", "/root/data/newdir"))
    assert (usage["bytes"], usage["files"], usage["entries"][0]["path"]) == (5, 1, "/root/data/newdir/a.txt")
    assert call("du", "/root/data/newdir").splitlines()[-1].split() == ["5", "1", "/root/data/newdir"]
    plan = json.loads(call("pull", "--dry-run", "--json", "/root/data/ds/*.txt", "/root/data/ds/sub", "out/"))
    assert [file["path"] for file in plan["files"]][:1] == ["out/a.txt"]
    assert not (tmp_path / "out").exists()
    assert call("pull", "/root/data/ds/*.txt", "/root/data/ds/sub", "out/").strip() == "out"
    assert files_below(tmp_path / "out") == ["a.txt", "sub/c.pt", "sub/deep/d.txt"]
    assert "rm -r" in call("rm", "/root/data/ds", code=125)
    assert call("rm", "-r", "--dry-run", "/root/data/ds").strip() == "/root/data/ds"
    assert call("rm", "-r", "/root/data/ds", "/root/data/newdir/a.txt").split()[0] == "/root/data/ds"
    assert "/root/data/ds" not in call("ls")
