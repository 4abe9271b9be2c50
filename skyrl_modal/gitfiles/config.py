"""The settings of git that decide which files git includes.

Plain configuration files are read here, because a git process takes as long as the selection of a small checkout. Where
a file includes others, `git config` is asked, since only git knows all conditions of includes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from skyrl_modal.dataclass import dataclass
from skyrl_modal.gitfiles.config_file import parse_config
from skyrl_modal.gitfiles.files import UnsuitableFileError, read_regular_file
from skyrl_modal.gitfiles.git_command import GitCommandError, run_git

_TRUE = (b"true", b"yes", b"on")
_INTEGER = re.compile(rb"[+-]?([0-9]+)[kmg]?")
#: Size of a configuration file. One of a clone with a thousand branches has about 60 kB.
MAX_CONFIG_BYTES = 8 << 20
# git refuses deeper includes (config.c, MAX_INCLUDE_DEPTH). The number of files is limited here only.
_MAX_INCLUDE_DEPTH, _MAX_INCLUDED_FILES = 10, 100
# The place is fixed when git is built: the system's git, and Homebrew's on both kinds of Mac.
_SYSTEM_FILES = tuple(map(Path, ("/etc/gitconfig", "/opt/homebrew/etc/gitconfig", "/usr/local/etc/gitconfig")))


@dataclass(frozen=True, slots=True)
class GitConfig:
    """The settings of git in one repository, or outside of any.

    Attributes:
        values: The last value of each key, such as ``core.excludesfile``; None for a key without a value.
        problems: Messages about configuration files that could not be read.
        has_all_filters: Whether ``values`` certainly contains every filter of the configuration. The parser here is
            not trusted with this: either git has listed the values, or no file contains the name ``filter``.
    """

    values: Mapping[str, bytes | None]
    problems: tuple[str, ...] = ()
    has_all_filters: bool = False
    blocks_git: str = ""

    def flag(self, key: str) -> bool:
        """Return whether a boolean key is set to true."""
        return key in self.values and is_true(self.values[key])


def is_true(value: bytes | None) -> bool:
    """Return whether the value of a boolean key means true, as git reads it."""
    if value is None:
        return True
    text = value.lower()
    number = _INTEGER.fullmatch(text)
    return text in _TRUE or (number is not None and number[1].strip(b"0") != b"")


def read_config(git_dir: Path | None, common_dir: Path | None, worktree: Path) -> GitConfig:
    """Read the configuration that applies in a repository, or outside of any.

    Args:
        git_dir: The repository; for a linked worktree its folder in ``.git/worktrees``. None outside of any.
        common_dir: The folder that its worktrees share.
        worktree: The top folder of the worktree.
    """
    reader = _ConfigReader()
    for path in _outer_files():
        reader.read(path)
    if git_dir is not None and common_dir is not None:
        reader.read(common_dir / "config")
        worktree_config = git_dir / "config.worktree"
        if GitConfig(reader.values).flag("extensions.worktreeconfig"):
            reader.read(worktree_config)
        else:
            reader.may_have_filters |= worktree_config.exists()
    reader.read_environment()
    reader.check_includes()
    problems = reader.problems
    if reader.has_includes:
        try:
            if reader.blocks_git:
                raise GitCommandError(reader.blocks_git)
            return GitConfig(list_config(git_dir, worktree), tuple(problems), has_all_filters=True)
        except GitCommandError as error:
            problems.append(
                f"the git configuration includes other files, which git is needed to read ({error}): their settings "
                "are not applied"
            )
    return GitConfig(
        reader.values,
        tuple(problems),
        has_all_filters=not (reader.may_have_filters or reader.has_includes),
        blocks_git=reader.blocks_git,
    )


def list_config(git_dir: Path | None, worktree: Path) -> dict[str, bytes | None]:
    """Return the last value of each key in git's configuration, as git itself reads it.

    Raises:
        GitCommandError: git could not be run.
    """
    return parse_config_list(run_git(git_dir, worktree, "config", "-z", "--list"))


def parse_config_list(output: bytes) -> dict[str, bytes | None]:
    r"""Parse the output of ``git config -z --list``.

    Its format is documented in git-config(1) under ``--null``: the key, a newline and the value, then a NUL.

    Example:
        >>> parse_config_list(b"core.bare\nfalse\0x.flag\0")
        {'core.bare': b'false', 'x.flag': None}
    """
    values: dict[str, bytes | None] = {}
    for record in output.split(b"\0")[:-1]:
        key, separator, value = record.partition(b"\n")
        values[key.decode("utf-8", "surrogateescape")] = value if separator else None
    return values


class _ConfigReader:
    """Collects the settings of several configuration files, and notes whether one includes another file."""

    def __init__(self) -> None:
        self.values: dict[str, bytes | None] = {}
        self.problems: list[str] = []
        self.has_includes = False
        self.may_have_filters = False
        self.blocks_git = ""
        # Included files, each with the depth of its include.
        self._includes: list[tuple[Path, int]] = []

    def read(self, path: Path) -> None:
        """Read one file; an absent one counts as empty."""
        content = self._content(path)
        if content is None:
            return
        # A section name has no escaped form, so that a search finds it also where the parser differs from git's.
        text = content.lower()
        self.may_have_filters |= b"filter" in text or b"include" in text
        try:
            for key, value in parse_config(content):
                self._set(key, value, path.parent, 1)
        except ValueError as error:
            self.may_have_filters = True
            self.problems.append(
                f"{path} is not a git configuration file ({error}): the settings after this line are not applied"
            )

    def _content(self, path: Path) -> bytes | None:
        try:
            return read_regular_file(path, max_bytes=MAX_CONFIG_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if isinstance(error, UnsuitableFileError):
                self.blocks_git = f"the git configuration {path} is {error.strerror}"
            self.problems.append(f"{path} cannot be read ({error.strerror}): its git settings are not applied")
            self.may_have_filters = True
            return None

    def check_includes(self) -> None:
        """Find out whether git could read every file that may be included, whatever the condition of the include.

        git itself has no time limit, and would wait for a named pipe.
        """
        seen: set[Path] = set()
        while self._includes:
            path, depth = self._includes.pop()
            if path in seen or depth > _MAX_INCLUDE_DEPTH:
                # git reports includes that are too deep.
                continue
            if len(seen) == _MAX_INCLUDED_FILES:
                self.blocks_git = f"the git configuration includes more than {_MAX_INCLUDED_FILES} files"
                return
            seen.add(path)
            if (content := self._content(path)) is None:
                continue
            try:
                for key, value in parse_config(content):
                    self._note_include(key, value, path.parent, depth + 1)
            except ValueError:
                # git reports it.
                continue

    def read_environment(self) -> None:
        """Read the settings in ``GIT_CONFIG_COUNT`` and the variables that belong to it."""
        count = os.environ.get("GIT_CONFIG_COUNT", "")
        for number in range(int(count) if re.fullmatch("[0-9]{1,9}", count) else 0):
            key, value = os.environ.get(f"GIT_CONFIG_KEY_{number}"), os.environ.get(f"GIT_CONFIG_VALUE_{number}")
            if not key or value is None:
                # git refuses to run.
                return
            self._set(key.lower(), os.fsencode(value), None, 1)

    def _set(self, key: str, value: bytes | None, folder: Path | None, depth: int) -> None:
        self.values[key] = value
        self.may_have_filters |= key.startswith("filter.")
        self._note_include(key, value, folder, depth)

    def _note_include(self, key: str, value: bytes | None, folder: Path | None, depth: int) -> None:
        if key != "include.path" and not (key.startswith("includeif.") and key.endswith(".path")):
            return
        self.has_includes = True
        if value:
            path = expand_path(value)
            if folder is not None or path.is_absolute():
                self._includes.append((path if folder is None else folder / path, depth))


def _outer_files() -> Iterator[Path]:
    """Yield the configuration files of the system and of the user."""
    environ = os.environ
    if environ.get("GIT_CONFIG_NOSYSTEM", "0").lower() not in ("1", "true", "yes", "on"):
        if "GIT_CONFIG_SYSTEM" in environ:
            yield Path(environ["GIT_CONFIG_SYSTEM"])
        else:
            yield from _SYSTEM_FILES
    if "GIT_CONFIG_GLOBAL" in environ:
        yield Path(environ["GIT_CONFIG_GLOBAL"])
        return
    if (folder := user_folder()) is not None:
        yield folder / "config"
    if home := environ.get("HOME"):
        yield Path(home) / ".gitconfig"


def system_file() -> Path:
    """Return the system's configuration file; a file that does not exist if there is none."""
    if "GIT_CONFIG_SYSTEM" in os.environ:
        return Path(os.environ["GIT_CONFIG_SYSTEM"])
    return next(filter(Path.exists, _SYSTEM_FILES), _SYSTEM_FILES[0])


def user_folder() -> Path | None:
    """Return the folder of the user's git files, by the XDG rules."""
    if xdg := os.environ.get("XDG_CONFIG_HOME"):
        return Path(xdg) / "git"
    home = os.environ.get("HOME")
    return Path(home) / ".config" / "git" if home else None


def excludes_file(config: GitConfig, top: Path) -> Path | None:
    """Return the user's own ignore file: ``core.excludesFile``, or git's default for it."""
    value = config.values.get("core.excludesfile")
    if value is not None:
        # An empty value disables the default.
        return top / expand_path(value) if value else None
    folder = user_folder()
    return None if folder is None else folder / "ignore"


def attributes_file(config: GitConfig, top: Path) -> Path | None:
    """Return the user's own attributes file: ``core.attributesFile``, or git's default for it."""
    value = config.values.get("core.attributesfile")
    if value is not None:
        return top / expand_path(value) if value else None
    folder = user_folder()
    return None if folder is None else folder / "attributes"


def expand_path(value: bytes) -> Path:
    """Return a path of a configuration file, with ``~`` replaced if that user is known."""
    path = Path(os.fsdecode(value))
    try:
        return path.expanduser() if value[:1] == b"~" else path
    except RuntimeError:
        return path
