"""Configuration files: where they are, and their content as settings. Nothing in the file of a project is trusted."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from skyrl_modal.config.check import NOT_SHOWN, check_value
from skyrl_modal.config.settings import REFUSED_IN_PROJECTS, Setting, suggestion
from skyrl_modal.dataclass import dataclass
from skyrl_modal.errors import CheckoutNotFound, SpecError

FILE_NAME = "skyrl-modal.toml"
PROJECT_NAME = "pyproject.toml"
USER_FILE_NAME = "config.toml"
#: The table in a pyproject.toml.
TOOL_NAME = "skyrl-modal"
PROFILES = "profile"
#: Sizes above which a file is refused.
MAX_FILE_BYTES = 1 << 20
MAX_PROJECT_BYTES = 4 << 20
#: Length of a value in a message.
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFile:
    """A configuration file.

    Attributes:
        path: Its path, absolute.
        table: Its content: that of ``[tool.skyrl-modal]`` in a pyproject.toml.
        is_project: Whether it is the file of a project, which may not set everything.
    """

    path: Path
    table: Mapping[str, Any]
    is_project: bool

    @property
    def title(self) -> str:
        """The file's path as messages show it: relative to the working directory if it is in that."""
        try:
            return str(self.path.relative_to(Path.cwd()))
        except (ValueError, FileNotFoundError):
            return str(self.path)

    @property
    def profiles(self) -> Mapping[str, Any]:
        """The profiles by their names."""
        profiles: Mapping[str, Any] = self.table.get(PROFILES, {})
        return profiles

    def values(self, known: Mapping[str, Setting], profile: str | None = None) -> dict[str, Any]:
        """Return the checked values by their keys.

        Args:
            known: The settings that exist.
            profile: The profile whose values are returned; None for those outside of profiles.

        Raises:
            SpecError: A key does not exist, or may not be in this file; or a value has another type.
        """
        table, prefix = self.table, ""
        if profile is not None:
            table, prefix = self.profiles.get(profile, {}), f"{PROFILES}.{profile}."
        found: dict[str, Any] = {}
        for key, value in _flatten(table, known):
            if key == PROFILES and not prefix:
                continue
            try:
                found[key] = self._checked(key, value, known)
            except SpecError as error:
                raise self.located(error, f"{prefix}{error.field}") from None
        return found

    def check_names(self, known: Mapping[str, Setting]) -> None:
        """Check that all keys exist, also those of profiles that are not used.

        Raises:
            SpecError: One does not.
        """
        profiles = self.table.get(PROFILES, {})
        if not isinstance(profiles, dict) or not all(isinstance(table, dict) for table in profiles.values()):
            error = SpecError(PROFILES, profiles, "write a table for each profile, such as [profile.a100]")
            raise self.located(error, PROFILES)
        for prefix, table in (("", self.table), *((f"{PROFILES}.{name}.", table) for name, table in profiles.items())):
            for key, value in _flatten(table, known):
                if key not in known and (prefix or key != PROFILES):
                    error = SpecError(key, value, _unknown_key(key, known))
                    raise self.located(error, f"{prefix}{key}")

    def _checked(self, key: str, value: Any, known: Mapping[str, Setting]) -> Any:
        value = check_value(known[key], value)
        if key in ("checkout", "mounts"):
            value = self._with_folders(key, value)
        if self.is_project and key in REFUSED_IN_PROJECTS:
            flag, variable = known[key].flag, known[key].option.variable
            places = [f"with {flag}" if flag else "", f"in ${variable}" if variable else "", f"in {user_config_path()}"]
            remedy = f"the file of a checkout may not set this. Set it {' or '.join(filter(None, places))}"
            raise SpecError(key, NOT_SHOWN if key in ("notify", "secrets") else value, remedy)
        return value

    def _with_folders(self, key: str, value: Any) -> Any:
        """Return a value in which folders are relative to the file's. The file of a project may name those in it only.

        Raises:
            SpecError: A folder is outside of that of the project's file.
        """
        if key == "checkout":
            return str(self._folder(key, value))
        return [
            {**item, "local_path": str(self._folder(key, item["local_path"]))} if "local_path" in item else item
            for item in value
        ]

    def _folder(self, key: str, value: str) -> Path:
        if "\0" in value:
            raise SpecError(key, value, "a path has no null character")
        folder = self.path.parent / Path(value).expanduser()
        if self.is_project and not folder.resolve().is_relative_to(self.path.parent.resolve()):
            others = "--mount" if key == "mounts" else "--checkout, in $SKYRL_REPO_ROOT"
            raise SpecError(
                key,
                value,
                "the file of a checkout may not name a folder outside of its own. Set it with "
                f"{others} or in {user_config_path()}",
            )
        return folder

    def located(self, error: SpecError, key: str) -> SpecError:
        """Return an error that names this file and a key."""
        source = f"{self.title}: {key} = {in_toml(error.value)}"
        return error.located(source)


