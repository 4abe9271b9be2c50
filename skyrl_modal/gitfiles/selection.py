"""The selection of the files of a folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from skyrl_modal.declaration import field, frozen
from skyrl_modal.errors import SpecError
from skyrl_modal.gitfiles.decision import Decision, Exclusion, FolderMode, WalkResult
from skyrl_modal.gitfiles.digest import file_digest, tree_digest
from skyrl_modal.gitfiles.ignore_file import parse_ignore_file
from skyrl_modal.gitfiles.overrides import Overrides, matches_path
from skyrl_modal.gitfiles.report import format_selection
from skyrl_modal.gitfiles.secret_search import SearchResult, search_files
from skyrl_modal.gitfiles.walk import TreeWalker
from skyrl_modal.gitfiles.warnings import find_env_files, find_warnings


@frozen(slots=False)  # with slots, attrs reads and compiles the source of each cached property
class Selection:
    """The files of a folder that are included in a run, and the reasons why other files are excluded.

    Included are the files that git tracks or does not ignore. Sizes, warnings and the digest are computed at the first
    access, from the files as they are at that moment.

    Attributes:
        root: The folder, absolute and without symbolic links.
        files: The paths below the root, with ``/`` between the parts, sorted. A name that is not UTF-8 is decoded by
            ``os.fsdecode``, so that ``os.fsencode`` restores its bytes.
    """

    root: Path
    files: tuple[str, ...] = field(repr=lambda files: f"<{len(files)} files>")
    _overrides: Overrides = field(repr=False)
    _skip_caches: bool = field(repr=False)
    _result: WalkResult = field(repr=False, eq=False)
    _search_cache: Path | None = field(default=None, repr=False, eq=False)

    @cached_property
    def excluded(self) -> Mapping[str, str]:
        """The excluded paths with the reasons; a folder that was not scanned is listed as ``folder/``."""
        return MappingProxyType({exclusion.path: exclusion.reason for exclusion in self.exclusions})

    @cached_property
    def exclusions(self) -> tuple[Exclusion, ...]:
        """The excluded paths with the reasons and with the kinds of rules that exclude them, sorted by path."""
        return self._result.exclusions()

    def ignored_env_files(self) -> tuple[tuple[str, str], ...]:
        """Return path and reason of each ``.env`` file that is excluded, except those that ``exclude`` names."""
        return tuple((path, reason) for path, reason, _ in find_env_files(self._result.exclusions(only=b".env")))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The size in bytes of each file, in the order of ``files``; 0 for a file that was removed."""
        return tuple([0 if status is None else status.st_size for status in self.statuses])

    @cached_property
    def bytes(self) -> int:
        """The size of all files together, in bytes."""
        return sum(self.sizes)

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """Possible problems of the selection, each with a remedy."""
        found = [*self._result.warnings, *self._unused_includes()]
        found += find_warnings(
            self.root,
            self.files,
            self.statuses,
            self._result.exclusions(only=b".env"),
            self._result.worktrees,
            self._secret_search.found,
        )
        return tuple(dict.fromkeys(found))

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """Facts about the selection that are not problems."""
        unsearched = self._secret_search.unsearched
        if not unsearched:
            return ()
        later = "" if self._search_cache is None else "; the next search continues with them"
        return (f"{unsearched:,} files of {self.root} were not searched for keys within the time limit{later}",)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the paths, permissions and contents of the files, in hex.

        Two folders with the same digest have the same snapshot. Every file is read; an unreadable one is left out, as
        in a snapshot.
        """
        base = os.fspath(self.root) + "/"
        entries = []
        for path in self.files:
            try:
                entries.append((path, *file_digest(base + path)))
            except OSError:
                # `warnings` reports it.
                continue
        return tree_digest(entries)

    def explain(self, path: str | os.PathLike[str]) -> str:
        """Return why a path is included or excluded, with the line of the ignore file that decides.

        Args:
            path: A path below the root, relative or absolute.

        Raises:
            SpecError: The path is not in the root, or does not exist.
        """
        parts = self._parts(path)
        walker = TreeWalker(self.root, self._overrides, self._skip_caches)
        folder = walker.start()
        reason = folder.reason
        for depth, part in enumerate(parts):
            relative = "/".join(parts[: depth + 1])
            full = os.path.join(os.fsencode(self.root), os.fsencode(relative))
            try:
                is_folder = stat.S_ISDIR(os.lstat(full).st_mode)
            except OSError as error:
                raise SpecError("path", os.fspath(path), f"{relative} cannot be read ({error.strerror})") from error
            folder = walker.enter_unlisted(folder)
            decision = walker.decide(folder, os.fsencode(part), is_folder)
            if decision is None:
                return f"{relative} is excluded: .git is never included"
            shown = f"{relative}/" if is_folder else relative
            if depth == len(parts) - 1:
                return self._explain_decision(shown, decision, is_folder)
            if not is_folder:
                raise SpecError("path", os.fspath(path), f"{relative} is not a folder")
            if decision.mode is None:
                return f"{'/'.join(parts)} is excluded: its folder {shown} is excluded ({decision.reason})"
            folder = walker.child(folder, os.fsencode(part), decision)
        return f"{self.root} is the root{': ' + reason if reason else ''}"

    def _parts(self, path: str | os.PathLike[str]) -> tuple[str, ...]:
        given = PurePosixPath(os.fspath(path))
        if given.is_absolute():
            try:
                given = given.relative_to(self.root)
            except ValueError:
                raise SpecError("path", str(given), f"give a path in {self.root}") from None
        if ".." in given.parts:
            raise SpecError("path", os.fspath(path), f"give a path in {self.root}, without ..")
        return given.parts

    def _explain_decision(self, shown: str, decision: Decision, is_folder: bool) -> str:
        if shown in self.excluded:
            scanned = is_folder and decision.mode is not None
            partly = " (except for some files in it)" if scanned and self._contains(shown) else ""
            return f"{shown} is excluded{partly}: {self.excluded[shown]}"
        if is_folder and not decision.included and decision.mode in (FolderMode.TRACKED_ONLY, FolderMode.NONE):
            return f"{shown} is excluded except for files that are named: {decision.reason}"
        return f"{shown} is {'included' if decision.included else 'excluded'}: {decision.reason}"

    def _contains(self, folder: str) -> bool:
        return any(path.startswith(folder) for path in self.files)

    def __str__(self) -> str:
        return format_selection(self.root, self.files, self.sizes, self.excluded, self.warnings)

    @cached_property
    def statuses(self) -> tuple[os.stat_result | None, ...]:
        """The status of each file, in the order of ``files``; None for a file that was removed."""
        base = os.fspath(self.root) + "/"
        paths = [base + path for path in self.files]
        try:
            return tuple(map(os.lstat, paths))
        except OSError:
            return tuple(map(_stat_or_none, paths))

    @cached_property
    def _secret_search(self) -> SearchResult:
        return search_files(self.root, self.files, self.statuses, self._search_cache)

    def _repr_html_(self) -> str:
        """Return the selection for a notebook."""
        import html  # imported here: only a notebook needs it

        # Front ends give pre the font of other text, in which columns are not aligned.
        return f'<pre style="font-family:monospace;white-space:pre-wrap">{html.escape(str(self))}</pre>'

    def _unused_includes(self) -> list[str]:
        """Warn about includes that match no file."""
        unused = []
        for line in self._overrides.include:
            if line.startswith("!"):
                continue
            rules = Overrides(include=(line,)).rules(ignore_case=False)
            if not any(matches_path(rules, path) for path in self.files):
                unused.append(
                    f"include {line!r} matches nothing: check the spelling. A pattern without a slash does not search "
                    "ignored folders, so name the folder as well"
                )
        return unused


def _stat_or_none(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


def select(
    root: str | os.PathLike[str],
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    *,
    skip_caches: bool = False,
    search_cache: Path | None = None,
) -> Selection:
    """Select the files of a folder that git tracks or does not ignore.

    git is only run where its configuration includes other files, or where its index has an uncommon form (split,
    sparse, version 4, SHA-256). It then executes no program that the repository names. The folder may belong to another
    user, or be in no repository; it is then treated as after ``git init``. ``.git`` is never included, links are
    included as links, empty folders are excluded, as in git. For a submodule or a nested clone its own repository
    decides.

    Args:
        root: The folder.
        include: Patterns in the language of ``.gitignore`` for files to include even if git ignores them. One that
            names a folder includes all of it. One with a slash also matches in ignored folders; one without does not.
        exclude: The same for files to exclude, tracked or not. ``include`` takes precedence over ``exclude``.
        skip_caches: Whether to exclude untracked environments and caches (``.venv``, ``__pycache__``, ``*.pyc``,
            ``*.egg-info``, ``.pytest_cache``, ``node_modules``, ``.DS_Store``) that no ignore file names.
        search_cache: A folder for the list of files without keys, which ``Selection.warnings`` does not search again
            until they change; None to search all files each time.

    Returns:
        The selection.

    Raises:
        SpecError: The root is absent, not a folder or unreadable, or a pattern can match nothing.

    Example:
        >>> import pathlib, tempfile
        >>> root = pathlib.Path(tempfile.mkdtemp())
        >>> for name, text in ((".gitignore", "*.log"), ("train.py", "print(1)"), ("x.log", "")):
        ...     _ = (root / name).write_text(text)
        >>> selection = select(root)
        >>> selection.files
        ('.gitignore', 'train.py')
        >>> selection.explain("x.log")
        'x.log is excluded: .gitignore:1: *.log'
        >>> select(root, include=["x.log"], exclude=[".gitignore"]).files
        ('train.py', 'x.log')
    """
    given = Path(root).expanduser()
    try:
        resolved = given.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise SpecError("root", str(root), "there is no such folder") from error
    if not resolved.is_dir():
        raise SpecError("root", str(root), "is not a folder: name the folder that contains the file")
    overrides = Overrides(_check_patterns("exclude", exclude), _check_patterns("include", include))
    result = TreeWalker(resolved, overrides, skip_caches).walk()
    # One call decodes all names. A name contains no NUL, so the names remain separate.
    files = os.fsdecode(b"\0".join(result.files)).split("\0") if result.files else []
    files.sort()
    result.files.clear()
    return Selection(resolved, tuple(files), overrides, skip_caches, result, search_cache)


def _check_patterns(field_name: str, patterns: Iterable[str]) -> tuple[str, ...]:
    if isinstance(patterns, (str, bytes)):
        raise SpecError(field_name, patterns, f"give a list of patterns: {field_name}=[{patterns!r}]")
    checked = tuple(patterns)
    for pattern in checked:
        if not isinstance(pattern, str):
            raise SpecError(field_name, pattern, "a pattern is text, in the language of .gitignore")
        if not pattern.strip() or pattern.startswith("#") or "\n" in pattern or "\0" in pattern:
            raise SpecError(field_name, pattern, "give one pattern, in the language of .gitignore")
        if ".." in pattern.removeprefix("!").split("/"):
            raise SpecError(field_name, pattern, "a pattern cannot lead out of the root: no ..")
        try:
            data = os.fsencode(pattern)
        except UnicodeEncodeError:
            raise SpecError(field_name, pattern, "it contains a character that no file's name can contain") from None
        unmatchable = parse_ignore_file(data, field_name).unmatchable
        if unmatchable:
            raise SpecError(field_name, pattern, f"matches nothing, neither here nor in git: {unmatchable[0][2]}")
    return checked
