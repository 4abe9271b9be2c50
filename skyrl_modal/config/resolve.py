"""The value of each setting, and where it was set.

Precedence: arguments, environment, the chosen profile (of the project's file, then of the user's), the project's file,
the user's file, the field's default.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from skyrl_modal.config.check import check_value, required_fields
from skyrl_modal.config.files import ConfigFile, in_toml, read_files
from skyrl_modal.config.settings import Setting, all_settings, suggestion
from skyrl_modal.dataclass import dataclass, replace
from skyrl_modal.errors import SpecError
from skyrl_modal.spec.bucket import AnyVolume, BucketSpec
from skyrl_modal.spec.image import ImageSpec
from skyrl_modal.spec.mount import MountSpec
from skyrl_modal.spec.ray import RaySpec
from skyrl_modal.spec.run_spec import RunSpec
from skyrl_modal.spec.secret import SecretSpec
from skyrl_modal.spec.volume import VolumeSpec

PROFILE_VARIABLE = "SKYRL_MODAL_PROFILE"
#: Settings whose environment variable counts as not set if it is empty.
_UNSET_IF_EMPTY = ("checkout", "confirm_above", "notify")


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A value, and where it was set.

    Attributes:
        value: The value.
        origin: What set it: ``argument``, ``environment``, ``profile``, ``file`` or ``default``.
        source: Its option, variable, or file and key; empty for an argument in Python, and for a default.
    """

    value: Any
    origin: str
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """The settings of a launcher.

    Attributes:
        known: All settings by their keys.
        values: Those that are set, by their keys. A variable has a key of its own, such as ``env.NAME``.
        files: The files that were read.
        profile: The chosen profile; None for none.
    """

    known: Mapping[str, Setting]
    values: Mapping[str, Value]
    files: Sequence[ConfigFile] = ()
    profile: str | None = None

    def launcher_fields(self) -> dict[str, Any]:
        """Return the fields of the launcher that are set. Those of the environment are read by the launcher itself.

        Raises:
            SpecError: A value is not valid. The error contains its source.
        """
        given = {key: item.value for key, item in self.values.items() if item.origin != "environment"}
        tables = ("image", "ray", "env")
        extra = ("include", "exclude", "mounts", "notify", "confirm_above", "volumes", "buckets", "secrets")
        fields = {
            key: value
            for key, value in given.items()
            if key not in extra and key.partition(".")[0] not in tables and key in self.known
        }
        if variables := _group(given, "env"):
            fields["env"] = variables
        if image := self._table(ImageSpec, "image", given):
            fields["image"] = image
        if given.get("ray") is False:
            fields["ray"] = None
        elif ray := self._table(RaySpec, "ray", given):
            fields["ray"] = ray
        if volumes := self._volumes(given):
            fields["volumes"] = volumes
        if "secrets" in given:
            fields["secrets"] = [
                item if isinstance(item, str) else self._item(SecretSpec, "secrets", item) for item in given["secrets"]
            ]
        if mounts := self._mounts(given):
            fields["mounts"] = mounts
        return fields

    def _table(self, cls: type, name: str, given: Mapping[str, Any]) -> Any:
        """Return the declared object for the settings of a table; None if none of them is set."""
        values = _group(given, name)
        variables = {key.removeprefix("env."): values.pop(key) for key in list(values) if key.startswith("env.")}
        if variables:
            values["env"] = variables
        if not values:
            return None
        try:
            return cls(**values)
        except SpecError as error:
            raise self.located(error.renamed(f"{name}.{error.field.partition('[')[0]}")) from None

    def _item(self, cls: type, key: str, item: Mapping[str, Any]) -> Any:
        try:
            return cls(**item)
        except SpecError as error:
            raise self.located(error.renamed(f"{key}.{error.field}")) from None
        except TypeError:  # a required field is missing
            missing = [name for name in required_fields(cls) if name not in item]
            raise self.located(SpecError(key, dict(item), f"each table needs {' and '.join(missing)}")) from None

    def _volumes(self, given: Mapping[str, Any]) -> list[AnyVolume] | None:
        """Return the volumes, and the buckets beside them. None if nothing about them is set."""
        if "volumes" not in given and "buckets" not in given:
            return None
        volumes = [self._item(VolumeSpec, "volumes", item) for item in given.get("volumes", [{}])]
        return [*volumes, *(self._item(BucketSpec, "buckets", item) for item in given.get("buckets", ()))]

    def _mounts(self, given: Mapping[str, Any]) -> list[MountSpec] | None:
        """Return the mounts: that of the checkout, and further ones. None if nothing about them is set."""
        rules = {key: given[key] for key in ("include", "exclude") if key in given}
        items = [dict(item) for item in given.get("mounts", ())]
        if not rules and not items:
            return None
        if all(item.get("local_path") is not None for item in items):
            items.insert(0, {})
        made = []
        for item in items:
            values = item if item.get("local_path") is not None else {**item, **rules}
            made.append(self._item(MountSpec, "mounts", values))
        return made

    def located(self, error: SpecError) -> SpecError:
        """Return an error that names where its value was set, if that is known."""
        if error.source:
            return error
        key = self._key_of(error.field)
        if key is None:
            return error
        if key == "volumes" and error.value in self._bucket_paths():
            key = "buckets"
        variable = error.field.partition("['")[2].removesuffix("']")
        by_name = self.values.get(f"{key}.{variable or error.value}")
        item = self.values.get(key) or by_name
        if item is None:  # a table, whose keys are settings
            item = next((value for name, value in self.values.items() if name.startswith(f"{key}.")), None)
        if item is None:
            flag = self.known[key].flag
            source = f"{flag} {in_shell(error.value)} (the default)" if flag else ""
        elif by_name is not None and not variable:  # a variable, whose value the error does not contain
            source = f"{item.source} {error.value}" if item.origin == "argument" else item.source
        else:
            source = _describe(item, f"{variable}={error.value}" if variable else error.value)
        return error.located(source) if source else error

    def _bucket_paths(self) -> list[str]:
        """Return the mount paths of the buckets, which are a part of the launcher's volumes."""
        given = self.values.get("buckets")
        return [] if given is None else [posixpath.normpath(str(item.get("mount_path"))) for item in given.value]

    def _key_of(self, field: str) -> str | None:
        """Return the setting that an error's field is about, such as ``env`` for ``env['A']``; None for none."""
        name = field.partition("[")[0]
        while name and name not in self.known:
            name = name.rpartition(".")[0]
        return name or None


