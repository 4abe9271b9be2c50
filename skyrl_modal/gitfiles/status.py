"""The commit of a worktree, and the number of files that differ from it.

`git status` is not used, because it executes the filters, the file system monitor and other programs that the
configuration of the repository names. The commands here make the same comparison and execute nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from attrs import frozen

from skyrl_modal.gitfiles.config import LIST_CONFIG, is_true, parse_config_list
from skyrl_modal.gitfiles.git_command import GitCommandError, GitProcess, filter_overrides, git_deadline
from skyrl_modal.gitfiles.repository import Repository, find_worktree, git_dir_of

_READ_HEAD = ("rev-parse", "--verify", "--quiet", "HEAD")


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
        # Processes are started in pairs: each runs for some milliseconds.
        with self._start(*LIST_CONFIG) as config_process, self._start(*_READ_HEAD) as head_process:
            config = parse_config_list(config_process.read_stdout())
            head = head_process.read()
        # With --quiet the exit code is 1 if HEAD refers to no commit: git-rev-parse(1).
        if head.returncode == 1 and not head.stderr:
            return WorktreeStatus(None, None)
        commit = head.stdout.decode("ascii", "replace").strip()
        if head.returncode or not commit:
            raise GitCommandError(f"`git rev-parse` failed (exit code {head.returncode})")
        changed, untracked = self._changed_paths(config)
        changed.update(self._changed_submodules(changed))
        return WorktreeStatus(commit, len(changed) + untracked)

    def _changed_paths(self, config: Mapping[str, bytes | None]) -> tuple[set[bytes], int]:
        """Return the changed paths that git tracks or has tracked, and the number of untracked ones.

        A submodule is among the changed paths only if another commit is checked out in it.
        """
        listing = ["ls-files", "-z", "-t", "--full-name", "--modified"]
        untracked = config.get("status.showuntrackedfiles", b"normal")
        if untracked == b"all":
            listing += ["--others", "--exclude-standard"]
        elif untracked in (b"normal", None) or is_true(untracked):
            listing += ["--others", "--exclude-standard", "--directory", "--no-empty-directory"]
        renames = config.get("status.renames", config.get("diff.renames", b"true"))
        detection = "--find-renames" if is_true(renames) or renames in (b"copies", b"copy") else "--no-renames"
        staging = ["diff-index", "--cached", "-z", "--name-only", "--no-relative", detection, "HEAD"]
        with (
            # Comparing a file converts its content, which would execute the filters.
            self._start(*listing, "--", ".", settings=filter_overrides(config)) as in_worktree,
            self._start(*staging, "--", ".") as in_index,
        ):
            listed, staged = in_worktree.read_stdout(), in_index.read_stdout()
        # A record is a tag (`?` for an untracked path), a blank and the path: git-ls-files(1). Seen with git 2.39.
        records = [record.split(b" ", 1) for record in listed.split(b"\0")[:-1]]
        modified = {path for tag, path in records if tag != b"?"}
        return modified.union(staged.split(b"\0")[:-1]), sum(tag == b"?" for tag, _ in records)

    def _changed_submodules(self, known: set[bytes]) -> Iterator[bytes]:
        """Yield the submodules that contain changed files, except the known ones."""
        index = Repository(self.top, self.git_dir).readable_index
        prefix = os.fsencode(self.folder.relative_to(self.top)) + b"/"
        for path in [] if index is None else index.submodules:
            top = self.top / os.fsdecode(path)
            git_dir = git_dir_of(top)
            if path in known or git_dir is None or not (prefix == b"./" or path.startswith(prefix)):
                continue
            if _Comparison(top, git_dir, top, self.deadline).run().changed_files:
                yield path

    def _start(self, *arguments: str, settings: list[str] | None = None) -> GitProcess:
        return GitProcess(
            self.git_dir,
            self.top,
            arguments,
            cwd=self.folder,
            settings=settings or (),
            deadline=self.deadline,
        )
