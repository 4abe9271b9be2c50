"""Which files of a folder go into a run."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from attrs import field, frozen

from skyrl_modal.errors import SpecError
from skyrl_modal.gitfiles import warnings as hazards
from skyrl_modal.gitfiles.overrides import UserRules, matches
from skyrl_modal.gitfiles.pattern import parse
from skyrl_modal.gitfiles.walk import Found, Mode, Verdict, Walker
from skyrl_modal.snapshots.content_pool import digest_of, fingerprint


@frozen
class Selection:
    """The files of a folder that go into a run: what git tracks or does not ignore, and why the others stay.

    Sizes, warnings and the digest are worked out when they are first asked for, and are then those of that moment.

    Attributes:
        root: The folder, absolute and without symbolic links on the way.
        files: Their paths below the root, with ``/`` between the parts, sorted. A name that is not UTF-8 is given as
            Python gives it everywhere else (``os.fsdecode``), so that ``os.fsencode`` makes the same bytes of it.
    """

    root: Path
    files: tuple[str, ...] = field(repr=lambda files: f"<{len(files)} files>")
    _user: UserRules = field(repr=False)
    _skip_caches: bool = field(repr=False)
    _found: Found = field(repr=False, eq=False)

    @cached_property
    def excluded(self) -> Mapping[str, str]:
        """What stays behind, by path, with the reason; a folder that is not entered stands as ``folder/``."""
        return MappingProxyType({os.fsdecode(path): reason for path, reason in sorted(self._found.excluded)})

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The size in bytes of each file, in the order of ``files``; 0 for one that has vanished since."""
        return tuple(0 if status is None else status.st_size for status in self._status)

    @cached_property
    def bytes(self) -> int:
        """What the files amount to."""
        return sum(self.sizes)

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """What may be wrong with the selection, each with what to do about it."""
        found = [*self._found.warnings, *self._idle_includes()]
        found += hazards.find(self.root, self.files, self._status, self.excluded, self._found.tops)
        return tuple(dict.fromkeys(found))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the paths, permissions and contents of the files, in hex.

        Two folders with the same digest give the same snapshot. Every file is read for it; one that cannot be read is
        left out, as it is of a snapshot.
        """
        base = os.fspath(self.root) + "/"
        entries = []
        for path in self.files:
            try:
                entries.append((path, *fingerprint(base + path)))
            except OSError:
                # Told by `warnings`.
                continue
        return digest_of(entries)

    def explain(self, path: str | os.PathLike[str]) -> str:
        """Why a path goes or stays: the line of the ignore file that decides, or what else does.

        Args:
            path: Below the root, or absolute and in it.

        Raises:
            SpecError: The path does not lie in the root, or does not exist.
        """
        parts = self._parts(path)
        walker = Walker(self.root, self._user, self._skip_caches)
        folder = walker.start()
        reason = folder.reason
        for depth, part in enumerate(parts):
            at = "/".join(parts[: depth + 1])
            here = os.path.join(os.fsencode(self.root), os.fsencode(at))
            try:
                is_folder = stat.S_ISDIR(os.lstat(here).st_mode)
            except OSError as error:
                raise SpecError("path", os.fspath(path), f"{at} cannot be looked at ({error.strerror})") from error
            folder = walker.entered_alone(folder)
            verdict = walker.judge(folder, os.fsencode(part), is_folder)
            if verdict is None:
                return f"{at} stays: .git never goes"
            shown = f"{at}/" if is_folder else at
            if depth == len(parts) - 1:
                return self._explained(shown, verdict, is_folder)
            if not is_folder:
                raise SpecError("path", os.fspath(path), f"{at} is not a folder")
            if verdict.mode is None:
                return f"{'/'.join(parts)} stays: its folder {shown} does ({verdict.reason}), and is not entered"
            folder = walker.below(folder, os.fsencode(part), verdict)
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

    def _explained(self, shown: str, verdict: Verdict, is_folder: bool) -> str:
        if shown in self.excluded:
            entered = is_folder and verdict.mode is not None
            kept = " (some of what is in it goes)" if entered and self._holds(shown) else ""
            return f"{shown} stays{kept}: {self.excluded[shown]}"
        if is_folder and verdict.mode in (Mode.TRACKED, Mode.NOTHING) and not verdict.goes:
            return f"{shown} stays but for what is named: {verdict.reason}"
        return f"{shown} {'goes' if verdict.goes else 'stays'}: {verdict.reason}"

    def _holds(self, folder: str) -> bool:
        return any(path.startswith(folder) for path in self.files)

    def __str__(self) -> str:
        return hazards.table(self.root, self.files, self.sizes, self.excluded, self.warnings)

    @cached_property
    def _status(self) -> tuple[os.stat_result | None, ...]:
        base = os.fspath(self.root) + "/"
        return tuple(_status(base + path) for path in self.files)

    def _idle_includes(self) -> list[str]:
        """Includes that name nothing that is there."""
        idle = []
        for line in self._user.include:
            if line.startswith("!"):
                continue
            chain = UserRules(include=(line,)).chain(False)
            if not any(matches(chain, path) for path in self.files):
                idle.append(
                    f"include {line!r} matches nothing: look for a mistyped name; a pattern without a slash does not "
                    "reach into an ignored folder, so name the folder as well"
                )
        return idle


def _status(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


def select(
    root: str | os.PathLike[str], include: Iterable[str] = (), exclude: Iterable[str] = (), *, skip_caches: bool = False
) -> Selection:
    """The files of a folder that go into a run: exactly those that git tracks or does not ignore.

    git itself is not run, and needs neither be there nor trust the folder. A folder outside of any repository is looked
    at as if it were a fresh one. ``.git`` never goes; links go as links; empty folders stay, as in git; a submodule and
    a clone inside of the folder go as their own repositories say.

    Args:
        root: The folder.
        include: Patterns in the language of ``.gitignore`` for what goes whatever git says. One that names a folder
            takes all of it. One with a slash also reaches into ignored folders; one without does not.
        exclude: The same for what stays, tracked or not. Where both match, ``include`` wins.
        skip_caches: Leave untracked environments and caches behind (``.venv``, ``__pycache__``, ``*.pyc``,
            ``*.egg-info``, ``.pytest_cache``, ``node_modules``, ``.DS_Store``) also where no ignore file names them.

    Raises:
        SpecError: The root is absent, no folder or unreadable, or a pattern is one that can match nothing.

    Example:
        >>> import pathlib, tempfile
        >>> root = pathlib.Path(tempfile.mkdtemp())
        >>> for name, text in ((".gitignore", "*.log"), ("train.py", "print(1)"), ("x.log", "")):
        ...     _ = (root / name).write_text(text)
        >>> selection = select(root)
        >>> selection.files
        ('.gitignore', 'train.py')
        >>> selection.explain("x.log")
        'x.log stays: .gitignore:1: *.log'
        >>> select(root, include=["x.log"], exclude=[".gitignore"]).files
        ('train.py', 'x.log')
    """
    given = Path(root).expanduser()
    try:
        resolved = given.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise SpecError("root", str(root), "there is no such folder") from error
    if not resolved.is_dir():
        raise SpecError("root", str(root), "is not a folder: name the folder that the file lies in")
    user = UserRules(_patterns("exclude", exclude), _patterns("include", include))
    found = Walker(resolved, user, skip_caches).walk()
    # One call for all of them: a NUL cannot be in a name, so no name runs into the next.
    files = b"\0".join(found.files).decode("utf-8", "surrogateescape").split("\0") if found.files else []
    files.sort()
    found.files.clear()
    return Selection(resolved, tuple(files), user, skip_caches, found)


def _patterns(field_name: str, patterns: Iterable[str]) -> tuple[str, ...]:
    if isinstance(patterns, (str, bytes)):
        raise SpecError(field_name, patterns, f"give a list of patterns: {field_name}=[{patterns!r}]")
    found = tuple(patterns)
    for pattern in found:
        if not isinstance(pattern, str):
            raise SpecError(field_name, pattern, "a pattern is text, in the language of .gitignore")
        if not pattern.strip() or pattern.startswith("#") or "\n" in pattern or "\0" in pattern:
            raise SpecError(field_name, pattern, "give one pattern, in the language of .gitignore")
        if ".." in pattern.removeprefix("!").split("/"):
            raise SpecError(field_name, pattern, "a pattern cannot lead out of the root: no ..")
        never = parse(os.fsencode(pattern), field_name).never
        if never:
            raise SpecError(field_name, pattern, f"matches nothing, neither here nor in git: {never[0][2]}")
    return found