def in_toml(value: object) -> str:
    """Return a value in the form of TOML, shortened. Only tables differ.

    Example:
        >>> in_toml([True, "a"])
        '[true, "a"]'
    """
    if value == NOT_SHOWN:
        return NOT_SHOWN
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _unknown_key(key: str, known: Mapping[str, Setting]) -> str:
    if any(name.startswith(f"{key}.") for name in known):
        return f"write a table, such as [{key}]"
    if key in ("mounts.include", "mounts.exclude", "steps", "image.steps"):
        return "there is no such key. Pass it to Launcher in Python"
    return f"there is no such key.{suggestion(key, known)} `skyrl-modal config` lists all keys"


def _flatten(table: Mapping[str, Any], known: Mapping[str, Setting], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield keys and values. A table that is not itself a setting's value is divided into its keys."""
    for name, value in table.items():
        key = f"{prefix}{name}"
        is_group = any(other.startswith(f"{key}.") for other in known)
        if isinstance(value, dict) and is_group and not prefix:
            yield from _flatten(value, known, f"{key}.")
        else:
            yield key, value


def user_config_path() -> Path:
    """Return the path of the user's own file. It may not exist.

    Raises:
        StorageError: This user has no home folder.
    """
    from skyrl_modal.user_folders import config_folder  # imported here, since most runs have no file

    return config_folder() / USER_FILE_NAME


def read_files(known: Mapping[str, Setting], checkout: str | Path | None = None) -> list[ConfigFile]:
    """Return the configuration files, the one with the higher precedence first: that of the project, and the user's.

    Args:
        known: The settings that exist.
        checkout: The checkout that was passed; None to search.

    Raises:
        SpecError: A file is not valid.
    """
    found = [_find_project_file(checkout), read_user_file()]
    files = [file for file in found if file is not None]
    for file in files:
        file.check_names(known)
    return files


def _find_project_file(checkout: str | Path | None) -> ConfigFile | None:
    """Return the file of the project: in the working directory, the nearest folder above it, or else the checkout."""
    try:
        start = Path.cwd()
    except FileNotFoundError:
        start = None
    for folder in () if start is None else (start, *start.parents):
        file = _read_folder(folder)
        if file is not None:
            return file
    from skyrl_modal.checkout_search import find_checkout  # imported here, since `--help` does not need it

    try:
        root = find_checkout(checkout)
    except (CheckoutNotFound, RuntimeError, OSError, ValueError):  # reported where the checkout is needed
        return None
    return _read_folder(root)


def _read_folder(folder: Path) -> ConfigFile | None:
    """Return the configuration in a folder; None if it has none, or if another user could have written it."""
    path = folder / FILE_NAME
    data = _read(path, MAX_FILE_BYTES)
    if data is not None:
        return None if _is_of_other_user(path) else ConfigFile(path=path, table=_parse(path, data), is_project=True)
    path = folder / PROJECT_NAME
    data = _read(path, MAX_PROJECT_BYTES, is_required=False)
    if data is None or TOOL_NAME.encode() not in data or _is_of_other_user(path):
        return None  # most are of projects without this table: they are not parsed
    tools = _parse(path, data).get("tool", {})
    table = tools.get(TOOL_NAME) if isinstance(tools, dict) else None
    if table is None:
        return None
    if not isinstance(table, dict):
        raise SpecError(TOOL_NAME, table, "write a table", source=f"{path}: tool.{TOOL_NAME}")
    return ConfigFile(path=path, table=table, is_project=True)


def read_user_file() -> ConfigFile | None:
    """Return the user's own file; None if there is none.

    Raises:
        SpecError: It is not valid TOML, or cannot be read.
    """
    from skyrl_modal.errors import StorageError

    try:
        path = user_config_path()
    except StorageError:  # a user without a home folder has no file
        return None
    data = _read(path, MAX_FILE_BYTES)
    return None if data is None else ConfigFile(path=path, table=_parse(path, data), is_project=False)


def _read(path: Path, limit: int, *, is_required: bool = True) -> bytes | None:
    """Return the content of a file; None if there is none.

    Raises:
        SpecError: A file of this package cannot be read. One of other programs counts as absent then.
    """
    from skyrl_modal.gitfiles.files import read_regular_file  # imported here, since `--help` reads no file

    try:
        return read_regular_file(path, max_bytes=limit)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if not is_required or not os.access(path.parent, os.X_OK):
            return None
        raise SpecError("config", str(path), f"it cannot be read: {error.strerror}", source=str(path)) from error


def _parse(path: Path, data: bytes) -> dict[str, Any]:
    import tomllib  # imported here, since most runs have no file

    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:  # also of invalid UTF-8, and of numbers with thousands of digits
        raise SpecError("config", str(path), f"it is not valid TOML: {error}", source=str(path)) from error


def _is_of_other_user(path: Path) -> bool:
    """Return whether another user owns a file: in a folder such as /tmp, above the working directory."""
    if os.name != "posix":
        return False
    owner, user = path.stat().st_uid, os.geteuid()
    if user == 0 or owner in (user, 0):
        return False
    warnings.warn(f"{path} is ignored: it belongs to another user (with the id {owner})", stacklevel=2)
    return True
