"""The commit of a worktree, and the number of files that differ from it.

`git status` executes the filters, the file system monitor and other programs that the configuration of the repository
names. Here it is run so that it executes nothing and does not enter submodules, which are compared one by one.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from skyrl_modal.dataclass import dataclass
from skyrl_modal.gitfiles.config import attributes_file, list_config, system_file
from skyrl_modal.gitfiles.files import MAX_SMALL_FILE_BYTES, find_unsuitable, read_regular_file
from skyrl_modal.gitfiles.git_command import GitCommandError, GitProcess, filter_overrides, git_deadline
from skyrl_modal.gitfiles.index import MAX_INDEX_BYTES
from skyrl_modal.gitfiles.private_index import COPY_SETTINGS, PrivateIndex, copy_index
from skyrl_modal.gitfiles.repository import Repository, find_worktree, git_dir_of
from skyrl_modal.gitfiles.result_cache import NO_CACHE, ResultCache

_OBJECT_ID = re.compile(rb"[0-9a-f]{40}|[0-9a-f]{64}")
# Files of the worktree that git opens for its own use.
_TREE_FILES = (".gitignore", ".gitattributes", ".gitmodules", ".mailmap")
_MAX_SCANNED_ENTRIES = 200_000
# With `dirty`, git compares the commit of a submodule without starting a process in it.
_STATUS = ("status", "--porcelain=v1", "-z", "--ignore-submodules=dirty", "--", ".")


@dataclass(frozen=True, slots=True)
class WorktreeStatus:
    """The state of a worktree.

    Attributes:
        commit: The id of the commit that is checked out; None if there is no commit yet.
        changed_files: The number of entries that `git status` lists; None if there is no commit yet.
    """

    commit: str | None
    changed_files: int | None


def read_status(folder: Path, cache: ResultCache = NO_CACHE) -> WorktreeStatus | None:
    """Return the state of the worktree that contains a folder; None if it is in no worktree.

    Only changes in the folder are counted. As in `git status`, a renamed file counts once, and an untracked folder
    counts as one entry. Nothing is written to the worktree, and no program of the repository is executed.

    Args:
        folder: An existing folder.
        cache: Where a refreshed copy of the index is stored.

    Raises:
        GitCommandError: git is not installed, or failed, or a limit was exceeded.
    """
    with StatusQuery(folder, cache) as query:
        return query.result()


class StatusQuery:
    """A running query for the state of a worktree, as ``read_status`` returns it.

    It can be used in a ``with`` statement, which kills git at the end.

    Args:
        folder: An existing folder.
        cache: Where a refreshed copy of the index is stored.

    Raises:
        GitCommandError: git is not installed, or the repository cannot be read.
    """

    def __init__(self, folder: Path, cache: ResultCache = NO_CACHE) -> None:
        folder = folder.resolve()
        worktree = find_worktree(folder)
        self._comparison = None if worktree is None else _Comparison(*worktree, folder, cache)

    def result(self) -> WorktreeStatus | None:
        """Wait for git and return the state; None if the folder is in no worktree. It can be called once.

        Raises:
            GitCommandError: git failed, or a limit was exceeded.
        """
        return None if self._comparison is None else self._comparison.result(git_deadline())

    def close(self) -> None:
        """Kill git if it has not ended."""
        if self._comparison is not None:
            self._comparison.close()

    def __enter__(self) -> StatusQuery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Comparison:
    """The comparison of one worktree with its commit, which git makes in the background.

    Args:
        top: The top folder of the worktree.
        git_dir: The repository.
        folder: The folder whose changes count.
        cache: Where a refreshed copy of the index is stored.
    """

    def __init__(self, top: Path, git_dir: Path, folder: Path, cache: ResultCache) -> None:
        self._top, self._git_dir, self._folder, self._cache = top, git_dir, folder, cache
        self._repository = repository = Repository(top, git_dir)
        self._index: PrivateIndex | None = None
        self._process: GitProcess | None = None
        settings = repository.config.values
        if repository.blocks_git:
            raise GitCommandError(f"git cannot be run, because {repository.blocks_git}")
        if not repository.config.has_all_filters:
            settings = list_config(git_dir, top)
        self._commit = read_head(git_dir, repository.common_dir or git_dir) or self._ask_for_head()
        if self._commit is not None:
            try:
                self._start_status(settings)
            except BaseException:
                self.close()
                raise

    def _start_status(self, settings: Mapping[str, bytes | None]) -> None:
        common, user = self._repository.common_dir or self._git_dir, attributes_file(self._repository.config, self._top)
        attributes = [self._top / ".gitattributes", common / "info" / "attributes", *([] if user is None else [user])]
        self._index = copy_index(self._git_dir, self._top, settings, attributes, self._cache)
        # Comparing a file converts its content, which would execute the filters. git reads the same files as
        # `read_config` did, so that no filter is missing.
        overrides = [*filter_overrides(settings), *([] if self._index is None else COPY_SETTINGS)]
        self._process = self._start(*_STATUS, settings=overrides, system_file=system_file(), index=self._index)

    def result(self, deadline: float) -> WorktreeStatus:
        """Wait for git and return the state.

        Args:
            deadline: Time (of ``time.monotonic``) at which git is killed.
        """
        if self._process is None:
            return WorktreeStatus(None, None)
        try:
            changed, untracked = parse_status(self._process.read_stdout(deadline))
            if self._index is not None:
                self._index.store()
        finally:
            self.close()
        for path, top, git_dir in self._submodules():
            # git lists a submodule as modified only if another commit is checked out in it.
            if path not in changed and _count_changes(top, git_dir, self._cache, deadline):
                changed.add(path)
        return WorktreeStatus(self._commit, len(changed) + untracked)

    def close(self) -> None:
        """Kill git if it has not ended, and remove the copy of the index."""
        if self._process is not None:
            self._process.kill()
        if self._index is not None:
            self._index.close()

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

    def _submodules(self) -> Iterator[tuple[bytes, Path, Path]]:
        """Yield path, top folder and repository of each submodule in the folder that is checked out."""
        index = self._repository.readable_index
        prefix = b"" if self._folder == self._top else os.fsencode(self._folder.relative_to(self._top)) + b"/"
        for path in [] if index is None else index.submodules:
            top = self._top / os.fsdecode(path)
            if path.startswith(prefix) and (git_dir := git_dir_of(top)) is not None:
                yield path, top, git_dir

    def _start(
        self,
        *arguments: str,
        settings: list[str] | None = None,
        system_file: Path | None = None,
        index: PrivateIndex | None = None,
    ) -> GitProcess:
        top, git_dir = self._top, self._git_dir  # a reference to this object would be a cycle, and keep it
        return GitProcess(
            git_dir,
            top,
            arguments,
            cwd=self._folder,
            settings=settings or (),
            system_file=system_file,
            index=None if index is None else index.path,
            find_cause=lambda: find_blocking_file(top, git_dir),
        )


def _count_changes(top: Path, git_dir: Path, cache: ResultCache, deadline: float) -> int | None:
    """Return the number of changed files of a submodule; None if it has no commit."""
    comparison = _Comparison(top, git_dir, top, cache)
    try:
        return comparison.result(deadline).changed_files
    finally:
        comparison.close()


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


def parse_status(output: bytes) -> tuple[set[bytes], int]:
    r"""Return the changed paths, and the number of untracked ones, in the output of ``git status --porcelain=v1 -z``.

    Its format is documented in git-status(1): two letters, a blank and the path; after a path that was renamed or
    copied, its old path follows. Seen with git 2.39.

    Example:
        >>> changed, untracked = parse_status(b"R  b\0a\0 M train.py\0?? new/\0")
        >>> sorted(changed), untracked
        ([b'b', b'train.py'], 1)
    """
    changed: set[bytes] = set()
    untracked = 0
    records = iter(output.split(b"\0")[:-1])
    for record in records:
        letters, path = record[:2], record[3:]
        if letters == b"??":
            untracked += 1
            continue
        changed.add(path)
        if b"R" in letters or b"C" in letters:
            next(records, None)
    return changed, untracked
