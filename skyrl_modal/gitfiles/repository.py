"""The git repository that contains a folder, found and read by git's rules."""

from __future__ import annotations

import os
import re
import stat
from functools import cached_property, partial
from pathlib import Path

from skyrl_modal.gitfiles.config import GitConfig, attributes_file, excludes_file, read_config
from skyrl_modal.gitfiles.files import MAX_SMALL_FILE_BYTES, UnsuitableFileError, find_unsuitable, read_regular_file
from skyrl_modal.gitfiles.ignore_file import MAX_IGNORE_FILE_BYTES, IgnoreFile, TooManyLinesError, parse_ignore_file
from skyrl_modal.gitfiles.index import MAX_INDEX_BYTES, Index
from skyrl_modal.gitfiles.index_format import IndexReadError
from skyrl_modal.gitfiles.matcher import RuleStack

_HEAD = re.compile(rb"ref:\s*refs/|[0-9a-fA-F]{40}")
#: Lines that match nothing are reported one by one up to this number for each file.
MAX_REPORTED_LINES = 20
_SHOWN_LINE_BYTES = 100
# Files that nearly every git command reads, in the repository and in the folder that its worktrees share.
_GIT_FILES = (
    *("HEAD", "index", "config", "config.worktree", "commondir", "packed-refs", "shallow", "info/exclude"),
    *("info/attributes", "info/grafts", "info/sparse-checkout", "objects/info/alternates", "objects/info/commit-graph"),
    *("objects/pack/multi-pack-index", "refs/replace"),
)
_ACROSS_FILE_SYSTEMS = "GIT_DISCOVERY_ACROSS_FILESYSTEM"


class Repository:
    """The facts that decide about the files of one worktree, apart from the ignore files in it.

    Args:
        top: The top folder of the worktree.
        git_dir: The repository; None if there is none, and the folder is treated as after ``git init``.

    Attributes:
        top: As given.
        git_dir: As given.
        common_dir: The folder that all worktrees of the repository share; None if there is no repository.
        problems: Messages about files that could not be read.
        config: The settings of git.
        ignore_case: Whether ``core.ignorecase`` is set.
    """

    def __init__(self, top: Path, git_dir: Path | None) -> None:
        self.top, self.git_dir = top, git_dir
        self.common_dir = None if git_dir is None else _common_dir(git_dir)
        self.config = read_config(git_dir, self.common_dir, top)
        self.problems = list(self.config.problems)
        self.ignore_case = self.config.flag("core.ignorecase")

    @cached_property
    def general_rules(self) -> RuleStack:
        """The ignore files that apply in the whole worktree, in ascending order of precedence."""
        files = [excludes_file(self.config, self.top)]
        if self.common_dir is not None:
            files.append(self.common_dir / "info" / "exclude")
        rules = RuleStack(ignore_case=self.ignore_case)
        for path in files:
            if path is not None:
                rules = rules.extended(self._read_ignore_file(path), b"")
        return rules

    def _read_ignore_file(self, path: Path) -> IgnoreFile:
        """Read an ignore file outside of the worktree."""
        try:
            return self.parse_ignore_file(read_regular_file(path, max_bytes=MAX_IGNORE_FILE_BYTES), str(path))
        except (FileNotFoundError, NotADirectoryError):
            return IgnoreFile()
        except OSError as error:
            self.problems.append(unreadable_message(str(path), error))
            return IgnoreFile()

    def parse_ignore_file(self, content: bytes, shown: str) -> IgnoreFile:
        """Parse an ignore file, and add lines that match nothing to ``problems``.

        Args:
            content: The content of the file.
            shown: The name of the file in messages.
        """
        try:
            file = parse_ignore_file(content, shown, self.ignore_case)
        except TooManyLinesError as error:
            self.problems.append(f"{shown} cannot be read ({error}): its patterns are not applied")
            return IgnoreFile()
        for lineno, line, reason in file.unmatchable[:MAX_REPORTED_LINES]:
            text = line[:_SHOWN_LINE_BYTES].decode("utf-8", "backslashreplace")
            shortened = "..." if len(line) > _SHOWN_LINE_BYTES else ""
            self.problems.append(
                f"{shown}:{lineno}: {text!r}{shortened} matches nothing, neither here nor in git: {reason}"
            )
        more = len(file.unmatchable) - MAX_REPORTED_LINES
        if more > 0:
            self.problems.append(f"{shown}: {more:,} more lines match nothing, neither here nor in git")
        return file

    @cached_property
    def blocks_git(self) -> str:
        """Why no git process can be started in the repository; empty if nothing is wrong.

        git has no time limit of its own, and would wait for a file that is a named pipe.
        """
        return _find_block(self.config, self.git_dir, self.common_dir, self.top)

    @cached_property
    def index(self) -> Index:
        """The tracked paths."""
        return Index(
            self.git_dir,
            self.top,
            sha256=self.config.values.get("extensions.objectformat") == b"sha256",
            ignore_case=self.ignore_case,
            # Without references to this object: the index would be kept until Python searches for cycles.
            on_damage=partial(_report_damaged_index, self.problems, self.top),
            blocks_git=partial(_find_block, self.config, self.git_dir, self.common_dir, self.top),
        )

    @cached_property
    def absent_ignore_files(self) -> dict[bytes, bytes]:
        """The content of the ``.gitignore`` files that a sparse checkout leaves out of the worktree, by path."""
        index = self.readable_index
        return {} if index is None else index.absent_ignore_files

    @cached_property
    def readable_index(self) -> Index | None:
        """The index, or None if it cannot be read, which is then noted in ``problems``."""
        return self.index if self.index.is_readable else None


