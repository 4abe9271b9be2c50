"""The scan of a folder: top-down, without entering excluded folders, with one decision for each name.

The sources of a decision, in descending order of precedence: ``exclude`` and ``include``; the ``.skyrlignore`` files;
git (tracked files are included, then the deepest ``.gitignore`` decides, then ``info/exclude`` and
``core.excludesFile``); the names of caches.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from skyrl_modal.errors import SpecError
from skyrl_modal.gitfiles.decision import (
    Decision,
    FolderContext,
    FolderMode,
    IgnoredFiles,
    RuleSource,
    WalkResult,
    cache_reason,
)
from skyrl_modal.gitfiles.files import read_regular_file
from skyrl_modal.gitfiles.ignore_file import MAX_IGNORE_FILE_BYTES, IgnoreFile, parse_ignore_file
from skyrl_modal.gitfiles.matcher import FolderRules, RuleStack
from skyrl_modal.gitfiles.name_filter import NameFilters
from skyrl_modal.gitfiles.overrides import EXCLUDE, Overrides
from skyrl_modal.gitfiles.repository import Repository, find_repository, git_dir_of, unreadable_message

#: Environments and caches that tools create, and that are never source code: `MountSpec.skip_caches`.
CACHE_PATTERNS = b".venv\n__pycache__\n*.pyc\n*.egg-info\n.pytest_cache\nnode_modules\n.DS_Store\n"
_GITIGNORE, _SKYRLIGNORE, _GIT = b".gitignore", b".skyrlignore", b".git"


class TreeWalker:
    """Scans the tree below one folder and decides about each path.

    Args:
        root: The folder, absolute and without symbolic links.
        overrides: The patterns of ``exclude`` and ``include``.
        skip_caches: Whether untracked caches are excluded.

    Attributes:
        result: The result so far.
    """

    def __init__(self, root: Path, overrides: Overrides, skip_caches: bool) -> None:
        self._root = root
        self.result = WalkResult()
        self._repository = repository = find_repository(root)
        ignore_case = self._ignore_case = repository.ignore_case
        self._override_rules = overrides.rules(ignore_case)
        self._parent_rules = overrides.parent_folder_rules(ignore_case)
        self._cache_rules = RuleStack(ignore_case=ignore_case)
        if skip_caches:
            caches = parse_ignore_file(CACHE_PATTERNS, "skip_caches", ignore_case)
            self._cache_rules = self._cache_rules.extended(caches, b"")
        self._own_rules = [rules for rules in (self._override_rules, self._parent_rules) if rules]
        self._known_filters: dict[tuple[FolderRules, ...], NameFilters] = {}

    def start(self) -> FolderContext:
        """Return the root, with the rules of the folders above it."""
        root, repository = self._root, self._repository
        no_rules = RuleStack(ignore_case=self._ignore_case)
        folder = FolderContext(os.fsencode(repository.top), b"", repository, 0, b"", repository.general_rules, no_rules)
        for part in root.relative_to(repository.top).parts:
            name = os.fsencode(part)
            folder = folder._replace(git_rules=self._git_rules(folder, _contains(folder.path, _GITIGNORE)))
            rule = folder.git_rules.find_rule(folder.root_in_worktree, name, True)
            path_to_root = folder.root_in_worktree + name + b"/"
            folder = folder._replace(path=os.path.join(folder.path, name), root_in_worktree=path_to_root)
            if rule is not None and not rule.negated and folder.mode is FolderMode.NORMAL:
                reason = f"git ignores the folder {os.fsdecode(folder.root_in_worktree)} ({rule})"
                self.result.warnings.append(
                    f"{reason} of the repository {repository.top}, which contains the root: only tracked files are "
                    'included. Run `git init` in the root, or pass include=["/**"]'
                )
                folder = folder._replace(mode=FolderMode.TRACKED_ONLY, reason=reason, by=RuleSource.GIT)
        self.result.worktrees.append(folder)
        return folder

    def walk(self) -> WalkResult:
        """Scan everything below the root."""
        pending = [self.start()]
        while pending:
            pending.extend(self._scan(pending.pop()))
        problems = [problem for top in self.result.worktrees for problem in top.repository.problems]
        self.result.warnings = list(dict.fromkeys([*self.result.warnings, *problems]))
        return self.result

    def _scan(self, folder: FolderContext) -> list[FolderContext]:
        """Decide about the names in a folder; return the folders to scan."""
        try:
            files, folders, special = _list_folder(folder.path)
        except OSError as error:
            self._report_unscanned(folder, error)
            return []
        if not files and not folders and not special and folder.path_in_root and folder.mode is FolderMode.NORMAL:
            reason = "an empty folder; only files and links are included, as in git"
            self.result.excluded.append((folder.path_in_root, reason, None))
            return []
        filters = self._filters(folder)
        unclear_files, unclear_folders = _filtered(filters, files, folders)
        if unclear_files or unclear_folders or folder.repository.absent_ignore_files:
            entered = self._enter_listed(folder, unclear_files, unclear_folders)
            if entered is not folder:
                folder, filters = entered, self._filters(entered)
                unclear_files, unclear_folders = _filtered(filters, files, folders)
        if unclear_files or special:
            excluded = self._excluded_files(folder, filters, unclear_files, special)
            if excluded:
                files = [name for name in files if name not in excluded]
        prefix = folder.path_in_root
        self.result.files.extend([prefix + name for name in files])
        if not unclear_folders:
            return [self._child(folder, name) for name in folders]
        return list(self._folders_to_scan(folder, folders, frozenset(unclear_folders)))

    def _enter_listed(self, folder: FolderContext, files: list[bytes], folders: list[bytes]) -> FolderContext:
        has_git = _GIT in folders or _GIT in files
        return self.enter(folder, _GITIGNORE in files, _SKYRLIGNORE in files, has_git)

    def _excluded_files(
        self, folder: FolderContext, filters: NameFilters | None, names: list[bytes], special: list[bytes]
    ) -> frozenset[bytes]:
        """Return the names that are excluded, and record them."""
        excluded: list[bytes] = []
        if filters is not None:
            exceptions = filters.exceptions(names)
            excluded += self._ignored_files(folder, _without(names, frozenset(exceptions)))
            names = exceptions
        for name in (*names, *special):
            decision = self.decide(folder, name, False)
            if decision is not None and decision.included:
                continue
            excluded.append(name)
            if decision is not None and folder.reports_names:
                self.result.excluded.append((folder.path_in_root + name, decision.reason, decision.by))
        for name in special:
            if name not in excluded:
                kind = _file_kind(os.path.join(folder.path, name))
                path = folder.path_in_root + name
                self.result.excluded.append((path, f"{kind}; only files and links are included", None))
                self.result.warnings.append(f"{os.fsdecode(path)} is {kind} and is excluded: remove or ignore it")
        return frozenset(excluded)

    def _ignored_files(self, folder: FolderContext, names: list[bytes]) -> list[bytes]:
        """Return the names that git does not track, and record them. A rule of git, or one for caches, matches all."""
        index = folder.repository.readable_index if names else None
        if index is not None:
            names = _without(names, index.find_tracked_files(folder.path_in_worktree, names))
        if names:
            self.result.ignored.append(IgnoredFiles(folder, names, self._cache_rules))
        return names

    def _folders_to_scan(
        self, folder: FolderContext, names: list[bytes], unclear: frozenset[bytes]
    ) -> Iterator[FolderContext]:
        """Yield the folders to scan, and record those that are excluded."""
        for name in names:
            if name not in unclear:
                yield self._child(folder, name)
                continue
            decision = self.decide(folder, name, True)
            if decision is None:
                continue
            if not decision.included and folder.reports_names:
                self.result.excluded.append((folder.path_in_root + name + b"/", decision.reason, decision.by))
            if decision.mode is not None:
                yield self.child(folder, name, decision)

    def child(self, folder: FolderContext, name: bytes, decision: Decision) -> FolderContext:
        """Return the context of a folder that is scanned because of a decision."""
        mode = decision.mode or FolderMode.NONE
        return self._child(folder, name)._replace(mode=mode, reason=decision.reason, by=decision.by)

    @staticmethod
    def _child(parent: FolderContext, name: bytes) -> FolderContext:
        return FolderContext(
            parent.path + b"/" + name,
            parent.path_in_root + name + b"/",
            parent.repository,
            parent.worktree_offset,
            parent.root_in_worktree,
            parent.git_rules,
            parent.skyrlignore_rules,
            parent.mode,
            parent.reason,
            parent.by,
        )

    def enter_unlisted(self, folder: FolderContext) -> FolderContext:
        """Return the same as ``enter``, for a folder whose names are not known."""
        return self.enter(folder, *(_contains(folder.path, name) for name in (_GITIGNORE, _SKYRLIGNORE, _GIT)))

    def enter(self, folder: FolderContext, has_gitignore: bool, has_skyrlignore: bool, has_git: bool) -> FolderContext:
        """Return a folder with the rules of its own ignore files, and with its own repository if it has one."""
        if has_git and folder.path_in_root and folder.reports_names:
            folder = self._with_own_repository(folder)
        git_rules = self._git_rules(folder, has_gitignore)
        skyrlignore_rules = folder.skyrlignore_rules
        if has_skyrlignore:
            file = self._read(folder, _SKYRLIGNORE, folder.path_in_root + _SKYRLIGNORE)
            skyrlignore_rules = skyrlignore_rules.extended(file, folder.path_in_root)
        if git_rules is folder.git_rules and skyrlignore_rules is folder.skyrlignore_rules:
            return folder
        return folder._replace(git_rules=git_rules, skyrlignore_rules=skyrlignore_rules)

    def _with_own_repository(self, folder: FolderContext) -> FolderContext:
        """Return the context for a submodule or a nested clone: its files are those that its own repository includes.

        A folder in which the outer repository tracks files is neither, even if it contains ``.git``.
        """
        top = Path(os.fsdecode(folder.path))
        git_dir = git_dir_of(top)
        outer = folder.repository.readable_index
        inside = folder.path_in_worktree[:-1]
        if git_dir is None or (outer is not None and outer.tracks_folder(inside) and not outer.is_submodule(inside)):
            return folder
        repository = Repository(top, git_dir)
        folder = folder._replace(
            repository=repository,
            worktree_offset=len(folder.path_in_root),
            root_in_worktree=b"",
            git_rules=repository.general_rules,
        )
        self.result.worktrees.append(folder)
        return folder

    def _git_rules(self, folder: FolderContext, has_gitignore: bool) -> RuleStack:
        inside = folder.path_in_worktree
        below_root = folder.worktree_offset or not folder.root_in_worktree
        shown = folder.path_in_root + _GITIGNORE if below_root else inside + _GITIGNORE
        if has_gitignore:
            return folder.git_rules.extended(self._read(folder, _GITIGNORE, shown), inside)
        content = folder.repository.absent_ignore_files.get(inside + _GITIGNORE)
        if content is None:
            return folder.git_rules
        file = folder.repository.parse_ignore_file(content, f"{os.fsdecode(shown)} (in the index)")
        return folder.git_rules.extended(file, inside)

    def _read(self, folder: FolderContext, name: bytes, shown: bytes) -> IgnoreFile:
        """Read an ignore file in the tree. A symbolic link is not followed, as in git."""
        path, label = os.path.join(folder.path, name), os.fsdecode(shown)
        try:
            content = read_regular_file(path, follow_link=False, max_bytes=MAX_IGNORE_FILE_BYTES)
        except FileNotFoundError:
            return IgnoreFile()
        except OSError as error:
            if os.path.islink(path):
                self.result.warnings.append(
                    f"{label} is a symbolic link, which git does not follow: its patterns are not applied. Replace it "
                    "by a copy"
                )
            else:
                self.result.warnings.append(unreadable_message(label, error))
            return IgnoreFile()
        return folder.repository.parse_ignore_file(content, label)

    def _report_unscanned(self, folder: FolderContext, error: OSError) -> None:
        shown = os.fsdecode(folder.path_in_root)
        if not folder.path_in_root:
            raise SpecError("root", str(self._root), f"cannot be read ({error.strerror})") from error
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            self.result.warnings.append(f"{shown} was removed during the scan and is not included")
        elif folder.reports_names:
            self.result.excluded.append((folder.path_in_root, f"cannot be read ({error.strerror})", None))
            self.result.warnings.append(
                f"{shown} cannot be read ({error.strerror}) and is excluded: run `chmod u+rx {shown}`, or name it in "
                "exclude"
            )

    def decide(self, folder: FolderContext, name: bytes, is_folder: bool) -> Decision | None:
        """Decide about a name in a folder; return None for git's own folder."""
        if name == _GIT or (self._ignore_case and name.lower() == _GIT):
            return None
        path, mode = folder.path_in_root, folder.mode
        leads_to_include = is_folder and self._parent_rules.find_rule(path, name, True) is not None
        mode_if_excluded = FolderMode.NONE if leads_to_include else None
        cache = self._cache_rules.find_rule(path, name, is_folder)
        rule = self._override_rules.find_rule(path, name, is_folder)
        if rule is not None and not rule.negated:
            if rule.source == EXCLUDE:
                return Decision(False, f"{rule}", RuleSource.EXCLUDE, mode_if_excluded)
            return Decision(True, f"{rule}", RuleSource.INCLUDE, FolderMode.ALL if cache else FolderMode.ALL_BUT_CACHES)
        if mode is FolderMode.NONE:
            return Decision(False, folder.reason, folder.by, mode_if_excluded)
        if mode is FolderMode.ALL or (mode is FolderMode.ALL_BUT_CACHES and cache is None):
            return Decision(True, folder.reason, folder.by, mode)
        if mode is not FolderMode.ALL_BUT_CACHES:
            rule = folder.skyrlignore_rules.find_rule(path, name, is_folder)
            if rule is not None and not rule.negated:
                return Decision(False, f"{rule}", RuleSource.SKYRLIGNORE, mode_if_excluded)
            if rule is not None and mode is FolderMode.NORMAL:
                return Decision(True, f"{rule}", RuleSource.SKYRLIGNORE, FolderMode.NORMAL)
        return self._decide_by_git(folder, name, is_folder, leads_to_include)

    def _decide_by_git(self, folder: FolderContext, name: bytes, is_folder: bool, leads_to_include: bool) -> Decision:
        repository, inside = folder.repository, folder.path_in_worktree
        against, by = "", None
        positive = Decision(True, "no rule matches it", None, folder.mode)
        if folder.mode is FolderMode.TRACKED_ONLY:
            against, by = folder.reason, folder.by
        elif folder.mode is FolderMode.NORMAL:
            rule = folder.git_rules.find_rule(inside, name, is_folder)
            if rule is not None and rule.negated:
                positive = Decision(True, f"{rule}", RuleSource.GIT, folder.mode)
            elif rule is not None:
                against, by = f"{rule}", RuleSource.GIT
        if not against and (cache := self._cache_rules.find_rule(folder.path_in_root, name, is_folder)):
            against, by = cache_reason(cache), RuleSource.CACHES
        if not against:
            return positive
        index = repository.readable_index
        if index is None:
            return Decision(False, against, by, FolderMode.TRACKED_ONLY if leads_to_include else None)
        if not is_folder:
            if index.tracks_file(inside + name):
                return Decision(True, f"tracked by git, which takes precedence over {against}", RuleSource.GIT)
            return Decision(False, against, by)
        if index.is_submodule(inside + name):
            reason = f"a submodule, which takes precedence over {against}"
            return Decision(True, reason, RuleSource.GIT, FolderMode.NORMAL)
        scanned = leads_to_include or index.tracks_folder(inside + name)
        return Decision(False, against, by, FolderMode.TRACKED_ONLY if scanned else None)

    def _filters(self, folder: FolderContext) -> NameFilters | None:
        """Return the filters for names that no rule can match; None if every name needs a decision."""
        if folder.mode is not FolderMode.NORMAL or folder.repository.ignore_case != self._ignore_case:
            return None
        path = folder.path_in_root
        key = (
            folder.git_rules.rules_in(folder.path_in_worktree),
            self._cache_rules.rules_in(path),
            folder.skyrlignore_rules.rules_in(path),
            *[stack.rules_in(path) for stack in self._own_rules],
        )
        filters = self._known_filters.get(key)
        if filters is None:
            filters = self._known_filters[key] = NameFilters(key[:2], key[2:], ignore_case=self._ignore_case)
        return filters


def _filtered(filters: NameFilters | None, files: list[bytes], folders: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    return (files, folders) if filters is None else (filters.files(files), filters.folders(folders) if folders else [])


def _without(names: list[bytes], others: frozenset[bytes]) -> list[bytes]:
    return [name for name in names if name not in others] if others else names


def _list_folder(path: bytes) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """Return the names of files and links, of folders, and of everything else in a folder."""
    files: list[bytes] = []
    folders: list[bytes] = []
    special: list[bytes] = []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False):
                files.append(entry.name)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            elif entry.is_symlink():
                files.append(entry.name)
            else:
                special.append(entry.name)
    return files, folders, special


def _contains(folder: bytes, name: bytes) -> bool:
    return os.path.lexists(os.path.join(folder, name))


def _file_kind(path: bytes) -> str:
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return "no file"
    for test, kind in (
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    ):
        if test(mode):
            return kind
    return "no file"
