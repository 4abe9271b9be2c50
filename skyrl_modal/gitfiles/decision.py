"""The decision about one path, and the state of a folder that decisions depend on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import Enum, StrEnum
from typing import NamedTuple

from skyrl_modal.dataclass import dataclass, field
from skyrl_modal.gitfiles.matcher import RuleStack
from skyrl_modal.gitfiles.pattern import Rule
from skyrl_modal.gitfiles.repository import Repository


class RuleSource(StrEnum):
    """The kind of rule that decided about a path."""

    EXCLUDE = "exclude"
    INCLUDE = "include"
    SKYRLIGNORE = "skyrlignore"
    GIT = "git"
    CACHES = "caches"


class FolderMode(Enum):
    """The treatment of names in a folder that no rule of higher precedence matches."""

    NORMAL = "git decides"
    ALL_BUT_CACHES = "included, except caches: an include names the folder"
    ALL = "included: an include names the cache"
    TRACKED_ONLY = "included if tracked: git ignores the folder, or it is a cache"
    NONE = "excluded: an exclude or .skyrlignore names the folder"


#: Modes of folders whose names are not reported one by one, because the folder itself is reported.
UNREPORTED_MODES = (FolderMode.TRACKED_ONLY, FolderMode.NONE)


class Exclusion(NamedTuple):
    """A path that is excluded.

    Attributes:
        path: The path below the root; a folder ends in a slash.
        reason: The rule that excludes it, or another reason, as text.
        by: The kind of that rule; None if no rule excludes it, as for an empty folder or an unreadable one.
    """

    path: str
    reason: str
    by: RuleSource | None = None


class Decision(NamedTuple):
    """Whether a path is included, and why.

    Attributes:
        included: Whether it is included. A folder that is not included may still be scanned.
        reason: The rule that decides, or another reason, as text.
        by: The kind of that rule; None if no rule matches.
        mode: For a folder: the treatment of the names in it; None if it is not scanned.
    """

    included: bool
    reason: str
    by: RuleSource | None
    mode: FolderMode | None = None


class FolderContext(NamedTuple):
    """A folder of the scan, and the rules that apply in it.

    Attributes:
        path: The path on disk.
        path_in_root: The path below the root of the selection, with a slash at its end, or empty.
        repository: The repository of the worktree that contains the folder.
        worktree_offset: The length of the part of ``path_in_root`` that leads to the top of that worktree, if the top
            is below the root.
        root_in_worktree: The path from that top to the root, if the top is above the root.
        git_rules: The ignore files of git.
        skyrlignore_rules: The ``.skyrlignore`` files.
        mode: The treatment of names that no rule of higher precedence matches.
        reason: The reason of that mode, unless it is ``FolderMode.NORMAL``.
        by: The kind of rule that set that mode.
    """

    path: bytes
    path_in_root: bytes
    repository: Repository
    worktree_offset: int
    root_in_worktree: bytes
    git_rules: RuleStack
    skyrlignore_rules: RuleStack
    mode: FolderMode = FolderMode.NORMAL
    reason: str = ""
    by: RuleSource | None = None

    @property
    def path_in_worktree(self) -> bytes:
        """The path from the top of the worktree, with a slash at its end, or empty."""
        return self.root_in_worktree + self.path_in_root[self.worktree_offset :]

    @property
    def reports_names(self) -> bool:
        """Whether excluded names are reported one by one. In the root they always are."""
        return self.mode not in UNREPORTED_MODES or not self.path_in_root


class IgnoredFiles(NamedTuple):
    """The files in one folder that git, or a rule for caches, excludes.

    Attributes:
        folder: The folder.
        names: Their names. The last rule that matches is none that begins with ``!``.
        cache_rules: The rules for caches.
    """

    folder: FolderContext
    names: Sequence[bytes]
    cache_rules: RuleStack

    def explain(self, names: Sequence[bytes]) -> list[tuple[bytes, str, RuleSource | None]]:
        """Return path, reason and kind of rule of some of the names."""
        inside, path = self.folder.path_in_worktree, self.folder.path_in_root
        reasons: dict[Rule | None, str] = {}
        found: list[tuple[bytes, str, RuleSource | None]] = []
        for name in names:
            rule = self.folder.git_rules.find_rule(inside, name, False)
            by = RuleSource.GIT
            if rule is None:
                rule, by = self.cache_rules.find_rule(path, name, False), RuleSource.CACHES
            if rule not in reasons:
                reasons[rule] = f"{rule}" if by is RuleSource.GIT or rule is None else cache_reason(rule)
            found.append((path + name, reasons[rule], by))
        return found


def cache_reason(rule: Rule) -> str:
    """Return why a rule for caches excludes a path."""
    return f"skip_caches: {os.fsdecode(rule.text)}, an untracked cache"


@dataclass(slots=True)
class WalkResult:
    """The result of a scan.

    Attributes:
        files: The included paths below the root.
        excluded: The excluded paths below the root, each with the reason and its kind; a folder ends in a slash.
        warnings: Messages about problems during the scan.
        ignored: More excluded paths, whose reasons are only determined when they are needed.
        worktrees: The top folders of the worktrees, the one of the root first.
    """

    files: list[bytes] = field(default_factory=list)
    excluded: list[tuple[bytes, str, RuleSource | None]] = field(default_factory=list)
    ignored: list[IgnoredFiles] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    worktrees: list[FolderContext] = field(default_factory=list)

    def exclusions(self, only: bytes | None = None) -> tuple[Exclusion, ...]:
        """Return the excluded paths, sorted.

        Args:
            only: Of the files in ``ignored``, the name of those to return; None to return all.
        """
        excluded = list(self.excluded)
        for files in self.ignored:
            if only is None:
                excluded += files.explain(files.names)
            elif only in files.names:
                excluded += files.explain([only])
        excluded.sort(key=lambda item: item[:2])
        return tuple(Exclusion(os.fsdecode(path), reason, by) for path, reason, by in excluded)
