"""The repository around a folder, found and read as git does it, but without git."""

from __future__ import annotations

import os
import re
import stat
from functools import cached_property
from pathlib import Path

from skyrl_modal.gitfiles.config import GitConfig, excludes_file, settings
from skyrl_modal.gitfiles.index import Index, IndexUnreadable
from skyrl_modal.gitfiles.matcher import Chain
from skyrl_modal.gitfiles.object_store import ObjectMissing, Objects
from skyrl_modal.gitfiles.pattern import Ruleset, parse

_HEAD = re.compile(rb"ref:\s*refs/|[0-9a-fA-F]{40}")
_WHOLE_DISK = "GIT_DISCOVERY_ACROSS_FILESYSTEM"


class Repository:
    """What decides in one worktree besides its ``.gitignore`` files.

    Attributes:
        top: The folder of the worktree.
        git_dir: Its repository; None where there is none, and what git would do after ``git init`` holds.
        problems: Sentences about what could not be read.
        config: git's settings that are in force in it.
        ignore_case: ``core.ignorecase``.
    """

    def __init__(self, top: Path, git_dir: Path | None) -> None:
        self.top, self.git_dir = top, git_dir
        self._common_dir = None if git_dir is None else _common_dir(git_dir)
        self.config: GitConfig = settings(git_dir, self._common_dir)
        self.problems: list[str] = list(self.config.problems)
        self.ignore_case = self.config.flag("core.ignorecase")

    @cached_property
    def chain(self) -> Chain:
        """The ignore files that hold everywhere in the worktree, the weakest first."""
        files = [excludes_file(self.config, self.top)]
        if self._common_dir is not None:
            files.append(self._common_dir / "info" / "exclude")
        chain = Chain(ignore_case=self.ignore_case)
        for path in files:
            if path is not None:
                chain = chain.extended(self.read_ignore_file(path, str(path)), b"")
        return chain

    def read_ignore_file(self, path: Path, shown: str) -> Ruleset:
        """The rules of an ignore file outside of the worktree; what cannot be read is told in ``problems``."""
        try:
            return self.rules(path.read_bytes(), shown)
        except (FileNotFoundError, NotADirectoryError):
            return Ruleset()
        except OSError as error:
            self.problems.append(unreadable(shown, error))
            return Ruleset()

    def rules(self, content: bytes, shown: str) -> Ruleset:
        """The rules in the content of an ignore file; lines that can match nothing are told in ``problems``."""
        ruleset = parse(content, shown, self.ignore_case)
        for lineno, line, why in ruleset.never:
            text = line.decode("utf-8", "backslashreplace")
            self.problems.append(f"{shown}:{lineno}: {text!r} matches nothing, neither here nor in git: {why}")
        return ruleset

    @cached_property
    def index(self) -> Index:
        """What is tracked."""
        if self.git_dir is None or self._common_dir is None:
            return Index(self.top / ".git" / "index", Objects(self.top))
        wide = self.config.values.get("extensions.objectformat") == b"sha256"
        objects = Objects(self._common_dir / "objects", 32 if wide else 20)
        return Index(self.git_dir / "index", objects, self.ignore_case)

    @cached_property
    def absent_ignore_files(self) -> dict[bytes, bytes]:
        """The content of the ``.gitignore`` files that a sparse checkout leaves out, by path."""
        index = self.readable_index
        return {} if index is None else index.absent_ignore_files

    @cached_property
    def readable_index(self) -> Index | None:
        """The index, or None (told in ``problems``) where it cannot be understood."""
        try:
            self.index.load()
        except (IndexUnreadable, ObjectMissing) as error:
            self.problems.append(
                f"git's index of {self.top} cannot be read ({error}): tracked files that an ignore file matches stay "
                "behind; `git status` tells what is wrong with it"
            )
            return None
        return self.index


def unreadable(shown: str, error: OSError) -> str:
    """The sentence about an ignore file that cannot be read."""
    return f"{shown} cannot be read ({error.strerror}): its patterns are not in force; `chmod +r {shown}` lets them be"


def find(folder: Path) -> Repository:
    """The repository that a folder belongs to, or one without a ``git_dir`` where there is none."""
    device = folder.stat().st_dev
    ceilings = {Path(entry) for entry in os.environ.get("GIT_CEILING_DIRECTORIES", "").split(os.pathsep) if entry}
    across = os.environ.get(_WHOLE_DISK, "").lower() in ("1", "true", "yes", "on")
    for top in (folder, *folder.parents):
        if top != folder and (top in ceilings or (not across and top.stat().st_dev != device)):
            break
        git_dir = repository_of(top)
        if git_dir is not None:
            return Repository(top, git_dir)
    return Repository(folder, None)


def repository_of(top: Path) -> Path | None:
    """The repository whose worktree begins at this folder."""
    place = top / ".git"
    try:
        mode = place.stat().st_mode
        if stat.S_ISDIR(mode):
            return place if _is_repository(place) else None
        # A pipe of this name would keep us waiting.
        content = place.read_bytes() if stat.S_ISREG(mode) else b""
    except OSError:
        # Absent, or not for us: either way git would look further up.
        return None
    if not content.startswith(b"gitdir:"):
        return None
    target = top / os.fsdecode(content.removeprefix(b"gitdir:").strip(b" \t").rstrip(b"\r\n"))
    return target if _is_repository(target) else None


def _is_repository(folder: Path) -> bool:
    head = folder / "HEAD"
    try:
        text = os.fsencode(head.readlink()) if head.is_symlink() else head.read_bytes()
    except OSError:
        return False
    if head.is_symlink():
        text = b"ref: " + text
    common = _common_dir(folder)
    return bool(_HEAD.match(text)) and (common / "objects").is_dir() and (common / "refs").is_dir()


def _common_dir(git_dir: Path) -> Path:
    try:
        text = (git_dir / "commondir").read_bytes()
    except OSError:
        return git_dir
    return git_dir / os.fsdecode(text.rstrip(b"\r\n"))
