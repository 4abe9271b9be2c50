"""The settings of git that decide which files git includes.

Plain configuration files are read here, because a git process takes as long as the selection of a small checkout. Where
a file includes others, `git config` is asked, since only git knows all conditions of includes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from attrs import frozen

from skyrl_modal.gitfiles.config_file import parse_config
from skyrl_modal.gitfiles.files import read_regular_file
from skyrl_modal.gitfiles.git_command import GitCommandError, run_git

_TRUE = (b"true", b"yes", b"on")
# The place is fixed when git is built: the system's git, and Homebrew's on both kinds of Mac.
_SYSTEM_FILES = tuple(map(Path, ("/etc/gitconfig", "/opt/homebrew/etc/gitconfig", "/usr/local/etc/gitconfig")))


@frozen
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

    def flag(self, key: str) -> bool:
        """Return whether a boolean key is set to true."""
        return key in self.values and is_true(self.values[key])


def is_true(value: bytes | None) -> bool:
    """Return whether the value of a boolean key means true, as git reads it."""
    if value is None:
        return True
    text = value.lower()
    return text in _TRUE or (text.lstrip(b"+-").isdigit() and int(text) != 0)


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
    if reader.has_includes:
        try:
            return GitConfig(list_config(git_dir, worktree), tuple(reader.problems), has_all_filters=True)
        except GitCommandError as error:
            reader.problems.append(
                f"the git configuration includes other files, which git is needed to read ({error}): their settings "
                "are not applied"
            )
    return GitConfig(reader.values, tuple(reader.problems), has_all_filters=not reader.may_have_filters)


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

    def read(self, path: Path) -> None:
        """Read one file; an absent one counts as empty."""
        try:
            content = read_regular_file(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            self.problems.append(f"{path} cannot be read ({error.strerror}): its git settings are not applied")
            self.may_have_filters = True
            return
        # A section name has no escaped form, so that a search finds it also where the parser differs from git's.
        text = content.lower()
        self.may_have_filters |= b"filter" in text or b"include" in text
        try:
            for key, value in parse_config(content):
                self._set(key, value)
        except ValueError as error:
            self.may_have_filters = True
            self.problems.append(
                f"{path} is not a git configuration file ({error}): the settings after this line are not applied"
            )

    def read_environment(self) -> None:
        """Read the settings in ``GIT_CONFIG_COUNT`` and the variables that belong to it."""
        count = os.environ.get("GIT_CONFIG_COUNT", "")
        for number in range(int(count) if count.isdigit() else 0):
            key, value = os.environ.get(f"GIT_CONFIG_KEY_{number}"), os.environ.get(f"GIT_CONFIG_VALUE_{number}")
            if key and value is not None:
                self._set(key.lower(), os.fsencode(value))

    def _set(self, key: str, value: bytes | None) -> None:
        self.values[key] = value
        self.may_have_filters |= key.startswith("filter.")
        self.has_includes |= key == "include.path" or (key.startswith("includeif.") and key.endswith(".path"))


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


def expand_path(value: bytes) -> Path:
    """Return a path of a configuration file, with ``~`` replaced if that user is known."""
    path = Path(os.fsdecode(value))
    try:
        return path.expanduser() if value[:1] == b"~" else path
    except RuntimeError:
        return path
