"""git is run so that it executes no program of the repository, within limits."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_modal.checkout import inspect_checkout
from skyrl_modal.gitfiles import git_command
from skyrl_modal.gitfiles.git_command import GitCommandError, GitProcess, filter_overrides, run_git
from skyrl_modal.mount import select
from tests.gitfiles.repositories import git
from tests.gitfiles.trees import commit, has_warning, make

# Keys whose value is a program that some git command executes. {0} is the program.
PROGRAM_KEYS = [
    "core.alternateRefsCommand", "core.askPass", "core.editor", "core.fsmonitor", "core.gitProxy", "core.pager",
    "core.sshCommand", "credential.helper", "diff.external", "diff.marker.command", "diff.marker.textconv",
    "filter.marker.clean", "filter.marker.process", "filter.marker.smudge", "filter.a.b c.clean", "gpg.program",
    "gpg.ssh.program", "interactive.diffFilter", "merge.marker.driver", "mergetool.marker.cmd", "difftool.marker.cmd",
    "pager.cat-file", "pager.config", "pager.diff-index", "pager.ls-files", "pager.rev-parse",
    "remote.origin.receivepack", "remote.origin.uploadpack", "sequence.editor", "trailer.marker.command",
    "uploadpack.packObjectsHook", "web.browser", "browser.marker.cmd", "man.marker.cmd", "submodule.sub.update",
    "tar.marker.command", "http.proxyCommand", "receive.procReceiveRefs",
]  # fmt: skip
ALIASES = ["cat-file", "config", "diff-index", "ls-files", "rev-parse", "status"]
HOOKS = [
    "fsmonitor-watchman", "post-checkout", "post-index-change", "pre-auto-gc", "reference-transaction", "pre-commit",
    "post-rewrite", "query-watchman",
]  # fmt: skip


@pytest.fixture
def hostile(tree: Path, program: Path) -> Path:
    """A repository that names the program at every place from which git could execute it."""
    make(tree, {".gitattributes": "* diff=marker merge=marker\n*.py filter=marker\n*.tsx filter=included\n"})
    git("add", ".gitattributes", "docs", cwd=tree)
    commit(tree)
    for key in PROGRAM_KEYS:
        git("config", key, f"!{program}" if key.startswith("submodule") else str(program), cwd=tree)
    for name in ALIASES:
        git("config", f"alias.{name}", f"!{program}", cwd=tree)
    hooks = make(tree.with_name("hooks"), dict.fromkeys(HOOKS, program.read_text()))
    for folder in (hooks, tree / ".git" / "hooks"):
        for name in HOOKS:
            folder.mkdir(exist_ok=True)
            (folder / name).write_text(program.read_text())
            (folder / name).chmod(0o755)
    git("config", "filter.marker.required", "true", cwd=tree)
    git("config", "core.hooksPath", str(hooks), cwd=tree)
    git("config", "remote.origin.url", f"ext::{program}", cwd=tree)
    git("config", "protocol.ext.allow", "always", cwd=tree)
    included = f'[filter "included"]\n\tclean = {program}\n\trequired\n'
    (tree / ".git" / "included").write_text(included)
    git("config", "include.path", "included", cwd=tree)
    # The time differs and the size does not, so that git has to compare the content.
    for name in ("train.py", "docs/lib/page.tsx"):
        os.utime(tree / name, (1, 1))
    return tree


def test_setup_executes_programs(hostile: Path, marker: Path) -> None:
    """The repository is hostile: a plain ``git status`` executes the program."""
    subprocess.run(
        ["git", "status"], cwd=hostile, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
    )
    assert marker.exists()


@pytest.mark.parametrize("form", [None, "--split-index", "--index-version 4"])
def test_planning_executes_nothing(hostile: Path, marker: Path, form: str | None) -> None:
    """Neither the selection nor the state of the checkout executes a program of the repository."""
    if form:
        git("-c", "core.fsmonitor=false", "-c", "alias.x=", "update-index", *form.split(), cwd=hostile)
        marker.unlink(missing_ok=True)
    checkout = inspect_checkout(hostile)
    selection = select(hostile)
    assert (checkout.warning, checkout.commit is not None) == ("", True)
    assert not has_warning(selection, "includes other files")
    assert not has_warning(selection, "index")
    assert "train.py" in selection.files
    assert not marker.exists(), marker.read_text()


@pytest.mark.parametrize("scope", ["--local", "--global", "--system"])
def test_filter_of_a_plain_configuration(
    tree: Path, marker: Path, program: Path, scope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter is disabled in every scope of a configuration that includes no other file."""
    monkeypatch.delenv("GIT_CONFIG_NOSYSTEM")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", str(tree.with_name("system")))
    make(tree, {".gitattributes": "*.py filter=only\n"})
    commit(tree)
    git("config", scope, "filter.only.clean", str(program), cwd=tree)
    os.utime(tree / "train.py", (1, 1))
    assert inspect_checkout(tree).warning == ""
    assert not marker.exists()
    git("status", cwd=tree)
    assert marker.exists()


