"""Checks of values from options, the environment and files: their types, with remedies in the terms of a shell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from skyrl_modal.config.settings import Setting, suggestion
from skyrl_modal.dataclass import MISSING
from skyrl_modal.declaration import fields
from skyrl_modal.errors import SpecError
from skyrl_modal.spec.bucket import BucketSpec
from skyrl_modal.spec.duration import parse_duration
from skyrl_modal.spec.mount import MountSpec
from skyrl_modal.spec.secret import SecretSpec
from skyrl_modal.spec.volume import VolumeSpec

#: What messages have instead of a value that may be a secret.
NOT_SHOWN = "(not shown)"
_DURATION_REMEDY = "pass a duration such as 45s, 90m, 24h or 1h30m"
#: The classes of the tables in lists.
ITEM_CLASSES: Mapping[str, type] = {
    "buckets": BucketSpec,
    "mounts": MountSpec,
    "secrets": SecretSpec,
    "volumes": VolumeSpec,
}


def required_fields(cls: type) -> list[str]:
    """Return the names of the fields of a class that have no default."""
    return [field.name for field in fields(cls) if field.default is MISSING and not getattr(field, "factory", None)]


def check_value(setting: Setting, value: Any) -> Any:
    """Return a value for the field of a setting. ``none`` becomes None where the field can be None.

    Args:
        setting: The setting.
        value: A value of a TOML file, a text of the environment, or the value of an option.

    Raises:
        SpecError: The value has another type than the setting.

    Example:
        >>> from skyrl_modal import Launcher
        >>> from skyrl_modal.config.settings import all_settings
        >>> check_value(all_settings(Launcher)["gpu"], "H100:8,A100:8")
        ['H100:8', 'A100:8']
    """
    key, kind = setting.key, setting.option.kind
    if setting.is_optional and isinstance(value, str) and value.strip().lower() == "none":
        return None
    match kind:
        case "flag":
            if not isinstance(value, bool):
                raise SpecError(key, value, "pass true or false")
        case "whole":
            if isinstance(value, bool) or not isinstance(value, int):
                raise SpecError(key, value, "pass a whole number")
        case "number":
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise SpecError(key, value, "pass a number")
        case "duration":
            _check_duration(key, value)
        case "choice":
            _check_choice(setting, value)
        case "list":
            value = _to_strings(key, value)
        case "codes":
            value = _to_codes(key, value)
        case "gpus":
            value = value.split(",") if isinstance(value, str) else _to_strings(key, value)
        case "variables":
            _check_variables(key, value)
        case "buckets" | "mounts" | "volumes" | "secrets":
            _check_items(setting, value)
        case "url":
            if not isinstance(value, str) or not value:
                raise SpecError(key, NOT_SHOWN, "pass a URL such as https://example.com/hook")
        case _:
            if not isinstance(value, str) or not value:
                raise SpecError(key, value, "pass a text that is not empty")
    return value


def _check_duration(key: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise SpecError(key, value, _DURATION_REMEDY)
    try:
        parse_duration(value, name=key)
    except SpecError:
        raise SpecError(key, value, _DURATION_REMEDY) from None


def _check_choice(setting: Setting, value: object) -> None:
    if value in setting.option.choices:
        return
    names = (*setting.option.choices, *(("none",) if setting.is_optional else ()))
    near = suggestion(value, names) if isinstance(value, str) else ""
    raise SpecError(setting.key, value, f"pass {' or '.join(names)}.{near}")


def _to_strings(key: str, value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise SpecError(key, value, "pass a list of texts")
    return list(value)


def _to_codes(key: str, value: object) -> list[int] | None:
    """Return exit codes; None for any."""
    remedy = "pass exit codes from 1 to 255, such as 1,137, or any"
    if value == "any":
        return None
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        items = [items]
    codes = []
    for item in items:
        if isinstance(item, bool) or not isinstance(item, int | str) or not re.fullmatch(r"\s*\d{1,3}\s*", str(item)):
            raise SpecError(key, value, remedy)
        codes.append(int(item))
    if not codes or not all(1 <= code <= 255 for code in codes):
        raise SpecError(key, value, remedy)
    return codes


def _check_variables(key: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise SpecError(key, value, "pass a table of variables")
    for name, item in value.items():
        if isinstance(item, bool) or not isinstance(item, str | int | float):
            raise SpecError(f"{key}.{name}", item, "pass a text or a number")


def _check_items(setting: Setting, value: object) -> None:
    """Check a list of tables, or for secrets also of names of variables."""
    key, cls = setting.key, ITEM_CLASSES[setting.option.kind]
    remedy = "pass a list of names of variables, and of tables" if key == "secrets" else "pass a list of tables"
    if not isinstance(value, list):
        raise SpecError(key, NOT_SHOWN if key == "secrets" else value, remedy)
    known = [field.name for field in fields(cls)]
    for item in value:
        if key == "secrets" and isinstance(item, str):
            continue
        if not isinstance(item, dict):
            raise SpecError(key, NOT_SHOWN if key == "secrets" else item, remedy)
        for name, content in item.items():
            if name not in known:
                raise SpecError(f"{key}.{name}", content, f"there is no such key.{suggestion(name, known)}")
            _check_item_value(f"{key}.{name}", content, str(getattr(fields(cls), name).type))


def _check_item_value(key: str, value: object, hint: str) -> None:
    """Check a value in a table by the annotation of its field. The class checks what else is required."""
    hint = hint.removesuffix(" | None")
    if hint == "bool":
        if not isinstance(value, bool):
            raise SpecError(key, value, "pass true or false")
    elif hint == "int":
        if isinstance(value, bool) or not isinstance(value, int):
            raise SpecError(key, value, "pass a whole number")
    elif hint.startswith("Sequence"):
        _to_strings(key, value)
    elif not isinstance(value, str):
        raise SpecError(key, value, "pass a text")