def _describe(item: Value, value: object) -> str:
    """Return where a value was set, with the value, in the form in which it is written there."""
    if not item.source:
        return ""
    if item.origin == "argument":
        return item.source if value is True and item.value is True else f"{item.source} {in_shell(value)}"
    if item.origin == "environment":
        return f"{item.source}={in_shell(value)}"
    return f"{item.source} = {in_toml(value)}"


def in_shell(value: object) -> str:
    """Return a value as it is written in a shell."""
    if isinstance(value, list | tuple):
        return shlex.quote(",".join(map(str, value)))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) and value.is_integer() else shlex.quote(str(value))


def resolve(
    cls: type[RunSpec],
    arguments: Mapping[str, Any],
    *,
    profile: str | None = None,
    flags: Mapping[str, str] | None = None,
    checkout: str | Path | None = None,
) -> Configuration:
    """Return the settings of a launcher.

    Args:
        cls: Its class.
        arguments: Values that were passed, by their keys.
        profile: The profile; None for ``$SKYRL_MODAL_PROFILE``, if that is set.
        flags: The options with the arguments' values, by their keys; None for arguments in Python.
        checkout: The checkout whose file is read; None for that of the arguments, or to search.

    Raises:
        SpecError: A file is not valid, or a value has another type than its setting; or no file has the profile.
    """
    known = all_settings(cls)
    profile_source = f"--profile {profile}" if profile is not None and flags is not None else ""
    if profile is None and os.environ.get(PROFILE_VARIABLE):
        profile = os.environ[PROFILE_VARIABLE]
        profile_source = f"${PROFILE_VARIABLE}={profile}"
    values: dict[str, Value] = {}
    given = {}
    for key, value in arguments.items():
        flag = None if flags is None else flags.get(key, known[key].flag)
        given[key] = Value(value=value, origin="argument", source=flag or "")
    _add(values, {key: _checked(known, key, item) for key, item in given.items()}, known)
    environment = {}
    for key, setting in known.items():
        variable = setting.option.variable
        text = os.environ.get(variable) if variable else None
        if text or (text is not None and key not in _UNSET_IF_EMPTY):
            item = Value(value=_from_text(setting, text), origin="environment", source=f"${variable}")
            environment[key] = _checked(known, key, item)
    _add(values, environment, known)
    files = read_files(known, checkout or arguments.get("checkout"))
    if profile is not None:
        _check_profile(profile, files, profile_source)
    for name, origin in ((profile, "profile"), (None, "file")):
        if origin == "profile" and name is None:
            continue
        for file in files:
            prefix = f"{file.title}: " + (f"profile.{name}." if name is not None else "")
            found = file.values(known, name)
            _add(
                values,
                {key: Value(value=value, origin=origin, source=f"{prefix}{key}") for key, value in found.items()},
                known,
            )
    return Configuration(known=known, values=values, files=files, profile=profile)


def _from_text(setting: Setting, text: str) -> Any:
    """Return the value of an environment variable. A text that is no number is refused by the check."""
    if setting.option.kind == "number":
        with contextlib.suppress(ValueError):
            return float(text)
    return text


def _checked(known: Mapping[str, Setting], key: str, item: Value) -> Value:
    try:
        return replace(item, value=check_value(known[key], item.value))
    except SpecError as error:
        raise error.located(_describe(item, error.value)) from None


def _add(values: dict[str, Value], found: Mapping[str, Value], known: Mapping[str, Setting]) -> None:
    """Add the values of a source with a lower precedence. Variables are added one by one."""
    for key, item in found.items():
        if known[key].option.kind == "variables":
            for name, value in item.value.items():
                source = f"{item.source}.{name}" if item.origin in ("file", "profile") else item.source
                values.setdefault(f"{key}.{name}", replace(item, value=value, source=source))
        else:
            values.setdefault(key, item)


def _group(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def _check_profile(profile: str, files: Sequence[ConfigFile], source: str) -> None:
    names = [name for file in files for name in file.profiles]
    if profile in names:
        return
    where = " and ".join(file.title for file in files)
    known = f"{where} have the profiles {', '.join(dict.fromkeys(names))}" if names else "there are no profiles"
    remedy = f"there is no such profile.{suggestion(profile, names)} Known: {known}"
    raise SpecError("profile", profile, remedy, source=source)
