"""The commit of a worktree, and the number of files that differ from it.

`git status` is not used, because it executes the filters, the file system monitor and other programs that the
configuration of the repository names. The commands here make the same comparison and execute nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from attrs import frozen

from skyrl_modal.gitfiles.config import is_true, list_config, system_file
from skyrl_modal.gitfiles.files import MAX_SMALL_FILE_BYTES, find_unsuitable, read_regular_file
from skyrl_modal.gitfiles.git_command import GitCommandError, GitProcess, filter_overrides, git_deadline
from skyrl_modal.gitfiles.index import MAX_INDEX_BYTES
from skyrl_modal.gitfiles.repository import Repository, find_worktree, git_dir_of

_OBJECT_ID = re.compile(rb"[0-9a-f]{40}|[0-9a-f]{64}")
# Files of the worktree that git opens for its own use.
_TREE_FILES = (".gitignore", ".gitattributes", ".gitmodules", ".mailmap")
_MAX_SCANNED_ENTRIES = 200_000
_COMPARE_INDEX = (
    *("diff-index", "--cached", "-z", "--name-status", "--no-relative", "--find-renames"),
    *("HEAD", "--", "."),
)


@frozen
class WorktreeStatus:
    """The state of a worktree.

    Attributes:
        commit: The id of the commit that is checked out; None if there is no commit yet.
        changed_files: The number of entries that `git status` lists; None if there is no commit yet.
    """

    commit: str | None
    changed_files: int | None


def read_status(folder: Path) -> WorktreeStatus | None:
    """Return the state of the worktree that contains a folder; None if it is in no worktree.

    Only changes in the folder are counted. As in `git status`, a renamed file counts once, and an untracked folder
    counts as one entry. Nothing is written, and no program of the repository is executed.

    Args:
        folder: An existing folder.

    Raises:
        GitCommandError: git is not installed, or failed, or a limit was exceeded.
    """
    folder = folder.resolve()
    worktree = find_worktree(folder)
    return None if worktree is None else _Comparison(*worktree, folder, git_deadline()).run()


@frozen
class _Comparison:
    """The comparison of one worktree with its commit.

    Attributes:
        top: The top folder of the worktree.
        git_dir: The repository.
        folder: The folder whose changes count.
        deadline: The time limit of all git processes together.
    """

    top: Path
    git_dir: Path
    folder: Path
    deadline: float

    def run(self) -> WorktreeStatus:
        repository = Repository(self.top, self.git_dir)
        config = repository.config.values
        if repository.blocks_git:
            raise GitCommandError(f"git cannot be run, because {repository.blocks_git}")
        if not repository.config.has_all_filters:
            config = list_config(self.git_dir, self.top)
        commit = read_head(self.git_dir, repository.common_dir or self.git_dir) or self._ask_for_head()
        if commit is None:
            return WorktreeStatus(None, None)
        with (
            # Comparing a file converts its content, which would execute the filters. git reads the same files as
            # `read_config` did, so that no filter is missing.
            self._start(
                *_list_worktree(config), settings=filter_overrides(config), system_file=system_file()
            ) as worktree_process,
            self._start(*_COMPARE_INDEX) as index_process,
        ):
            submodules = list(self._submodules(repository))
            changed = parse_diff_index(index_process.read_stdout(), detects_renames=_detects_renames(config))
            modified, untracked = parse_tagged_list(worktree_process.read_stdout())
        changed |= modified
        for path, top, git_dir in submodules:
            # git lists a submodule as modified only if another commit is checked out in it.
            if path not in changed and _Comparison(top, git_dir, top, self.deadline).run().changed_files:
                changed.add(path)
        return WorktreeStatus(commit, len(changed) + untracked)

    def _ask_for_head(self) -> str | None:
        """Return the commit that git finds for HEAD; None if there is no commit yet."""
        with self._start("rev-parse", "--verify", "--quiet", "HEAD") as process:
            head = process.read()
        # With --quiet the exit code is 1 if HEAD refers to no commit: git-rev-parse(1).
        if head.returncode == 1 and not head.stderr:
            return None
        commit = head.stdout.decode("ascii", "replace").strip()
        if head.returncode or not commit:
            raise GitCommandError(f"`git rev-parse` failed (exit code {head.returncode})")
        return commit

    def _submodules(self, repository: Repository) -> Iterator[tuple[bytes, Path, Path]]:
        """Yield path, top folder and repository of each submodule in the folder that is checked out."""
        index = repository.readable_index
        prefix = b"" if self.folder == self.top else os.fsencode(self.folder.relative_to(self.top)) + b"/"
        for path in [] if index is None else index.submodules:
            top = self.top / os.fsdecode(path)
            if path.startswith(prefix) and (git_dir := git_dir_of(top)) is not None:
                yield path, top, git_dir

    def _start(self, *arguments: str, settings: list[str] | None = None, system_file: Path | None = None) -> GitProcess:
        return GitProcess(
            self.git_dir,
            self.top,
            arguments,
            cwd=self.folder,
            settings=settings or (),
            system_file=system_file,
            deadline=self.deadline,
            find_cause=self._find_blocking_file,
        )

    def _find_blocking_file(self) -> str:
        return find_blocking_file(self.top, self.git_dir)


def find_blocking_file(top: Path, git_dir: Path) -> str:
    """Return a file for which a git command would wait, or that it would read for long, with the reason.

    These are the files of the repository without its objects, and the ignore and attribute files in the worktree. Only
    the first entries are examined; empty if there is no such file among them.
    """
    left = _MAX_SCANNED_ENTRIES
    inside = os.path.join(git_dir, "")
    pending = [os.fspath(top), os.fspath(git_dir)]
    while pending:
        folder = pending.pop()
        of_git = f"{folder}/".startswith(inside)
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                left -= 1
                if left < 0:
                    return ""
                if entry.is_dir(follow_symlinks=False):
                    if entry.path != inside + "objects":
                        pending.append(entry.path)
                elif (of_git or entry.name in _TREE_FILES) and (problem := _blocking_problem(entry.path)):
                    return f"{entry.path} is {problem}"
    return ""


def _blocking_problem(path: str) -> str:
    """Return why git would need long for a file. A socket, such as the one of git's file system monitor, is none."""
    problem = find_unsuitable(path, MAX_INDEX_BYTES)
    return "" if problem.startswith("a socket") else problem