def _report_damaged_index(problems: list[str], top: Path, error: IndexReadError) -> None:
    problems.append(
        f"git's index of {top} cannot be read ({error}): tracked files that an ignore file matches are excluded. Run "
        "`git status` to see what is wrong with it"
    )


def _find_block(config: GitConfig, git_dir: Path | None, common_dir: Path | None, top: Path) -> str:
    """Return why no git process can be started in a repository; empty if nothing is wrong."""
    if config.blocks_git or git_dir is None or common_dir is None:
        return config.blocks_git
    paths = [folder / name for folder in dict.fromkeys((git_dir, common_dir)) for name in _GIT_FILES]
    paths += filter(None, (excludes_file(config, top), attributes_file(config, top)))
    for path in paths:
        if problem := find_unsuitable(path, MAX_INDEX_BYTES):
            return f"{path} is {problem}"
    return ""


def unreadable_message(shown: str, error: OSError) -> str:
    """Return the message about an ignore file that cannot be read."""
    if isinstance(error, UnsuitableFileError):
        return f"{shown} cannot be read ({error.strerror}): its patterns are not applied"
    return f"{shown} cannot be read ({error.strerror}): its patterns are not applied. Run `chmod +r {shown}`"


def find_worktree(folder: Path) -> tuple[Path, Path] | None:
    """Return the top folder and the repository of the worktree that contains a folder; None if there is none."""
    device = folder.stat().st_dev
    ceilings = {Path(entry) for entry in os.environ.get("GIT_CEILING_DIRECTORIES", "").split(os.pathsep) if entry}
    across = os.environ.get(_ACROSS_FILE_SYSTEMS, "").lower() in ("1", "true", "yes", "on")
    for top in (folder, *folder.parents):
        if top != folder and (top in ceilings or (not across and top.stat().st_dev != device)):
            break
        git_dir = git_dir_of(top)
        if git_dir is not None:
            return top, git_dir
    return None


def find_repository(folder: Path) -> Repository:
    """Return the repository that contains a folder, or one without ``git_dir`` if there is none."""
    worktree = find_worktree(folder)
    return Repository(folder, None) if worktree is None else Repository(*worktree)


def git_dir_of(top: Path) -> Path | None:
    """Return the repository whose worktree has this top folder; None if there is none."""
    place = top / ".git"
    try:
        if stat.S_ISDIR(place.stat().st_mode):
            return place if _is_repository(place) else None
        content = read_regular_file(place, max_bytes=MAX_SMALL_FILE_BYTES)
    except OSError:
        # Absent or not accessible: in both cases git continues the search in the parent folder.
        return None
    if not content.startswith(b"gitdir:"):
        return None
    target = top / os.fsdecode(content.removeprefix(b"gitdir:").strip(b" \t").rstrip(b"\r\n"))
    return target if _is_repository(target) else None


def _is_repository(folder: Path) -> bool:
    head = folder / "HEAD"
    try:
        if head.is_symlink():
            text = b"ref: " + os.fsencode(head.readlink())
        else:
            text = read_regular_file(head, max_bytes=MAX_SMALL_FILE_BYTES)
    except OSError:
        return False
    common = _common_dir(folder)
    return bool(_HEAD.match(text)) and (common / "objects").is_dir() and (common / "refs").is_dir()


def _common_dir(git_dir: Path) -> Path:
    try:
        text = read_regular_file(git_dir / "commondir", max_bytes=MAX_SMALL_FILE_BYTES)
    except OSError:
        return git_dir
    return git_dir / os.fsdecode(text.rstrip(b"\r\n"))