def test_missing_objects_are_not_fetched(hostile: Path, marker: Path, program: Path) -> None:
    """A partial clone that misses an object does not call the transport, which could be a program."""
    git("config", "core.fsmonitor", "false", cwd=hostile)
    git("config", "extensions.partialClone", "origin", cwd=hostile)
    git("config", "core.repositoryFormatVersion", "1", cwd=hostile)
    git("config", "remote.origin.promisor", "true", cwd=hostile)
    git("-c", "core.hooksPath=/dev/null", "add", ".gitignore", cwd=hostile)
    git("-c", "core.hooksPath=/dev/null", "update-index", "--skip-worktree", ".gitignore", cwd=hostile)
    object_id = git("ls-files", "-s", ".gitignore", cwd=hostile).split()[1].decode()
    (hostile / ".gitignore").unlink()
    (hostile / ".git" / "objects" / object_id[:2] / object_id[2:]).unlink()
    marker.unlink(missing_ok=True)
    selection = select(hostile)
    assert has_warning(selection, "index")
    assert not marker.exists(), marker.read_text()
    command = ["git", "cat-file", "-p", object_id]
    subprocess.run(command, cwd=hostile, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    assert marker.exists()


def test_filter_names_that_cannot_be_overridden(hostile: Path, marker: Path, program: Path) -> None:
    """If a filter cannot be disabled, files are not compared, and the checkout has a warning and no commit."""
    with (hostile / ".git" / "config").open("a") as file:
        file.write(f'[filter "a=b"]\n\tclean = {program}\n')
    make(hostile, {".gitattributes": "*.py filter=a=b\n"})
    checkout = inspect_checkout(hostile)
    assert checkout.commit is None
    assert "'a=b' cannot be disabled" in checkout.warning
    assert not marker.exists()


def test_filter_overrides() -> None:
    """Every part of each filter is overridden, also of one whose name contains dots."""
    assert filter_overrides(["filter.a.b.clean", "filter.x.required", "core.bare", "filter.x.smudge"]) == [
        "filter.a.b.clean=", "filter.a.b.smudge=", "filter.a.b.process=", "filter.a.b.required=false",
        "filter.x.clean=", "filter.x.smudge=", "filter.x.process=", "filter.x.required=false",
    ]  # fmt: skip


def test_variables_of_the_caller_are_removed(tree: Path, marker: Path, program: Path, tmp_path: Path) -> None:
    """Variables that select another repository, a program or a trace file have no effect."""
    git("add", "docs", cwd=tree)
    commit(tree)
    git("update-index", "--split-index", cwd=tree)
    before, files = inspect_checkout(tree), select(tree).files
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE", "GIT_OBJECT_DIRECTORY", "GIT_CONFIG"):
            patch.setenv(name, str(tmp_path / "absent"))
        for name in ("GIT_EXTERNAL_DIFF", "GIT_SSH_COMMAND", "GIT_PAGER", "GIT_ASKPASS", "GIT_EDITOR"):
            patch.setenv(name, str(program))
        patch.setenv("GIT_TRACE", str(tmp_path / "trace"))
        patch.setenv("GIT_TRACE2_EVENT", str(tmp_path / "trace"))
        assert inspect_checkout(tree) == before
        assert select(tree).files == files
    assert not marker.exists()
    assert not (tmp_path / "trace").exists()


def test_git_is_not_taken_from_a_relative_path(tree: Path, marker: Path, program: Path) -> None:
    """A program named git in the checkout is not executed, even if PATH contains the current folder."""
    (tree / "git").write_bytes(program.read_bytes())
    (tree / "git").chmod(0o755)
    previous = Path.cwd()
    os.chdir(tree)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", "", prepend=os.pathsep)
            patch.setenv("PATH", ".", prepend=os.pathsep)
            assert inspect_checkout(tree).warning == ""
            patch.setenv("PATH", ".")
            assert "git is not installed" in inspect_checkout(tree).warning
    finally:
        os.chdir(previous)
    assert not marker.exists()


@pytest.fixture
def blocked(tree: Path) -> Path:
    """A repository in which git blocks, because core.excludesFile is a named pipe."""
    commit(tree)
    os.mkfifo(tree / "pipe")
    git("config", "core.excludesFile", str(tree / "pipe"), cwd=tree)
    return tree


LIST_UNTRACKED = ("ls-files", "--others", "--exclude-standard")


def test_git_is_killed_at_the_time_limit(blocked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the time limit git is killed, and the error states the limit."""
    monkeypatch.setattr(git_command, "GIT_TIMEOUT_SECONDS", 0.5)
    with pytest.raises(GitCommandError, match=r"did not end within 0\.5 s"):
        run_git(blocked / ".git", blocked, *LIST_UNTRACKED)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_children_are_killed_at_the_time_limit(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the time limit a child process that keeps the output open is killed, even if git itself has ended."""
    child = tmp_path / "child"
    fake = make(tmp_path / "bin", {"git": f"#!/bin/sh\nsleep 60 &\necho $! > {shlex.quote(str(child))}\n"})
    (fake / "git").chmod(0o755)
    monkeypatch.setattr(git_command, "GIT_TIMEOUT_SECONDS", 1.0)
    monkeypatch.setenv("PATH", str(fake), prepend=os.pathsep)
    with pytest.raises(GitCommandError, match="did not end"):
        run_git(tree / ".git", tree, "ls-files")
    wait_until(lambda: has_ended(int(child.read_text())))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_git_is_killed_when_its_reader_is_interrupted(blocked: Path) -> None:
    """A process that was not read to its end is killed at the end of the block."""
    with GitProcess(blocked / ".git", blocked, LIST_UNTRACKED) as process:
        pid = process.pid
        assert not has_ended(pid)
    assert has_ended(pid)


def has_ended(pid: int) -> bool:
    """Return whether there is no such process, or it has ended and its parent has not been informed yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, for at most ten seconds."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can limit the memory of another process")
def test_memory_of_git_is_limited(blocked: Path) -> None:
    """The address space of a git process is limited."""
    import resource

    with GitProcess(blocked / ".git", blocked, LIST_UNTRACKED) as process:
        assert resource.prlimit(process.pid, resource.RLIMIT_AS)[0] <= git_command.MAX_MEMORY_BYTES


@pytest.mark.parametrize("source", ["stdout", "stdin"])
def test_output_of_git_is_limited(tree: Path, source: str) -> None:
    """Output above the limit ends the process with an error, whether it comes from the worktree or from objects."""
    runs: dict[str, Callable[[], GitProcess]] = {
        "stdout": lambda: GitProcess(tree / ".git", tree, ("ls-files", "--stage"), max_output=10),
        "stdin": lambda: GitProcess(
            tree / ".git", tree, ("cat-file", "--batch"), stdin=b"HEAD:\n" * 100, max_output=10
        ),
    }
    with pytest.raises(GitCommandError, match="more than 10 bytes"):
        runs[source]().read_stdout()


def test_failure_of_git_names_its_cause(tree: Path) -> None:
    """An exit code other than 0 is an error with the first line of git's message."""
    with pytest.raises(GitCommandError, match=r"`git cat-file` failed .*absent"):
        run_git(tree / ".git", tree, "cat-file", "-p", "absent")