def read_head(git_dir: Path, common_dir: Path) -> str | None:
    """Return the commit that is checked out, if HEAD and its branch are stored in plain files.

    Otherwise the result is None, and only git can find the commit.

    Args:
        git_dir: The repository; for a linked worktree its folder in ``.git/worktrees``.
        common_dir: The folder that its worktrees share.
    """
    try:
        head = read_regular_file(git_dir / "HEAD", follow_link=False, max_bytes=MAX_SMALL_FILE_BYTES)
        if not head.startswith(b"ref: refs/heads/"):
            return _object_id(head)
        branch = head.removeprefix(b"ref: ").rstrip(b"\n")
        try:
            return _object_id(read_regular_file(common_dir / os.fsdecode(branch), max_bytes=MAX_SMALL_FILE_BYTES))
        except FileNotFoundError:
            packed = read_regular_file(common_dir / "packed-refs").split(b"\n")
    except (OSError, ValueError):
        return None
    suffix = b" " + branch
    return next((_object_id(line.removesuffix(suffix)) for line in packed if line.endswith(suffix)), None)


def _object_id(content: bytes) -> str | None:
    text = content.rstrip(b"\n")
    return text.decode() if _OBJECT_ID.fullmatch(text) else None


def _list_worktree(config: Mapping[str, bytes | None]) -> list[str]:
    """Return the git command that lists modified and untracked files, as `git status` is configured to list them."""
    command = ["ls-files", "-z", "-t", "--full-name", "--modified"]
    untracked = config.get("status.showuntrackedfiles", b"normal")
    if untracked == b"all":
        command += ["--others", "--exclude-standard"]
    elif untracked in (b"normal", None) or is_true(untracked):
        command += ["--others", "--exclude-standard", "--directory", "--no-empty-directory"]
    return [*command, "--", "."]


def _detects_renames(config: Mapping[str, bytes | None]) -> bool:
    value = config.get("status.renames", config.get("diff.renames", b"true"))
    return is_true(value) or value in (b"copies", b"copy")


def parse_diff_index(output: bytes, *, detects_renames: bool) -> set[bytes]:
    r"""Return the paths in the output of ``git diff-index -z --name-status``.

    Its format is documented in git-diff-index(1), "Raw output format": a letter and a path, or `R` with a number and
    two paths. Seen with git 2.39.

    Args:
        output: The output.
        detects_renames: Whether a rename counts as one change, with its new path.

    Example:
        >>> sorted(parse_diff_index(b"M\0a\0R100\0b\0c\0", detects_renames=True))
        [b'a', b'c']
    """
    paths = set()
    fields = iter(output.split(b"\0")[:-1])
    for letter in fields:
        path = next(fields)
        if letter[:1] == b"R":
            if not detects_renames:
                paths.add(path)
            path = next(fields)
        paths.add(path)
    return paths


def parse_tagged_list(output: bytes) -> tuple[set[bytes], int]:
    r"""Return the modified paths, and the number of untracked ones, in the output of ``git ls-files -z -t``.

    Its format is documented in git-ls-files(1): a tag (``?`` for an untracked path), a blank and the path. Seen with
    git 2.39.

    Example:
        >>> parse_tagged_list(b"C train.py\0? new/\0")
        ({b'train.py'}, 1)
    """
    records = [record.split(b" ", 1) for record in output.split(b"\0")[:-1]]
    return {path for tag, path in records if tag != b"?"}, sum(tag == b"?" for tag, _ in records)
